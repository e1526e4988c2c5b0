//! The demo on a cluster that is there already: what a user with kind, k3d or a cloud would type.

#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::process::Command;

use vitrine_devcluster::{Level, progress};
use vitrine_e2e::clusters;
use vitrine_kit::{images, market};

#[test]
fn the_demo_runs_on_an_existing_cluster_from_the_preview_to_the_refund() {
    let cluster = clusters::shared(Level::Full);
    let xtask = images::program_of("xtask");
    let load = format!(
        "{} cluster load --name {} {{name}} {{tar}}",
        xtask.display(),
        cluster.name()
    );
    let output = Command::new(&xtask)
        .args([
            "demo",
            "--once",
            "--quiet",
            "--image-repo",
            "registry.example/shop",
        ])
        .args([
            "--internet",
            "203.0.113.10:80",
            "--image-load",
            &load,
            "--kubeconfig",
        ])
        .arg(cluster.kubeconfig())
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "{}: {error}: build it with `cargo build -p xtask`",
                xtask.display()
            )
        });
    // The tests after this one need the node's room.
    let removed = market::remove(&clusters::target(&cluster), &*progress::for_stderr(true));
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    for wanted in [
        "result: verified",
        "link: 410 Gone",
        "internet          203.0.113.10:80",
        "valid: ",
        "product  acme/pocketbase ^1",
        "revoked: ",
        "\"differing\": 0",
    ] {
        assert!(said.contains(wanted), "{wanted:?} is not in:\n{said}");
    }
    removed.unwrap();
}
