//! What the probe must find shut in this cluster: addresses from the API server and from the platform's policy. Reads only.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::ListParams};
use vitrine_crds::preview_policy::{IsolationTargets, Requirement};
use vitrine_policies::{
    Envelope, names,
    probe::{NODE_PLACEHOLDER, Orders, Target},
};

use crate::{
    error::{Error, Result, found},
    preview::Settings,
};

/// The addresses of this cluster that do not change while it lives, or change rarely: read for each new pod.
#[derive(Clone, Debug)]
pub struct Landmarks {
    /// The responder's address.
    pub responder: String,
    /// The decoy, `ip:port`.
    pub decoy: Option<String>,
    /// The egress proxy, `ip:port`.
    pub egress: Option<String>,
    /// The API server by its service, `ip:port`.
    pub api_service: Option<String>,
    /// The API server by its own addresses, `ip:port`.
    pub api_addresses: Vec<String>,
    /// The cluster's DNS, `ip:port`.
    pub dns: Option<String>,
}

/// Reads the landmarks.
///
/// # Errors
/// If the API server does not answer or the responder's Service is missing.
pub async fn landmarks(client: &Client, settings: &Settings) -> Result<Landmarks> {
    let house: Api<Service> = Api::namespaced(client.clone(), &settings.house.namespace);
    let default: Api<Service> = Api::namespaced(client.clone(), "default");
    let system: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let params = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    let (responder, decoy, egress, api, dns, slices) = tokio::try_join!(
        service(&house, &settings.responder),
        service(&house, &settings.decoy),
        service(&house, &settings.egress),
        service(&default, "kubernetes"),
        service(&system, "kube-dns"),
        async {
            slices
                .list(&params)
                .await
                .map_err(Error::kube("list", "EndpointSlice", "default"))
        },
    )?;
    let responder = responder.and_then(|s| cluster_ip(&s)).ok_or_else(|| {
        Error::Installation(format!(
            "Service {}/{} has no cluster address: is the chart installed?",
            settings.house.namespace, settings.responder
        ))
    })?;
    let mut api_addresses: Vec<String> = vec![];
    for slice in slices.items.iter().filter(|s| s.address_type == "IPv4") {
        for port in slice.ports.iter().flatten().filter_map(|p| p.port) {
            for address in slice.endpoints.iter().flatten().flat_map(|e| &e.addresses) {
                api_addresses.push(format!("{address}:{port}"));
            }
        }
    }
    Ok(Landmarks {
        responder,
        decoy: decoy.as_ref().and_then(first_port),
        egress: egress.as_ref().and_then(first_port),
        api_service: api.as_ref().and_then(first_port),
        api_addresses,
        dns: dns.as_ref().and_then(first_port),
    })
}

async fn service(api: &Api<Service>, name: &str) -> Result<Option<Service>> {
    found(api.get(name).await).map_err(Error::kube("get", "Service", name))
}

fn cluster_ip(service: &Service) -> Option<String> {
    service
        .spec
        .as_ref()?
        .cluster_ip
        .clone()
        .filter(|ip| ip != "None" && !ip.is_empty())
}

fn first_port(service: &Service) -> Option<String> {
    // DNS is tried by TCP: a UDP packet without an answer shows nothing.
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let tcp = ports
        .iter()
        .find(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP")?;
    Some(format!("{}:{}", cluster_ip(service)?, tcp.port))
}

/// The orders for the probe of one cell. Pure.
pub fn orders(landmarks: &Landmarks, envelope: &Envelope, cell: &str, nonce: String) -> Orders {
    let IsolationTargets {
        internet,
        metadata,
        kubelet_port,
        node_ports,
        node_targets,
        metadata_target,
        node_quarantine: _,
    } = &envelope.isolation;
    let mut targets = vec![];
    let mut add = |name: &str, address: String, required: bool| {
        targets.push(Target {
            name: name.to_owned(),
            address,
            required,
        });
    };
    let node_required = *node_targets == Requirement::Required;
    for address in metadata {
        add(
            "metadata",
            address.clone(),
            *metadata_target == Requirement::Required,
        );
    }
    for address in internet {
        add("internet", address.clone(), true);
    }
    if let Some(address) = &landmarks.api_service {
        add("api-server", address.clone(), true);
    }
    for address in &landmarks.api_addresses {
        add("api-server-node", address.clone(), node_required);
    }
    add(
        "kubelet",
        format!("{NODE_PLACEHOLDER}:{kubelet_port}"),
        node_required,
    );
    for port in node_ports {
        add("node-port", format!("{NODE_PLACEHOLDER}:{port}"), node_required);
    }
    if let Some(address) = &landmarks.dns {
        add("cluster-dns", address.clone(), true);
    }
    if let Some(address) = &landmarks.decoy {
        add("neighbour", address.clone(), true);
    }
    add(
        "other-port",
        format!("{}:{}", landmarks.responder, names::forbidden_port(cell)),
        true,
    );
    Orders {
        nonce,
        canary: format!("{}:{}", landmarks.responder, names::canary_port(cell)),
        targets,
        deadline_seconds: envelope.proof_deadline.as_secs(),
    }
}
