//! The addresses that are the cluster's own, wherever they lie: no name may lead to them. Reads nodes, Services, ServiceCIDRs
//! and the API server's endpoints.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, Client, api::ListParams};
use vitrine_program::Readiness;

use crate::error::{Error, Result};

/// How often they are read again. Nodes and load balancers come slowly, and what they are on is mostly refused anyway.
const PERIOD: Duration = Duration::from_secs(15);

/// What must never be dialled, and why.
pub(super) type Own = Arc<Vec<(IpNet, &'static str)>>;

/// As last read.
#[derive(Clone, Default)]
pub(super) struct Cluster(Arc<RwLock<Own>>);

impl Cluster {
    /// The addresses.
    pub(super) fn own(&self) -> Own {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads them again and again. Not ready before they were read once.
    pub(super) async fn follow(&self, client: Client, readiness: &Readiness) {
        readiness.missing("cluster-addresses", "not read yet");
        loop {
            match read(&client).await {
                Ok(own) => {
                    *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(own);
                    readiness.present("cluster-addresses");
                }
                // What was read before stays good.
                Err(error) => tracing::warn!(%error, "failed to read the cluster's own addresses"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }
}

async fn read(client: &Client) -> Result<Vec<(IpNet, &'static str)>> {
    let (nodes, services): (Api<Node>, Api<Service>) = (Api::all(client.clone()), Api::all(client.clone()));
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let (every, of_api) = (
        ListParams::default(),
        ListParams::default().labels("kubernetes.io/service-name=kubernetes"),
    );
    let (nodes, services, ranges, slices) = tokio::try_join!(
        async { nodes.list(&every).await.map_err(Error::kube("list", "Node", "")) },
        async {
            services
                .list(&every)
                .await
                .map_err(Error::kube("list", "Service", ""))
        },
        async {
            ranges
                .list(&every)
                .await
                .map_err(Error::kube("list", "ServiceCIDR", ""))
        },
        async {
            slices
                .list(&of_api)
                .await
                .map_err(Error::kube("list", "EndpointSlice", "default"))
        },
    )?;
    Ok(own(&nodes.items, &services.items, &ranges.items, &slices.items))
}

/// All addresses that belong to the cluster. Pure.
fn own(
    nodes: &[Node],
    services: &[Service],
    ranges: &[ServiceCIDR],
    api: &[EndpointSlice],
) -> Vec<(IpNet, &'static str)> {
    let mut own = vec![];
    let mut add = |text: &str, what: &'static str| {
        // A host name among the addresses (of a load balancer) is judged when it is resolved, like any other.
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        if let Ok(net) = net {
            own.push((net, what));
        }
    };
    for node in nodes {
        let status = node.status.as_ref();
        for address in status.and_then(|s| s.addresses.as_ref()).into_iter().flatten() {
            add(&address.address, "a node");
        }
        for range in node
            .spec
            .as_ref()
            .and_then(|s| s.pod_cidrs.as_ref())
            .into_iter()
            .flatten()
        {
            add(range, "a pod");
        }
    }
    for range in ranges {
        for cidr in range
            .spec
            .as_ref()
            .and_then(|s| s.cidrs.as_ref())
            .into_iter()
            .flatten()
        {
            add(cidr, "a Service");
        }
    }
    for service in services {
        let spec = service.spec.as_ref();
        let addresses = spec.and_then(|s| s.cluster_ips.as_ref()).into_iter().flatten();
        for address in addresses.chain(spec.and_then(|s| s.external_ips.as_ref()).into_iter().flatten()) {
            add(address, "a Service");
        }
        let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        for ingress in balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten() {
            add(ingress.ip.as_deref().unwrap_or_default(), "a load balancer");
        }
    }
    for endpoint in api.iter().flat_map(|slice| slice.endpoints.iter().flatten()) {
        for address in &endpoint.addresses {
            add(address, "the API server");
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::egress::address::forbidden;

    #[test]
    fn nodes_pods_services_balancers_and_the_api_server_are_the_clusters_own() {
        let nodes: Vec<Node> = serde_json::from_value(json!([{
            "spec": {"podCIDRs": ["198.51.100.0/25"]},
            "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "Hostname", "address": "n"}]}
        }]))
        .unwrap();
        let services: Vec<Service> = serde_json::from_value(json!([{
            "spec": {"clusterIPs": ["203.0.113.2"], "externalIPs": ["203.0.113.3"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.4"}, {"hostname": "lb.example"}]}}
        }]))
        .unwrap();
        let ranges: Vec<ServiceCIDR> =
            serde_json::from_value(json!([{"spec": {"cidrs": ["198.51.100.128/25"]}}])).unwrap();
        let api: Vec<EndpointSlice> = serde_json::from_value(
            json!([{"addressType": "IPv4", "endpoints": [{"addresses": ["203.0.113.5"]}]}]),
        )
        .unwrap();
        let own = own(&nodes, &services, &ranges, &api);
        for (address, what) in [
            ("203.0.113.1", "a node"),
            ("198.51.100.9", "a pod"),
            ("203.0.113.2", "a Service"),
            ("203.0.113.3", "a Service"),
            ("198.51.100.200", "a Service"),
            ("203.0.113.4", "a load balancer"),
            ("203.0.113.5", "the API server"),
        ] {
            assert_eq!(forbidden(address.parse().unwrap(), &own), Some(what), "{address}");
        }
        assert_eq!(forbidden("203.0.113.6".parse().unwrap(), &own), None);
    }
}
