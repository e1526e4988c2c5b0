//! Container images without a registry: an OCI image layout in a tar, the same bytes for the same input. Reads the
//! files that go in, writes the tar.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// How long a tar is kept that nobody has built again.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where a file of an image comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file of this machine.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// An empty folder.
    Folder,
    /// A symbolic link to that target.
    Link(String),
}

/// One file of an image.
#[derive(Debug, Clone)]
pub struct FileEntry {
    /// Its absolute path in the image.
    pub path: String,
    /// Where it comes from.
    pub source: Source,
    /// Its permission bits.
    pub mode: u32,
}

impl FileEntry {
    /// An executable.
    #[must_use]
    pub fn program(path: &str, file: impl Into<PathBuf>) -> Self {
        Self {
            path: path.to_owned(),
            source: Source::File(file.into()),
            mode: 0o755,
        }
    }

    /// A text that everybody may read.
    #[must_use]
    pub fn text(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            source: Source::Bytes(text.as_bytes().to_vec()),
            mode: 0o644,
        }
    }

    /// An empty folder.
    #[must_use]
    pub fn folder(path: &str, mode: u32) -> Self {
        Self {
            path: path.to_owned(),
            source: Source::Folder,
            mode,
        }
    }

    /// A symbolic link.
    #[must_use]
    pub fn link(path: &str, target: &str) -> Self {
        Self {
            path: path.to_owned(),
            source: Source::Link(target.to_owned()),
            mode: 0o777,
        }
    }
}

