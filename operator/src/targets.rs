//! What the probe must find shut in this cluster: addresses from the API server and from the platform's policy. Reads only.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, Client, api::ListParams};
use tokio::{sync::Mutex, time::Instant};
use vitrine_crds::preview_policy::{IsolationTargets, Requirement};
use vitrine_policies::{
    Envelope, names,
    probe::{NODE_PLACEHOLDER, Orders, Target},
};

use crate::{
    error::{Error, Result, found},
    preview::Settings,
};

/// The addresses of this cluster that do not change while it lives, or change rarely.
#[derive(Clone, Debug)]
pub struct Landmarks {
    /// The responder's address.
    pub responder: String,
    /// The decoy, `ip:port`.
    pub decoy: String,
    /// The egress proxy, `ip:port`.
    pub egress: Option<String>,
    /// The API server by its service, `ip:port`.
    pub api_service: String,
    /// The API server by its own addresses, `ip:port`; at least one.
    pub api_addresses: Vec<String>,
    /// The cluster's DNS, `ip:port`, if the cluster is said to have one.
    pub dns: Option<String>,
}

/// How long landmarks count as they were read: services keep their addresses, and a pool that is refilled makes dozens of pods a second.
const FRESH: Duration = Duration::from_secs(10);

/// The landmarks as they were read last.
#[derive(Debug, Default)]
pub struct Map(Mutex<Option<(Landmarks, Instant)>>);

impl Map {
    /// The landmarks, read anew if they were not read just now.
    ///
    /// # Errors
    /// As [`landmarks`].
    pub async fn landmarks(&self, client: &Client, settings: &Settings) -> Result<Landmarks> {
        // Held while it is read: whoever comes meanwhile needs the same.
        let mut known = self.0.lock().await;
        if let Some((landmarks, at)) = known.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(landmarks.clone());
        }
        let landmarks = landmarks(client, settings).await?;
        *known = Some((landmarks.clone(), Instant::now()));
        Ok(landmarks)
    }
}

/// Reads the landmarks.
///
/// # Errors
/// If the API server does not answer. If one of them is missing: a target that is left out would be one that nobody has proven shut.
pub async fn landmarks(client: &Client, settings: &Settings) -> Result<Landmarks> {
    let house: Api<Service> = Api::namespaced(client.clone(), &settings.house.namespace);
    let default: Api<Service> = Api::namespaced(client.clone(), "default");
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let params = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    let (responder, decoy, egress, api, dns_service, slices) = tokio::try_join!(
        service(&house, &settings.responder),
        service(&house, &settings.decoy),
        service(&house, &settings.egress),
        service(&default, "kubernetes"),
        async {
            match &settings.dns {
                None => Ok(None),
                Some((namespace, name)) => service(&Api::namespaced(client.clone(), namespace), name).await,
            }
        },
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
    if api_addresses.is_empty() {
        return Err(Error::Installation(
            "the API server has no IPv4 address in the EndpointSlices of Service default/kubernetes"
                .to_owned(),
        ));
    }
    let address = |service: &Option<Service>, namespace: &str, name: &str, hint: &str| {
        service.as_ref().and_then(first_port).ok_or_else(|| {
            Error::Installation(format!(
                "Service {namespace}/{name} has no cluster address and TCP port{hint}"
            ))
        })
    };
    let other = ": is the cluster's DNS another one (clusterDns in the chart's values)?";
    let dns = settings.dns.as_ref();
    let dns = dns.map(|(namespace, name)| address(&dns_service, namespace, name, other));
    Ok(Landmarks {
        responder,
        decoy: address(
            &decoy,
            &settings.house.namespace,
            &settings.decoy,
            ": is the chart installed?",
        )?,
        egress: egress.as_ref().and_then(first_port),
        api_service: address(&api, "default", "kubernetes", "")?,
        api_addresses,
        dns: dns.transpose()?,
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
        image_volumes,
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
    add("api-server", landmarks.api_service.clone(), true);
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
    add("neighbour", landmarks.decoy.clone(), true);
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
        refuse_image_volumes: *image_volumes == Requirement::Required,
    }
}
