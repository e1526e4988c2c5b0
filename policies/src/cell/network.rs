//! The cell's one NetworkPolicy: in from the gateway; out to one canary port of the responder, and to the egress proxy if the
//! preview may reach any name. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata;
use crate::{Envelope, names};

/// Where Vitrine's own pods are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct House {
    /// The namespace of gateway and responder.
    pub namespace: String,
}

/// The label by which Vitrine's own pods are told apart.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";

/// The policy. It names no address block at all: an `except` of a family that the cluster does not run has been seen to
/// open everything or to stop the node's enforcement (attacks, 2).
pub fn policy(cell: &str, envelope: &Envelope, house: &House) -> NetworkPolicy {
    NetworkPolicy {
        metadata: metadata(cell, names::SEAL),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector::default()),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: Some(vec![component(house, "gateway")]),
                // The sidecar's port too: the gateway asks it whether this is the pod that it means.
                ports: Some(vec![tcp(envelope.port), tcp(names::WATCH_PORT)]),
            }]),
            egress: Some(egress(cell, envelope, house)),
        }),
    }
}

fn egress(cell: &str, envelope: &Envelope, house: &House) -> Vec<NetworkPolicyEgressRule> {
    let to = |part: &str, port: u16| NetworkPolicyEgressRule {
        to: Some(vec![component(house, part)]),
        ports: Some(vec![tcp(port)]),
    };
    let canary = to("responder", names::canary_port(cell));
    let proxy = (!envelope.egress.is_empty()).then(|| to("egress", names::EGRESS_PORT));
    [Some(canary), proxy].into_iter().flatten().collect()
}

fn component(house: &House, name: &str) -> NetworkPolicyPeer {
    let labels = |key: &str, value: &str| {
        Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            ..LabelSelector::default()
        })
    };
    NetworkPolicyPeer {
        namespace_selector: labels("kubernetes.io/metadata.name", &house.namespace),
        pod_selector: labels(COMPONENT_LABEL, name),
        ip_block: None,
    }
}

fn tcp(port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some("TCP".to_owned()),
        port: Some(IntOrString::Int(i32::from(port))),
        end_port: None,
    }
}
