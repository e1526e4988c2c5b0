//! How much room the nodes have for previews, and how much a preview needs. Pure.
//!
//! A forecast over all nodes together, so that a queue forms in Vitrine, where it has an order and a reason. Which node takes
//! a pod, and whether one does, is the scheduler's business.

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::api::resource::Quantity, jiff::Timestamp};
use std::collections::BTreeMap;
use vitrine_crds::{Amount, PreviewPolicy, sku_listing::Size};

use crate::cell::pod;

/// Amounts of what previews compete for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Cores.
    pub cpu: Amount,
    /// Bytes of memory.
    pub memory: Amount,
    /// Bytes of scratch space.
    pub ephemeral_storage: Amount,
}

impl Resources {
    /// Nothing.
    pub const NONE: Self = Self {
        cpu: Amount::whole(0),
        memory: Amount::whole(0),
        ephemeral_storage: Amount::whole(0),
    };

    /// The sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.plus(other.cpu),
            memory: self.memory.plus(other.memory),
            ephemeral_storage: self.ephemeral_storage.plus(other.ephemeral_storage),
        }
    }

    /// The difference.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.minus(other.cpu),
            memory: self.memory.minus(other.memory),
            ephemeral_storage: self.ephemeral_storage.minus(other.ephemeral_storage),
        }
    }

    /// Whether all of it is within another amount.
    pub fn fits(&self, room: &Self) -> bool {
        self.cpu <= room.cpu && self.memory <= room.memory && self.ephemeral_storage <= room.ephemeral_storage
    }
}

/// What a preview of this size requests of a node, Vitrine's own containers included. `None` if the size is none.
pub fn needs(size: &Size) -> Option<Resources> {
    let overhead = pod::overhead();
    let product = Resources {
        cpu: size.cpu.parse().ok()?,
        memory: size.memory.parse().ok()?,
        ephemeral_storage: size.ephemeral_storage.parse().ok()?,
    };
    Some(product.plus(Resources {
        cpu: overhead.cpu_request,
        memory: overhead.memory,
        ephemeral_storage: overhead.ephemeral_storage,
    }))
}

/// What the nodes that take previews can give, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of all of them together.
    pub resources: Resources,
    /// How many they are.
    pub nodes: usize,
}

/// The nodes that get no preview now, because isolation did not hold on them.
pub fn set_aside(policy: &PreviewPolicy, now: Timestamp) -> Vec<String> {
    let all = policy.status.iter().flat_map(|status| &status.nodes_set_aside);
    all.filter(|node| node.until.0 > now)
        .map(|node| node.name.clone())
        .collect()
}

/// The room of these nodes for previews, as hundredths of what is allocatable.
pub fn room<'a>(nodes: impl IntoIterator<Item = &'a Node>, percent: u32) -> Room {
    let mut room = Room {
        resources: Resources::NONE,
        nodes: 0,
    };
    for node in nodes.into_iter().filter(|node| takes_previews(node)) {
        let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
        let Some(allocatable) = allocatable else { continue };
        room.nodes += 1;
        room.resources = room.resources.plus(Resources {
            cpu: amount(allocatable, "cpu").percent(percent),
            memory: amount(allocatable, "memory").percent(percent),
            ephemeral_storage: amount(allocatable, "ephemeral-storage").percent(percent),
        });
    }
    room
}

/// Nothing that a node does not name or that cannot be read.
fn amount(allocatable: &BTreeMap<String, Quantity>, name: &str) -> Amount {
    let text = allocatable.get(name).map_or("0", |quantity| quantity.0.as_str());
    text.parse().unwrap_or(Amount::whole(0))
}

/// Whether a node's kubelet says that all is well with it, and says so often enough (Kubernetes "Node Status", condition Ready).
pub fn is_ready(node: &Node) -> bool {
    node.status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Whether a pod without tolerations, as a preview's is, can come to a node.
fn takes_previews(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let cordoned = spec.and_then(|s| s.unschedulable).unwrap_or(false);
    let tainted = spec
        .and_then(|s| s.taints.as_ref())
        .is_some_and(|taints| taints.iter().any(|taint| taint.effect != "PreferNoSchedule"));
    is_ready(node) && !cordoned && !tainted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(change: serde_json::Value) -> Node {
        let mut node = serde_json::json!({
            "metadata": {"name": "n"}, "spec": {},
            "status": {"allocatable": {"cpu": "1500m", "memory": "3997420Ki", "ephemeral-storage": "17784752Ki"},
                "conditions": [{"type": "Ready", "status": "True"}]}
        });
        for (key, value) in change.as_object().unwrap() {
            node[key] = value.clone();
        }
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn only_nodes_that_take_pods_without_tolerations_have_room() {
        let taint = |effect: &str| serde_json::json!({"spec": {"taints": [{"key": "k", "effect": effect}]}});
        let nodes = [
            node(serde_json::json!({})),
            node(taint("PreferNoSchedule")),
            node(taint("NoSchedule")),
            node(taint("NoExecute")),
            node(serde_json::json!({"spec": {"unschedulable": true}})),
            node(serde_json::json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})),
        ];
        let room = room(&nodes, 50);
        assert_eq!(room.nodes, 2);
        assert_eq!(room.resources.cpu.to_string(), "1500m");
        assert_eq!(room.resources.memory.to_string(), "3997420Ki");
    }

    #[test]
    fn a_preview_needs_its_size_and_the_overhead() {
        let size = Size {
            cpu: "1".into(),
            memory: "1Gi".into(),
            ephemeral_storage: "1Gi".into(),
        };
        let needs = needs(&size).unwrap();
        let bare = Resources {
            cpu: Amount::whole(1),
            memory: "1Gi".parse().unwrap(),
            ephemeral_storage: "1Gi".parse().unwrap(),
        };
        assert!(bare.fits(&needs) && !needs.fits(&bare));
    }
}
