//! The rules of docs/architecture.md as tests over `cargo metadata`; reads only, compiled for tests only.

use crate::workspace::{Member, Workspace};

/// Folders that the house has, each named in docs/architecture.md.
const FOLDERS: [&str; 21] = [
    "api",
    "charts",
    "cli",
    "commerce",
    "crds",
    "devcluster",
    "docs",
    "docs/adr",
    "finance",
    "keys",
    "operator",
    "policies",
    "program",
    "receipts",
    "service",
    "signer",
    "tests/e2e",
    "tests/parts",
    "tests/shop",
    "tests/stripe",
    "xtask",
];

/// What a crate may use of this workspace in what it ships; a crate that is not listed may use everything but
/// [`NOBODY_USES`].
const ALLOWED: [(&str, &[&str]); 15] = [
    ("vitrine-commerce", &[]),
    ("vitrine-crds", &[]),
    ("vitrine-policies", &["vitrine-crds"]),
    ("vitrine-keys", &[]),
    ("vitrine-receipts", &["vitrine-crds", "vitrine-keys"]),
    (
        "vitrine-service",
        &["vitrine-commerce", "vitrine-keys", "vitrine-program"],
    ),
    // Each is a process of its own: what they know of each other is HTTP and what is signed.
    (
        "vitrine-api",
        &["vitrine-commerce", "vitrine-crds", "vitrine-service"],
    ),
    ("vitrine-finance", &["vitrine-commerce", "vitrine-service"]),
    ("vitrine-signer", &["vitrine-commerce", "vitrine-service"]),
    ("vitrine-parts", &[]),
    ("vitrine-program", &[]),
    (
        "vitrine-operator",
        &[
            "vitrine-commerce",
            "vitrine-crds",
            "vitrine-policies",
            "vitrine-program",
            "vitrine-receipts",
        ],
    ),
    (
        "vitrine-cli",
        &["vitrine-commerce", "vitrine-crds", "vitrine-receipts"],
    ),
    // The launcher brings up any Kubernetes cluster: it knows nothing of what runs in it.
    ("vitrine-devcluster", &[]),
    // Nor the simulator of Stripe whose shop it is: it is judged by Stripe's documentation alone.
    ("vitrine-stripe", &[]),
];

/// Programs: only tests may use their code.
const NOBODY_USES: [&str; 1] = ["vitrine-operator"];

fn workspace() -> Workspace {
    Workspace::load().unwrap()
}

/// The crates of this workspace that a member uses, without its own dev-dependencies.
fn used(member: &Member) -> Vec<&str> {
    let dependencies = member.dependencies.iter();
    dependencies
        .filter(|dependency| dependency.path.is_some() && dependency.kind.as_deref() != Some("dev"))
        .map(|dependency| dependency.name.as_str())
        .collect()
}

#[test]
fn arrows_of_dependency_point_one_way() {
    let workspace = workspace();
    for (name, allowed) in ALLOWED {
        let member = workspace
            .member(name)
            .unwrap_or_else(|| panic!("{name} is not a member of the workspace"));
        for used in used(member) {
            assert!(
                allowed.contains(&used),
                "{name} must not use {used}; it may use {allowed:?}"
            );
        }
    }
}

#[test]
fn only_tests_use_the_operators_code() {
    let workspace = workspace();
    let tests = workspace.root.join("tests");
    for member in workspace
        .members
        .iter()
        .filter(|member| !member.manifest_path.starts_with(&tests))
    {
        for used in used(member) {
            assert!(
                !NOBODY_USES.contains(&used),
                "{} must not use {used}",
                member.name
            );
        }
    }
}

#[test]
fn every_folder_of_the_house_is_there() {
    let root = workspace().root;
    for folder in FOLDERS {
        let entries = std::fs::read_dir(root.join(folder)).map(Iterator::count);
        assert!(
            entries.is_ok_and(|count| count > 0),
            "{folder}/ is missing or empty"
        );
    }
}

#[test]
fn every_folder_of_the_house_is_in_the_documentation() {
    let root = workspace().root;
    let text = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    for folder in FOLDERS {
        assert!(
            text.contains(&format!("`{folder}/`")),
            "docs/architecture.md does not name `{folder}/`"
        );
    }
}

#[test]
fn every_crate_takes_lints_and_versions_from_the_workspace() {
    for member in workspace().members {
        let text = std::fs::read_to_string(&member.manifest_path).unwrap();
        for line in [
            "[lints]\nworkspace = true",
            "version.workspace = true",
            "rust-version.workspace = true",
        ] {
            assert!(
                text.contains(line),
                "{} lacks {line:?}",
                member.manifest_path.display()
            );
        }
    }
}

/// Requirement CIC-14. `serde_yaml` itself is archived: the maintained drop-in stands under its name in the workspace.
#[test]
fn the_packages_that_are_asked_for_are_used() {
    let root = workspace().root;
    let manifests = workspace().members.into_iter();
    let manifests: Vec<_> = manifests
        .map(|member| std::fs::read_to_string(&member.manifest_path).unwrap())
        .collect();
    let depends = |package: &str| {
        let named = |line: &str| {
            let rest = line.strip_prefix(package);
            rest.is_some_and(|rest| rest.starts_with([' ', '.']))
        };
        manifests.iter().any(|manifest| manifest.lines().any(named))
    };
    for package in [
        "kube",
        "k8s-openapi",
        "tokio",
        "schemars",
        "axum",
        "serde_yaml",
        "prometheus",
    ] {
        assert!(depends(package), "no crate depends on {package}");
    }
    // kube-runtime comes by this feature of kube.
    assert!(manifests.iter().any(|manifest| {
        let mut lines = manifest.lines();
        lines.any(|line| line.starts_with("kube = ") && line.contains("\"runtime\""))
    }));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("serde_yaml = { package = \"yaml_serde\""));
}
