//! Names, labels, annotations and ports: the one place for every string that two programs must agree on. Pure.

use sha2::{Digest, Sha256};

/// Marks everything that belongs to a cell. Set only at creation.
pub const CELL_LABEL: &str = "vitrine.dev/cell";
/// Selects what carries that mark.
pub const CELL_SELECTOR: &str = "vitrine.dev/cell=true";
/// On a cell's namespace: the preview that has it, `namespace/name`. On a slot: the preview that holds it.
pub const PREVIEW_ANNOTATION: &str = "vitrine.dev/preview";
/// On a slot: the cell that holds it.
pub const CELL_ANNOTATION: &str = "vitrine.dev/cell";
/// On a cell's namespace: the uid of the preview that has it.
pub const PREVIEW_UID_ANNOTATION: &str = "vitrine.dev/preview-uid";
/// On a preview's pod: the nonce that the probe's verdict must carry.
pub const NONCE_ANNOTATION: &str = "vitrine.dev/nonce";
/// On a cell's namespace and on its pod: for the how-manieth pod the cell is, as a random text. An admission policy refuses a pod
/// that was meant for an earlier one, or for an earlier namespace of the same name.
pub const EPOCH_ANNOTATION: &str = "vitrine.dev/epoch";
/// On a cell's namespace and its pod, as a label: the uid of the pool that it is of.
pub const POOL_LABEL: &str = "vitrine.dev/pool";
/// On a cell's namespace: the pool that it is of, `namespace/name`.
pub const POOL_ANNOTATION: &str = "vitrine.dev/pool";
/// On a pod: what it was made from ([`crate::cell::pod::template`]).
pub const TEMPLATE_ANNOTATION: &str = "vitrine.dev/template";
/// On a preview: keeps it until its end is proven.
pub const PREVIEW_FINALIZER: &str = "vitrine.dev/cell";
/// On a preview's pod: keeps the object until its terminated containers were seen (docs/adr/0002).
pub const POD_FINALIZER: &str = "vitrine.dev/end-proof";
/// What the names of all cells begin with.
pub const CELL_PREFIX: &str = "vitrine-cell-";

/// A cell that no preview ever has: on it the operator proves that the admission policies are in force. Made by the chart.
pub const SENTINEL: &str = "vitrine-cell-sentinel";

/// The PriorityClass of every preview's pod, below whatever else a cluster runs. Made by the chart.
pub const PRIORITY_CLASS: &str = "vitrine-preview";

/// Name of the ResourceQuota, LimitRange and NetworkPolicy in a cell.
pub const SEAL: &str = "vitrine";
/// Name of the other ResourceQuota in a cell, which closes it to whatever is no part of one.
pub const CLOSED: &str = "vitrine-closed";
/// Name of the ServiceAccount (without a token) in a cell.
pub const SERVICE_ACCOUNT: &str = "preview";
/// Name of the pod in a cell.
pub const POD: &str = "preview";
/// The init container whose verdict lets the product start.
pub const PROVE: &str = "prove";
/// The sidecar that repeats the proof for life.
pub const WATCH: &str = "watch";
/// The seller's container.
pub const PRODUCT: &str = "product";

/// The sidecar's port: liveness of the seller's container.
pub const WATCH_PORT: u16 = 20_100;
/// Where the sidecar says that the cell is sealed, and which it is: the body is the pod's nonce.
pub const SEALED_PATH: &str = "/sealed";
/// The egress proxy's port.
pub const EGRESS_PORT: u16 = 3128;
/// First port on which the responder answers.
pub const CANARY_FIRST: u16 = 20_000;
/// How many ports the responder answers on. One of them is open to a preview, the next one is forbidden.
pub const CANARY_COUNT: u16 = 64;
/// First of the source ports that the sidecar takes before the product runs.
pub const SOURCE_FIRST: u16 = 20_101;

/// Vitrine's own image declares this folder a VOLUME and has nothing there: the probe finds it mounted only on a node whose runtime
/// gives images volumes of their own.
pub const IMAGE_VOLUME: &str = "/run/vitrine-image-volume";

/// The namespace of a preview.
pub fn cell(preview_uid: &str) -> String {
    format!("{CELL_PREFIX}{}", &digest(&["cell", preview_uid])[..16])
}

/// The namespace of a pool's cell.
pub fn pool_cell(pool_uid: &str, index: u32) -> String {
    format!(
        "{CELL_PREFIX}{}",
        &digest(&["pool", pool_uid, &index.to_string()])[..16]
    )
}

/// The host label of a preview's link: from its uid, so that nobody can choose it.
pub fn host_label(preview_uid: &str) -> String {
    format!("p-{}", &digest(&["host", preview_uid])[..20])
}

/// The nonce of the pod that is made in a cell in one epoch.
pub fn nonce(cell: &str, epoch: &str) -> String {
    digest(&["nonce", cell, epoch])[..32].to_owned()
}

/// The one port of the responder that this cell's policy opens.
pub fn canary_port(cell: &str) -> u16 {
    let bytes = Sha256::digest(["canary\0", cell].concat());
    CANARY_FIRST + u16::from(bytes[0]) % CANARY_COUNT
}

/// The port of the responder that answers everybody else and must be shut for this cell.
pub fn forbidden_port(cell: &str) -> u16 {
    CANARY_FIRST + (canary_port(cell) - CANARY_FIRST + 1) % CANARY_COUNT
}

/// SHA-256 over the parts, each ended by a NUL byte so that no two lists of parts are the same text.
pub fn digest(parts: &[&str]) -> String {
    hex::encode(hash(parts))
}

/// The same as bytes.
pub fn hash(parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_fixed_by_the_uid_alone_and_fit_kubernetes() {
        let uid = "0c7c2c04-2f0e-4c38-9f0b-6f4b1c5f2a11";
        assert_eq!(cell(uid), cell(uid));
        assert_ne!(cell(uid), cell("0c7c2c04-2f0e-4c38-9f0b-6f4b1c5f2a12"));
        assert!(cell(uid).len() <= 63 && host_label(uid).len() <= 63);
    }

    #[test]
    fn canary_and_forbidden_port_differ_and_are_ports_of_the_responder() {
        for n in 0..500 {
            let cell = cell(&n.to_string());
            let (open, shut) = (canary_port(&cell), forbidden_port(&cell));
            assert_ne!(open, shut);
            for port in [open, shut] {
                assert!((CANARY_FIRST..CANARY_FIRST + CANARY_COUNT).contains(&port));
            }
        }
    }

    #[test]
    fn parts_of_a_digest_cannot_run_into_each_other() {
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    }
}
