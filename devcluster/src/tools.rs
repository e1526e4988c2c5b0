//! The programs of the cluster: pinned Go modules, built once per content and kept outside the checkout.
//! Runs `go`, writes to the cache folder only.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Level;
use crate::error::{Error, Result, last_lines};
use crate::paths;
use crate::progress::{self, Progress, Step};

/// The pinned modules, in the checkout this library was built from.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/go");

/// How much of the hash is in a cache folder's name: 64 bits, as a name must only not collide by accident.
const HASH_CHARS: usize = 16;

/// Cached groups of other versions are removed when they were not used for this long.
const UNUSED_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// One entry of `groups.json`: what one `go.mod` builds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name and folder.
    pub group: String,
    /// What it builds.
    pub binaries: Vec<GroupBinary>,
    /// Passed to the linker.
    #[serde(default)]
    pub ldflags: String,
    /// Build tags, with commas.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tags: String,
    /// How long a cold build took on two cores; shown, never relied on.
    #[serde(default)]
    pub approximate_seconds: u64,
}

/// One binary of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupBinary {
    /// Its file name.
    pub name: String,
    /// Its Go package.
    pub package: String,
}

/// Built groups, and where their binaries are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    folders: BTreeMap<String, PathBuf>,
}

impl Tools {
    /// The folder with the binaries of a group.
    pub fn folder(&self, group: &str) -> Result<&Path> {
        let folder = self.folders.get(group).map(PathBuf::as_path);
        folder.ok_or_else(|| {
            Error::Other(format!(
                "tool group {group:?} was not built: ask for it in `tools::ensure`"
            ))
        })
    }

    /// One binary of a group.
    pub fn binary(&self, group: &str, name: &str) -> Result<PathBuf> {
        Ok(self.folder(group)?.join(name))
    }

    /// Every group and its folder.
    pub(crate) fn folders(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.folders
            .iter()
            .map(|(group, folder)| (group.as_str(), folder.as_path()))
    }

    /// The same groups at other places.
    pub(crate) fn relocated(&self, place: impl Fn(&str) -> PathBuf) -> Self {
        Self {
            folders: self
                .folders
                .keys()
                .map(|group| (group.clone(), place(group)))
                .collect(),
        }
    }
}

/// The groups that a level runs.
#[must_use]
pub fn groups_of(level: Level) -> &'static [&'static str] {
    match level {
        Level::ControlPlane => &["kubernetes", "etcd"],
        Level::Scale => &["kubernetes", "etcd", "kwok"],
        Level::Full => &["kubernetes", "etcd", "containerd", "cni", "netpol", "pause"],
    }
}

/// All groups there are.
pub fn groups() -> Result<Vec<Group>> {
    let path = Path::new(SOURCE).join("groups.json");
    let text = fs::read(&path).map_err(Error::file("read", &path))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::Other(format!("failed to read `{}`: {error}", path.display())))
}

/// Builds what is not built yet. Two runs at once do not build the same twice.
pub fn ensure(wanted: &[&str], progress: &dyn Progress) -> Result<Tools> {
    let all = groups()?;
    let mut chosen = Vec::new();
    for name in wanted {
        let group = all.iter().find(|group| group.group == *name);
        chosen.push(
            group.ok_or_else(|| Error::Other(format!("no tool group {name:?} in `{SOURCE}/groups.json`")))?,
        );
    }
    let toolchain = toolchain()?;
    let cache = paths::cache_home()?.join("tools");
    fs::create_dir_all(&cache).map_err(Error::file("create", &cache))?;

    let mut tools = Tools::default();
    let mut missing = Vec::new();
    for group in chosen {
        let hash = content_hash(&Path::new(SOURCE).join(&group.group), group, &toolchain)?;
        let home = cache.join(format!("{}-{}", group.group, &hash[..HASH_CHARS]));
        if !home.join("bin").is_dir() {
            missing.push((group, home.clone()));
        }
        tools.folders.insert(group.group.clone(), home.join("bin"));
    }
    let total = missing.iter().map(|(group, _)| group.binaries.len()).sum();
    let mut index = 0;
    for (group, home) in missing {
        build(group, &home, progress, &mut index, total)?;
    }
    for folder in tools.folders.values() {
        mark_used(folder);
    }
    remove_unused(&cache, &tools);
    Ok(tools)
}

