//! Where things are and which crates there are, as `cargo metadata` tells it; reads only.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use vitrine_devcluster::cargo;

use crate::error::Error;

/// The workspace.
#[derive(Deserialize)]
pub struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
    /// Where cargo builds.
    #[serde(rename = "target_directory")]
    pub target: PathBuf,
    /// The members, by name.
    #[serde(rename = "packages")]
    pub members: Vec<Member>,
}

/// One crate of the workspace.
#[derive(Deserialize)]
pub struct Member {
    /// The package's name.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// How cargo's messages call it.
    pub id: String,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// What can be built in it.
    pub targets: Vec<Target>,
    /// What it needs.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the architecture tests"))]
    pub dependencies: Vec<Dependency>,
    /// What its `[package.metadata]` says.
    pub metadata: serde_json::Value,
}

/// Something that can be built.
#[derive(Clone, Deserialize)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `lib`, `bin`, `test`, …
    pub kind: Vec<String>,
    /// Whether `cargo test` runs it.
    pub test: bool,
}

/// A line of `[dependencies]`, `[dev-dependencies]` or `[build-dependencies]`.
#[derive(Deserialize)]
#[cfg_attr(not(test), expect(dead_code, reason = "read by the architecture tests"))]
pub struct Dependency {
    /// The package that is needed.
    pub name: String,
    /// `dev`, `build`, or nothing for a normal one.
    pub kind: Option<String>,
    /// Set for a crate of this workspace.
    pub path: Option<PathBuf>,
}

impl Workspace {
    /// Asks cargo.
    pub fn load() -> Result<Self, Error> {
        let mut command = cargo::command();
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        // Set by `cargo run` (and by `cargo test`): the checkout that this xtask belongs to, wherever it is called.
        if let Some(directory) = std::env::var_os("CARGO_MANIFEST_DIR") {
            command.current_dir(directory);
        }
        let output = command.output().map_err(|source| Error::Start {
            program: "cargo".to_owned(),
            source,
        })?;
        if !output.status.success() {
            return Err(Error::shape(
                "cargo metadata",
                String::from_utf8_lossy(&output.stderr).trim(),
            ));
        }
        let mut workspace: Self =
            serde_json::from_slice(&output.stdout).map_err(|error| Error::shape("cargo metadata", error))?;
        workspace.members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(workspace)
    }

    /// The folder of our own files under `target`, made if it is missing.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        let path = self.target.join("vitrine");
        std::fs::create_dir_all(path.join("logs")).map_err(Error::file("create", &path))?;
        Ok(path)
    }

    /// The member of that name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }
}

impl Member {
    /// Its folder.
    pub fn directory(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }
}

impl Target {
    /// How a test binary made from it is called in results: `lib`, `bin:NAME`, or an integration test's own name.
    pub fn label(&self) -> String {
        match self.kind.first().map(String::as_str) {
            Some("test") => self.name.clone(),
            Some(kind @ ("bin" | "example" | "bench")) => format!("{kind}:{}", self.name),
            _ => "lib".to_owned(),
        }
    }
}
