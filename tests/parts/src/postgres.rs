//! A Postgres of one's own. Starts it as an unprivileged user below the folder for temporary files.

use std::{
    fs,
    io::Write,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::unistd::Uid;

use crate::{PartError, io, ran, wait};

/// Postgres refuses to run as root; this user owns nothing.
const NOBODY: u32 = 65_534;
/// Debian's place for its versions.
const DEBIAN: &str = "/usr/lib/postgresql";
/// The owner of everything in it.
pub const OWNER: &str = "postgres";

/// Runs Postgres until its standard input ends, which it does when the process that started it has, however that ends; then nothing is left. With
/// each line that comes in it ends at once and is started again.
const KEEPER: &str = r#"
folder=$1; shift
while :; do
    "$@" & pid=$!
    read -r _ || break
    kill -QUIT $pid
    wait $pid
done
kill -QUIT $pid
wait $pid
rm -rf "$folder"
"#;

/// A running Postgres; it ends with this.
pub struct Server {
    folder: PathBuf,
    keeper: Child,
}

/// A program of Postgres'.
///
/// # Errors
/// If it is not installed.
pub fn program(name: &str) -> Result<PathBuf, PartError> {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let versions = versions.map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path)
        .chain(versions)
        .map(|place| place.join(name));
    places
        .find(|place| place.is_file())
        .ok_or_else(|| PartError::Missing {
            program: name.to_owned(),
            package: "Postgres 15 or later (Debian: postgresql-15)",
        })
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
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// If Postgres is not installed, or does not start.
    pub fn start() -> Result<Self, PartError> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let (initdb, postgres) = (program("initdb")?, program("postgres")?);
        // Sockets' paths are short (sun_path, 108 bytes), and nobody gets into the target folder of root.
        let folder = std::env::temp_dir().join(format!("vitrine-postgres-{}-{number}", std::process::id()));
        let shown = folder.display().to_string();
        fs::create_dir_all(&folder).map_err(io(format!("make {shown}")))?;
        if Uid::effective().is_root() {
            chown(&folder, Some(NOBODY), Some(NOBODY)).map_err(io(format!("give {shown} away")))?;
        }
        let data = folder.join("data");
        let made = as_nobody(&initdb)
            .args(["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .args(["--username", OWNER, "-D"])
            .arg(&data)
            .output()
            .map_err(io("start initdb"))?;
        ran("initdb", &made)?;
        let log = fs::File::create(folder.join("log")).map_err(io(format!("write a log in {shown}")))?;
        let errors = log.try_clone().map_err(io("write Postgres' log"))?;
        let keeper = as_nobody(Path::new("/bin/sh"))
            .args(["-c", KEEPER, "keeper"])
            .arg(&folder)
            .arg(postgres)
            .arg("-D")
            .arg(data)
            .args(["-c", "listen_addresses=", "-c", "max_connections=200", "-c"])
            .arg(format!("unix_socket_directories={shown}"))
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(io("start Postgres"))?;
        let server = Self { folder, keeper };
        server.answers()?;
        Ok(server)
    }

    /// Ends it as a machine that loses its power would, and starts it again; with what was committed.
    ///
    /// # Errors
    /// If it does not start again.
    pub fn restart(&self) -> Result<(), PartError> {
        let process = || fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
        let before = process();
        let told = self.keeper.stdin.as_ref().map(|mut stdin| stdin.write_all(b"\n"));
        told.unwrap_or(Ok(())).map_err(io("tell Postgres' keeper"))?;
        // Until then the old one might still answer.
        let is_another = || Ok(process().lines().next() != before.lines().next());
        wait("restarting Postgres", || self.log(), is_another)?;
        self.answers()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until it takes connections.
    fn answers(&self) -> Result<(), PartError> {
        let is_ready = program("pg_isready")?;
        wait(
            "Postgres",
            || self.log(),
            || {
                let asked = Command::new(&is_ready)
                    .arg("--quiet")
                    .arg("--host")
                    .arg(&self.folder)
                    .status();
                Ok(asked.map_err(io("start pg_isready"))?.success())
            },
        )
    }

    /// Where its socket is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The address of a database in it, for its owner.
    pub fn url(&self, database: &str) -> String {
        let host = self.folder.display();
        format!("postgres://{OWNER}@localhost/{database}?host={host}")
    }

    /// Has psql do something; what it says: of a table its rows, with `|` between their columns.
    ///
    /// # Errors
    /// If it says no.
    pub fn psql(&self, database: &str, arguments: &[&str]) -> Result<String, PartError> {
        let done = Command::new(program("psql")?)
            .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"])
            .args(["--tuples-only", "--no-align"])
            .args(["--username", OWNER, "--dbname", database, "--host"])
            .arg(&self.folder)
            .args(arguments)
            .output()
            .map_err(io("start psql"))?;
        ran(format!("psql {}", arguments.join(" ")), &done)?;
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
