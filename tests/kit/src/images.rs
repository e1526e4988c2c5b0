//! The images that are built here: Vitrine's own, the demo's product, and products for tests. Runs cargo and the Go toolchain.

use std::path::{Path, PathBuf};

use vitrine_devcluster::{
    cargo, host,
    image::{self, Contents, FileEntry, Image, ImageConfig},
    progress::{self, Progress},
    tools,
};

use crate::{
    error::{Error, Result},
    program,
};
use vitrine_policies::names;

/// The workspace this was compiled in.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// How Vitrine's own program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// In a minute, with overflow checks: for the demo and for tests.
    Quick,
    /// As it ships, in five: for benches.
    Optimised,
}

/// The operator's program. In a test, what `cargo xtask test` has built with everything else, and names in `VITRINE_OPERATOR`.
///
/// # Errors
/// If it does not compile.
pub fn operator_program(build: Build) -> Result<PathBuf> {
    if let (Build::Quick, Some(built)) = (build, std::env::var_os("VITRINE_OPERATOR")) {
        return Ok(built.into());
    }
    // With the whole workspace selected, its dependencies are those that tests were built with, and not compiled again; and
    // the launcher, which the next step needs, comes along.
    let (what, folder): (&[&str], _) = match build {
        Build::Quick => (
            &[
                "--workspace",
                "--bin",
                "vitrine-operator",
                "--bin",
                "vitrine-devcluster",
            ],
            "debug",
        ),
        Build::Optimised => (&["--release", "--package", "vitrine-operator"], "release"),
    };
    let mut command = cargo::command();
    command
        .current_dir(workspace())
        .args(["build", "--locked"])
        .args(what);
    program::run_with(&mut command)?;
    Ok(target().join(folder).join("vitrine-operator"))
}

/// Where Cargo puts programs.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Where images are that no registry knows.
pub const LOCAL: &str = "vitrine.local";

/// Vitrine's image: the operator's program and its libraries, nothing else. No shell, no package manager.
///
/// # Errors
/// If the program does not compile or a library of it is missing.
pub fn operator(build: Build) -> Result<Image> {
    operator_at(LOCAL, build)
}

/// Vitrine's image under the name that it has in a repository.
///
/// # Errors
/// As [`operator`].
pub fn operator_at(repository: &str, build: Build) -> Result<Image> {
    let program = without_debug_information(&operator_program(build)?, "vitrine-operator")?;
    let contents = Contents {
        name: format!("{repository}/operator:dev"),
        files: image::program_with_libraries("/vitrine-operator", &program)?,
        config: ImageConfig {
            user: Some("65532:65532".to_owned()),
            entrypoint: vec!["/vitrine-operator".to_owned()],
            volumes: vec![names::IMAGE_VOLUME.to_owned()],
            ..ImageConfig::default()
        },
    };
    build_image(&contents)
}

/// Compiles programs of this workspace. In a test they are there: `cargo xtask test` has built them with everything else.
///
/// # Errors
/// If they do not compile.
pub fn programs(names: &[&str]) -> Result<()> {
    let mut command = cargo::command();
    // As the operator's: with the whole workspace selected.
    command
        .current_dir(workspace())
        .args(["build", "--locked", "--workspace"])
        .args(names.iter().flat_map(|name| ["--bin", name]));
    program::run_with(&mut command).map(drop)
}

/// Where a program of this workspace is, once it is compiled.
pub fn program_of(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// A program of this workspace as it goes into an image.
pub(crate) fn stripped(name: &str) -> Result<PathBuf> {
    without_debug_information(&program_of(name), name)
}

/// A copy of a program without what only a debugger reads: of an unoptimised one that is most of it.
fn without_debug_information(program: &Path, name: &str) -> Result<PathBuf> {
    let folder = target().join("vitrine");
    make(&folder)?;
    let copy = folder.join(format!("{name}-{}", std::process::id()));
    let text = |path: &Path| path.display().to_string();
    // Of binutils, as the linker is.
    let arguments = ["--strip-debug", "-o", &text(&copy), &text(program)].map(str::to_owned);
    program::run(Path::new("strip"), &arguments)?;
    let stripped = folder.join(name);
    // In one step: another process may be reading the one that is there.
    std::fs::rename(&copy, &stripped).map_err(|source| Error::File { path: copy, source })?;
    Ok(stripped)
}

/// The demo's product: PocketBase, one static program with a web admin UI, written by somebody else.
///
/// # Errors
/// If it does not compile.
pub fn pocketbase(progress: &dyn Progress) -> Result<Image> {
    pocketbase_at(LOCAL, progress)
}

/// The demo's product under the name that it has in a repository.
///
/// # Errors
/// As [`pocketbase`].
pub fn pocketbase_at(repository: &str, progress: &dyn Progress) -> Result<Image> {
    let program = tools::ensure(&["pocketbase"], progress)?.binary("pocketbase", "pocketbase")?;
    let contents = Contents {
        name: format!("{repository}/pocketbase:0.39.0"),
        files: vec![
            FileEntry::program("/pocketbase", program),
            FileEntry::folder("/data", 0o1777),
        ],
        config: ImageConfig {
            user: Some("65532:65532".to_owned()),
            entrypoint: vec!["/pocketbase".to_owned()],
            ..ImageConfig::default()
        },
    };
    build_image(&contents)
}

/// A product for tests: busybox, whose behaviour a listing's arguments decide. Installs the Debian package that it is from.
///
/// # Errors
/// If this machine has no static busybox and it cannot be installed.
pub fn busybox() -> Result<Image> {
    host::ensure(host::BUSYBOX, &*progress::for_stderr(true))?;
    build_image(&image::busybox("vitrine.local/busybox:dev")?)
}

/// The same with a volume that the image declares, which containerd would make for it.
///
/// # Errors
/// As [`busybox`].
pub fn busybox_with_volume(path: &str) -> Result<Image> {
    host::ensure(host::BUSYBOX, &*progress::for_stderr(true))?;
    let mut contents = image::busybox("vitrine.local/busybox-with-volume:dev")?;
    contents.config.volumes.push(path.to_owned());
    build_image(&contents)
}

/// A product that sends to wherever its arguments say, by every protocol, and serves a page meanwhile.
///
/// # Errors
/// If it does not compile.
pub fn hostile() -> Result<Image> {
    let program = tools::ensure(&["hostile"], &*progress::for_stderr(true))?.binary("hostile", "hostile")?;
    let contents = Contents {
        name: format!("{LOCAL}/hostile:dev"),
        files: vec![FileEntry::program("/hostile", program)],
        config: ImageConfig {
            user: Some("65532:65532".to_owned()),
            entrypoint: vec!["/hostile".to_owned()],
            ..ImageConfig::default()
        },
    };
    build_image(&contents)
}

pub(crate) fn build_image(contents: &Contents) -> Result<Image> {
    let folder = image::cache_folder()?;
    make(&folder)?;
    Ok(Image::build(contents, &folder)?)
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| Error::File {
        path: folder.to_owned(),
        source,
    })
}