/// How an image is run.
#[derive(Debug, Clone, Default)]
pub struct ImageConfig {
    /// Numeric user, or `user:group`.
    pub user: Option<String>,
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `8090/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths that the image declares as volumes.
    pub volumes: Vec<String>,
    /// The folder it starts in.
    pub working_dir: Option<String>,
}

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Contents {
    /// `registry/name:tag`.
    pub name: String,
    /// Its files.
    pub files: Vec<FileEntry>,
    /// How it is run.
    pub config: ImageConfig,
}

/// A built image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `registry/name:tag`.
    pub name: String,
    /// `sha256:…` of its manifest.
    pub digest: String,
    /// The OCI layout.
    pub tar: PathBuf,
}

/// The name without its tag.
pub(crate) fn repository(name: &str) -> &str {
    match name.rsplit_once(':') {
        // A colon before the last slash is a registry's port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

impl Image {
    /// Builds an image and leaves its tar in a folder. The same contents always make the same digest.
    pub fn build(contents: &Contents, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let layer = Blob::of("application/vnd.oci.image.layer.v1.tar", layer(contents)?);
        let config = Blob::of(
            "application/vnd.oci.image.config.v1+json",
            serialized(&config(&contents.config, &layer.digest))?,
        );
        let manifest = Blob::of(
            "application/vnd.oci.image.manifest.v1+json",
            serialized(&json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
            }))?,
        );
        let mut entry = manifest.descriptor();
        entry["annotations"] = json!({
            "io.containerd.image.name": contents.name,
            "org.opencontainers.image.ref.name": contents.name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
        });
        let index = serialized(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        }))?;
        // By the index, which holds the name as well: one image under two names is two layouts.
        let tar_path = folder.join(format!("{}.tar", digest(&index).trim_start_matches("sha256:")));
        let fail = Error::file("write", &tar_path);
        let write = || -> std::io::Result<()> {
            // Two processes, or two threads, may build the same image at once.
            static BUILDS: AtomicU64 = AtomicU64::new(0);
            let build = BUILDS.fetch_add(1, Ordering::Relaxed);
            let temporary = tar_path.with_extension(format!("{}-{build}.part", std::process::id()));
            let mut tar = tar::Builder::new(File::create(&temporary)?);
            append(
                &mut tar,
                "oci-layout",
                br#"{"imageLayoutVersion":"1.0.0"}"#,
                0o644,
            )?;
            append(&mut tar, "index.json", &index, 0o644)?;
            for blob in [&config, &manifest, &layer] {
                let name = format!("blobs/sha256/{}", blob.digest.trim_start_matches("sha256:"));
                append(&mut tar, &name, &blob.bytes, 0o644)?;
            }
            tar.into_inner()?.flush()?;
            fs::rename(&temporary, &tar_path)
        };
        // The name is what is in it: one that is there is whole, and the same.
        match File::options().append(true).open(&tar_path) {
            Ok(there) => there.set_modified(SystemTime::now()).map_err(fail)?,
            Err(_) => {
                write().map_err(fail)?;
                forget_old(folder);
            }
        }
        Ok(Self {
            name: contents.name.clone(),
            digest: manifest.digest,
            tar: tar_path,
        })
    }

    /// `name@sha256:…`, as a pod names it.
    #[must_use]
    pub fn by_digest(&self) -> String {
        format!("{}@{}", repository(&self.name), self.digest)
    }
}

/// Removes tars that nobody has built again for a week: whoever works on a program makes one a build.
fn forget_old(folder: &Path) {
    let is_old = |path: &Path| -> std::io::Result<bool> {
        let age = fs::metadata(path)?.modified()?.elapsed();
        Ok(path.extension().is_some_and(|end| end == "tar") && age.is_ok_and(|age| age > KEPT))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // Another process may be doing the same.
        if is_old(&entry.path()).unwrap_or(false) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn config(config: &ImageConfig, layer: &str) -> Value {
    let set = |items: &[String]| {
        items
            .iter()
            .map(|item| (item.clone(), json!({})))
            .collect::<serde_json::Map<_, _>>()
    };
    let mut run = serde_json::Map::new();
    let mut put = |key: &str, value: Value, wanted: bool| {
        if wanted {
            run.insert(key.to_owned(), value);
        }
    };
    put("User", json!(config.user), config.user.is_some());
    put(
        "Entrypoint",
        json!(config.entrypoint),
        !config.entrypoint.is_empty(),
    );
    put("Cmd", json!(config.cmd), !config.cmd.is_empty());
    put("Env", json!(config.env), !config.env.is_empty());
    put(
        "ExposedPorts",
        json!(set(&config.exposed_ports)),
        !config.exposed_ports.is_empty(),
    );
    put("Volumes", json!(set(&config.volumes)), !config.volumes.is_empty());
    put(
        "WorkingDir",
        json!(config.working_dir),
        config.working_dir.is_some(),
    );
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [layer] },
        "history": [{ "created_by": "vitrine-devcluster" }],
    })
}

fn serialized(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Other(format!("failed to serialise an image: {error}")))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A part of an image, with its digest: of a layer that takes a good part of a second.
struct Blob {
    media_type: &'static str,
    bytes: Vec<u8>,
    digest: String,
}

impl Blob {
    fn of(media_type: &'static str, bytes: Vec<u8>) -> Self {
        let digest = digest(&bytes);
        Self {
            media_type,
            bytes,
            digest,
        }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// One layer with all files: sorted, without times, owned by root.
fn layer(contents: &Contents) -> Result<Vec<u8>> {
    let fail = |detail: String| Error::Image {
        image: contents.name.clone(),
        detail,
    };
    let mut entries: BTreeMap<String, (&Source, u32)> = BTreeMap::new();
    for file in &contents.files {
        let path = file.path.trim_start_matches('/').trim_end_matches('/').to_owned();
        if path.is_empty()
            || path
                .split('/')
                .any(|part| part.is_empty() || part == "." || part == "..")
        {
            return Err(fail(format!("{:?} is not a path in an image", file.path)));
        }
        // Folders on the way, unless they are named themselves.
        for (end, _) in path.match_indices('/') {
            entries
                .entry(path[..end].to_owned())
                .or_insert((&Source::Folder, 0o755));
        }
        entries.insert(path, (&file.source, file.mode));
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, (source, mode)) in entries {
        let result = match source {
            Source::File(file) => {
                let bytes = fs::read(file).map_err(Error::file("read", file))?;
                append(&mut tar, &path, &bytes, mode)
            }
            Source::Bytes(bytes) => append(&mut tar, &path, bytes, mode),
            Source::Folder => {
                let mut header = header(mode, 0);
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())
            }
            Source::Link(target) => {
                let mut header = header(mode, 0);
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, &path, target)
            }
        };
        result.map_err(|error| fail(format!("{path:?}: {error}")))?;
    }
    tar.into_inner().map_err(|error| fail(error.to_string()))
}

fn header(mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(u64::try_from(size).unwrap_or(u64::MAX));
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    tar.append_data(&mut header(mode, bytes.len()), path, bytes)
}

/// The folder for images that are built again and again: their tars are named by content.
pub fn cache_folder() -> Result<PathBuf> {
    Ok(crate::paths::cache_home()?.join("images"))
}

/// A small test image: a static busybox with a link for each of its commands in /bin, and a writable /tmp. Needs
/// [`crate::host::BUSYBOX`].
pub fn busybox(name: &str) -> Result<Contents> {
    let fail = |detail: String| Error::Image {
        image: name.to_owned(),
        detail,
    };
    let program =
        crate::host::find_program("busybox").ok_or_else(|| fail("there is no busybox".to_owned()))?;
    let listed = Command::new(&program)
        .arg("--list")
        .output()
        .map_err(|error| fail(error.to_string()))?;
    let mut files = vec![
        FileEntry::program("/bin/busybox", program),
        FileEntry::folder("/tmp", 0o1777),
    ];
    let commands = String::from_utf8_lossy(&listed.stdout).into_owned();
    let commands = commands.lines().filter(|command| *command != "busybox");
    files.extend(commands.map(|command| FileEntry::link(&format!("/bin/{command}"), "busybox")));
    let config = ImageConfig {
        user: Some("65532:65532".to_owned()),
        env: vec!["PATH=/bin".to_owned()],
        ..ImageConfig::default()
    };
    Ok(Contents {
        name: name.to_owned(),
        files,
        config,
    })
}

/// A program with all it needs to start: its libraries and its loader, at the paths where the loader looks for them.
/// A static program comes alone.
pub fn program_with_libraries(path: &str, file: &Path) -> Result<Vec<FileEntry>> {
    let mut entries = vec![FileEntry::program(path, file)];
    if is_static(file)? {
        return Ok(entries);
    }
    let fail = |detail: String| Error::Command {
        command: format!("ldd {}", file.display()),
        detail,
    };
    let output = Command::new("ldd")
        .arg(file)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| fail(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(fail(format!("{}{}", text.trim(), said.trim())));
    }
    let libraries =
        parse_ldd(&text).map_err(|missing| fail(format!("the library {missing} is not found")))?;
    entries.extend(
        libraries
            .into_iter()
            .map(|library| FileEntry::program(&library, &library)),
    );
    Ok(entries)
}

/// The files that `ldd` names; the error is the library that it did not find.
fn parse_ldd(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut files = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // "linux-vdso.so.1 (0x…)" has no file, "/lib64/ld-linux-x86-64.so.2 (0x…)" is the loader, and the rest is
        // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)".
        let (name, found) = line.split_once(" => ").unwrap_or((line, line));
        if found == "not found" {
            return Err(name.to_owned());
        }
        let file = found.split(" (0x").next().unwrap_or(found);
        if file.starts_with('/') {
            files.push(file.to_owned());
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// Whether an ELF file asks for no loader (no program header PT_INTERP).
fn is_static(file: &Path) -> Result<bool> {
    const PT_INTERP: usize = 3;
    let mut bytes = Vec::new();
    let mut reader = BufReader::new(File::open(file).map_err(Error::file("open", file))?).take(64 * 1024);
    reader
        .read_to_end(&mut bytes)
        .map_err(Error::file("read", file))?;
    let number = |at: usize, length: usize| -> Option<usize> {
        let field = bytes.get(at..at + length)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, byte| (value << 8) | usize::from(*byte)),
        )
    };
    // ELF64, little-endian: e_phoff at 32, e_phentsize at 54, e_phnum at 56; p_type is the first word of a header.
    let headers = (|| {
        if !bytes.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|index| number(offset + index * size, 4))
            .collect::<Option<Vec<_>>>()
    })();
    let headers =
        headers.ok_or_else(|| Error::Other(format!("`{}` is not a 64-bit ELF program", file.display())))?;
    Ok(!headers.contains(&PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        Contents {
            name: "vitrine.local/test:1".to_owned(),
            files: vec![
                FileEntry::text("/etc/b", "b"),
                FileEntry::text("/etc/a", "a"),
                FileEntry::link("/bin/sh", "busybox"),
                FileEntry::folder("/tmp", 0o1777),
            ],
            config: ImageConfig {
                user: Some("65532".to_owned()),
                ..ImageConfig::default()
            },
        }
    }

    #[test]
    fn the_same_contents_make_the_same_bytes() {
        let folder = std::env::temp_dir().join(format!("vitrine-image-test-{}", std::process::id()));
        let first = Image::build(&contents(), &folder.join("1")).unwrap();
        let mut reordered = contents();
        reordered.files.reverse();
        let second = Image::build(&reordered, &folder.join("2")).unwrap();
        assert_eq!(first.digest, second.digest);
        assert_eq!(fs::read(&first.tar).unwrap(), fs::read(&second.tar).unwrap());
        assert_eq!(first.by_digest(), format!("vitrine.local/test@{}", first.digest));
        let mut other = contents();
        other.config.user = None;
        assert_ne!(
            first.digest,
            Image::build(&other, &folder.join("3")).unwrap().digest
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_path_that_leaves_the_image_is_refused() {
        for path in ["../x", "/", "/a/../b", "/a//b"] {
            let files = vec![FileEntry::text(path, "x")];
            assert!(layer(&Contents { files, ..contents() }).is_err(), "{path}");
        }
    }

    #[test]
    fn a_tag_is_no_port() {
        assert_eq!(repository("localhost:5000/a"), "localhost:5000/a");
        assert_eq!(repository("localhost:5000/a:1"), "localhost:5000/a");
        assert_eq!(repository("vitrine.local/a:1"), "vitrine.local/a");
    }

    #[test]
    fn ldd_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let files = parse_ldd(text).unwrap();
        assert_eq!(
            files,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(parse_ldd("\tlibx.so => not found\n"), Err("libx.so".to_owned()));
    }

    #[test]
    fn this_very_test_program_comes_with_its_libraries() {
        let own = std::env::current_exe().unwrap();
        let entries = program_with_libraries("/test", &own).unwrap();
        assert!(
            entries.iter().any(|entry| entry.path.contains("libc.so")),
            "{entries:?}"
        );
    }
}
