//! A Postgres of one's own, for a test binary or a step of the build. Starts it as an unprivileged user below the folder for temporary files, and
//! leaves nothing behind.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "tests say what is wrong by panicking"
)]

use std::{
    fs,
    io::Write,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::unistd::Uid;

/// Postgres refuses to run as root; this user owns nothing.
const NOBODY: u32 = 65_534;
/// Debian's place for its versions.
const DEBIAN: &str = "/usr/lib/postgresql";
/// It is ready within a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// The owner of everything in it.
pub const OWNER: &str = "postgres";

/// Runs Postgres until its standard input ends, which it does when the test binary has, however that ends; then nothing is left. Told `again`,
/// it leaves the data.
const KEEPER: &str = r#"
folder=$1; shift
"$@" & pid=$!
read -r word
kill -QUIT $pid
wait $pid
[ "$word" = again ] || rm -rf "$folder"
"#;

/// A running Postgres.
pub struct Server {
    folder: PathBuf,
    child: Mutex<Option<Child>>,
}

fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = versions
        .chain(std::env::split_paths(&path))
        .map(|place| place.join(name))
        .collect();
    places.retain(|place| place.is_file());
    places
        .pop()
        .unwrap_or_else(|| panic!("no {name}: install Postgres 15 or later (Debian: postgresql-15)"))
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    if Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    command
}

impl Server {
    /// Starts one.
    pub fn start() -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        // Sockets' paths are short (sun_path, 108 bytes), and nobody gets into the target folder of root.
        let folder = std::env::temp_dir().join(format!("vitrine-postgres-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        if Uid::effective().is_root() {
            chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = folder.join("data");
        let made = as_nobody(&program("initdb"))
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
                "--username",
                OWNER,
                "-D",
            ])
            .arg(&data)
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let server = Self {
            folder,
            child: Mutex::new(None),
        };
        server.run();
        server
    }

    /// Starts it, again after [`Server::kill`].
    pub fn run(&self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let child = as_nobody(Path::new("/bin/sh"))
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.folder)
            .arg(program("postgres"))
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-c", "listen_addresses=", "-c", "max_connections=200", "-c"])
            .arg(format!("unix_socket_directories={}", self.folder.display()))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.child.lock().unwrap() = Some(child);
        let begun = Instant::now();
        let socket = self.folder.join(".s.PGSQL.5432");
        // The socket is there before it answers; whoever connects waits for that.
        while !socket.exists() {
            assert!(
                begun.elapsed() < PATIENCE,
                "Postgres does not start: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ends it at once (SIGQUIT): no transaction is finished, and the next start recovers.
    pub fn kill(&self) {
        let Some(mut keeper) = self.child.lock().unwrap().take() else {
            return;
        };
        keeper.stdin.take().unwrap().write_all(b"again\n").unwrap();
        keeper.wait().unwrap();
    }

    /// Where its socket is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The address of a database in it, for its owner.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{OWNER}@localhost/{database}?host={}",
            self.folder.display()
        )
    }

    /// Has psql do something, as soon as it answers.
    pub fn psql(&self, database: &str, arguments: &[&str]) {
        let begun = Instant::now();
        loop {
            let done = Command::new(program("psql"))
                .args([
                    "--no-psqlrc",
                    "--quiet",
                    "--set=ON_ERROR_STOP=1",
                    "--username",
                    OWNER,
                    "--dbname",
                    database,
                    "--host",
                ])
                .arg(&self.folder)
                .args(arguments)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            // It does not listen yet, or still reads what it had (PostgreSQL, appendix A, 57P03).
            let starts = said.contains("starting up")
                || said.contains("No such file")
                || said.contains("Connection refused");
            match done.status.success() {
                true => return,
                false if starts && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20))
                }
                false => panic!("psql {arguments:?}: {said}"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.child.lock().unwrap().take() {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }
}