/// Go's version and target, which decide the binaries as much as the sources do.
fn toolchain() -> Result<String> {
    let mut command = Command::new("go");
    command
        .args(["env", "GOVERSION", "GOOS", "GOARCH"])
        .current_dir(SOURCE);
    let output = command.output().map_err(|error| Error::Missing {
        missing: vec![format!(
            "the Go toolchain ({error}): get it from https://go.dev/dl/, 1.26 or later"
        )],
    })?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Command {
            command: "go env".to_owned(),
            detail,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The hash of all that decides a group's binaries: module files, our own Go code, the group's entry, the toolchain.
fn content_hash(folder: &Path, group: &Group, toolchain: &str) -> Result<String> {
    let mut files = Vec::new();
    sources_below(folder, &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    // Lengths first, so that no two different lists of parts make the same bytes.
    let mut part = |bytes: &[u8]| {
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(bytes);
    };
    part(toolchain.as_bytes());
    // The measured time is for people and must not cause a build.
    let entry = Group {
        approximate_seconds: 0,
        ..group.clone()
    };
    let entry = serde_json::to_vec(&entry)
        .map_err(|error| Error::Other(format!("group {}: {error}", group.group)))?;
    part(&entry);
    for file in files {
        let name = file.strip_prefix(folder).unwrap_or(&file);
        part(name.to_string_lossy().as_bytes());
        part(&fs::read(&file).map_err(Error::file("read", &file))?);
    }
    Ok(hex::encode(hash.finalize()))
}

fn sources_below(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            sources_below(&path, into)?;
        } else if name == "go.mod" || name == "go.sum" || name.ends_with(".go") {
            into.push(path);
        }
    }
    Ok(())
}

/// Builds a group into a temporary folder and renames it, so that a cache folder is complete or absent.
fn build(group: &Group, home: &Path, progress: &dyn Progress, index: &mut usize, total: usize) -> Result<()> {
    let lock_path = home.with_extension("lock");
    let lock = File::create(&lock_path).map_err(Error::file("create", &lock_path))?;
    if lock.try_lock().is_err() {
        progress.note(&format!(
            "another run is building tool group {}: waiting for it",
            group.group
        ));
        lock.lock().map_err(Error::file("lock", &lock_path))?;
    }
    if home.join("bin").is_dir() {
        *index += group.binaries.len();
        return Ok(());
    }
    let temporary = home.with_extension("building");
    remove_tree(&temporary)?;
    let bin = temporary.join("bin");
    fs::create_dir_all(&bin).map_err(Error::file("create", &bin))?;
    let begun = Instant::now();
    for binary in &group.binaries {
        *index += 1;
        let first = binary == &group.binaries[0] && group.approximate_seconds >= 10;
        let hint = if first {
            format!(", the group about {} s when cold", group.approximate_seconds)
        } else {
            String::new()
        };
        let step = Step::new(
            format!("build {} ({}{hint})", binary.name, group.group),
            *index,
            total,
        );
        progress::run(progress, &step, || go_build(group, binary, &bin))?;
    }
    let built = format!("{}: built in {} s\n", group.group, begun.elapsed().as_secs());
    let note = temporary.join("built.txt");
    fs::write(&note, built).map_err(Error::file("write", &note))?;
    fs::rename(&temporary, home).map_err(Error::file("rename", &temporary))?;
    // The lock file goes while the lock is held; whoever waits for it finds the folder complete.
    let _ = fs::remove_file(&lock_path);
    Ok(())
}

fn go_build(group: &Group, binary: &GroupBinary, bin: &Path) -> Result<()> {
    let mut command = Command::new("go");
    command.args([
        "build",
        "-trimpath",
        "-mod=readonly",
        "-buildvcs=false",
        "-ldflags",
        &group.ldflags,
        "-o",
    ]);
    command.arg(bin.join(&binary.name));
    command.args(["-tags", &group.tags]).arg(&binary.package);
    command.current_dir(Path::new(SOURCE).join(&group.group));
    command
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .stdin(Stdio::null());
    let output = command
        .output()
        .map_err(|error| tool_error(group, binary, error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = last_lines(&String::from_utf8_lossy(&output.stderr), 20);
    Err(tool_error(
        group,
        binary,
        format!("`go build` ended with {}:\n{said}", output.status),
    ))
}

fn tool_error(group: &Group, binary: &GroupBinary, detail: String) -> Error {
    Error::Tool {
        group: group.group.clone(),
        binary: binary.name.clone(),
        detail,
    }
}

/// Leaves a sign of use for [`remove_unused`]; failing to leave it only costs a rebuild one day.
fn mark_used(bin: &Path) {
    if let Some(home) = bin.parent() {
        let _ = File::create(home.join("used"));
    }
}

/// Removes groups of other versions that nothing used for a long time: each is up to half a gigabyte.
fn remove_unused(cache: &Path, in_use: &Tools) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let home = entry.path();
        if in_use.folders.values().any(|bin| bin.starts_with(&home)) || !home.join("bin").is_dir() {
            continue;
        }
        let used = fs::metadata(home.join("used")).and_then(|meta| meta.modified());
        if used.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > UNUSED_AFTER)) {
            let _ = fs::remove_dir_all(&home);
        }
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        Group {
            group: "g".to_owned(),
            binaries: vec![GroupBinary {
                name: "a".to_owned(),
                package: "x/a".to_owned(),
            }],
            ldflags: "-s".to_owned(),
            tags: String::new(),
            approximate_seconds: 3,
        }
    }

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vitrine-tools-test-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("sub")).unwrap();
        fs::write(path.join("go.mod"), "module x").unwrap();
        fs::write(path.join("sub/main.go"), "package main").unwrap();
        path
    }

    #[test]
    fn the_hash_follows_sources_entry_and_toolchain_and_nothing_else() {
        let dir = folder("hash");
        let base = content_hash(&dir, &group(), "go1").unwrap();
        fs::write(dir.join("README.md"), "no source").unwrap();
        assert_eq!(
            base,
            content_hash(&dir, &group(), "go1").unwrap(),
            "a file that is not built"
        );
        assert_eq!(
            base,
            content_hash(
                &dir,
                &Group {
                    approximate_seconds: 9,
                    ..group()
                },
                "go1"
            )
            .unwrap(),
            "a time"
        );
        assert_ne!(base, content_hash(&dir, &group(), "go2").unwrap(), "toolchain");
        assert_ne!(
            base,
            content_hash(
                &dir,
                &Group {
                    ldflags: String::new(),
                    ..group()
                },
                "go1"
            )
            .unwrap(),
            "flags"
        );
        fs::write(dir.join("sub/main.go"), "package main // x").unwrap();
        assert_ne!(base, content_hash(&dir, &group(), "go1").unwrap(), "source");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn every_level_names_groups_that_exist() {
        let known = groups().unwrap();
        for level in [Level::ControlPlane, Level::Scale, Level::Full] {
            for name in groups_of(level) {
                assert!(
                    known.iter().any(|group| group.group == *name),
                    "{name} of {level}"
                );
            }
        }
    }
}
