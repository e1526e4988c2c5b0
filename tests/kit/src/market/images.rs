//! The images of a market: the shop's own, and those of what is around it, out of what this machine has installed. Runs cargo and npm.

use std::path::{Path, PathBuf};

use vitrine_devcluster::{
    host,
    image::{self, Contents, FileEntry, Image, ImageConfig},
    progress::Progress,
};
use vitrine_parts::{packages, postgres_program};

use crate::{
    error::{Error, Result},
    images::{build_image, programs, stripped, workspace},
};

/// The shop's programs, all in one image.
const SHOP: [&str; 3] = ["vitrine-api", "vitrine-finance", "vitrine-signer"];
/// Stands for Stripe.
const STRIPE: &str = "vitrine-stripe";
/// What people verify licences with.
const CLI: &str = "vitrine";
/// Nobody in particular.
const USER: &str = "65532:65532";

/// All of them.
#[derive(Clone, Debug)]
pub struct Images {
    /// The shop's.
    pub shop: Image,
    /// Stripe's simulator.
    pub stripe: Image,
    /// Postgres.
    pub postgres: Image,
    /// An OpenID provider.
    pub identity: Image,
}

impl Images {
    /// Builds them under the names that they have in a repository.
    ///
    /// # Errors
    /// If something does not compile, or is not installed: says what.
    pub fn build(repository: &str, progress: &dyn Progress) -> Result<Self> {
        host::ensure(host::BUSYBOX, progress)?;
        programs(&[&SHOP[..], &[STRIPE, CLI]].concat())?;
        Ok(Self {
            shop: of_programs(&format!("{repository}/shop:dev"), &SHOP)?,
            stripe: of_programs(&format!("{repository}/stripe:dev"), &[STRIPE])?,
            postgres: postgres(repository)?,
            identity: identity(repository)?,
        })
    }

    /// Each of them.
    pub fn all(&self) -> [&Image; 4] {
        [&self.shop, &self.stripe, &self.postgres, &self.identity]
    }
}

/// Repository and digest of an image.
pub(super) fn parted(image: &Image) -> Result<(String, String)> {
    let name = image.by_digest();
    name.split_once('@')
        .map(|(repository, digest)| (repository.to_owned(), digest.to_owned()))
        .ok_or_else(|| Error::Other(format!("the image {name:?} is not by digest")))
}

fn of_programs(name: &str, names: &[&str]) -> Result<Image> {
    let mut files: Vec<FileEntry> = vec![];
    for name in names {
        add(
            &mut files,
            image::program_with_libraries(&format!("/{name}"), &stripped(name)?)?,
        );
    }
    build_image(&Contents {
        name: name.to_owned(),
        files,
        config: ImageConfig {
            user: Some(USER.to_owned()),
            ..ImageConfig::default()
        },
    })
}

/// Adds files; a library that several programs have is there once.
fn add(files: &mut Vec<FileEntry>, more: Vec<FileEntry>) {
    for file in more {
        if !files.iter().any(|there| there.path == file.path) {
            files.push(file);
        }
    }
}

/// All files below a folder, at a place in the image.
fn tree(at: &str, folder: &Path) -> Result<Vec<FileEntry>> {
    let fail = |source| Error::File {
        path: folder.to_owned(),
        source,
    };
    let mut files = vec![];
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(fail)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        let path = format!("{at}/{name}");
        if entry.is_dir() && !entry.is_symlink() {
            files.extend(tree(&path, &entry)?);
        } else if entry.is_file() {
            files.push(FileEntry {
                mode: 0o644,
                ..FileEntry::program(&path, entry)
            });
        }
    }
    Ok(files)
}

/// Postgres as this machine has it, and a shell by which it is set up.
fn postgres(repository: &str) -> Result<Image> {
    let program = postgres_program("postgres").map_err(|error| Error::Other(error.to_string()))?;
    let program = std::fs::canonicalize(&program).map_err(|source| Error::File {
        path: program,
        source,
    })?;
    let version = program.ancestors().nth(2).unwrap_or(Path::new("/"));
    let number = version
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let share = Path::new("/usr/share/postgresql").join(&number);
    let mut contents = image::busybox(&format!("{repository}/postgres:{number}"))?;
    let path = |path: &Path| path.display().to_string();
    for name in ["postgres", "initdb"] {
        let program = version.join("bin").join(name);
        add(
            &mut contents.files,
            image::program_with_libraries(&path(&program), &program)?,
        );
    }
    for name in ["dict_snowball.so", "plpgsql.so"] {
        let library = version.join("lib").join(name);
        add(
            &mut contents.files,
            vec![FileEntry::program(&path(&library), &library)],
        );
    }
    add(&mut contents.files, tree(&path(&share), &share)?);
    // The one zone that clients ask for; Debian's Postgres has none of its own.
    let zone = Path::new("/usr/share/zoneinfo/Etc/UTC");
    let utc = ["/usr/share/zoneinfo/UTC", "/usr/share/zoneinfo/Etc/UTC"];
    add(
        &mut contents.files,
        utc.map(|path| FileEntry::program(path, zone)).into(),
    );
    add(
        &mut contents.files,
        vec![
            FileEntry::text("/etc/passwd", "postgres:x:65532:65532::/data:/bin/sh\n"),
            FileEntry::folder("/data", 0o1777),
        ],
    );
    contents.config.env = vec![format!("PATH=/bin:{}", path(&version.join("bin")))];
    build_image(&contents)
}

/// The provider of `tests/oidc` with its packages, and Node as this machine has it.
fn identity(repository: &str) -> Result<Image> {
    let packages =
        packages(&workspace().join("tests/oidc")).map_err(|error| Error::Other(error.to_string()))?;
    let node = host::find_program("node").ok_or_else(|| {
        Error::Other("there is no node; install Node 18 or later (Debian: nodejs, npm)".to_owned())
    })?;
    let mut files = image::program_with_libraries("/usr/bin/node", &node)?;
    add(&mut files, tree("/oidc", &packages)?);
    build_image(&Contents {
        name: format!("{repository}/identity:dev"),
        files,
        config: ImageConfig {
            user: Some(USER.to_owned()),
            ..ImageConfig::default()
        },
    })
}
