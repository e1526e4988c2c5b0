//! The cold path of a preview, measured: time to Ready by the API server's own stamps, writes from the audit log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandbox, SkuListing};
use vitrine_devcluster::{Cluster, image::Image};
use vitrine_kit::{Error, Result, audit, http, images, install::NAMESPACE, objects};

use super::ground::{Ground, SHOP, median};

const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// The user that the operator writes as.
const OPERATOR: &str = "system:serviceaccount:vitrine-system:vitrine-operator";

/// Measures `count` previews and as many bare pods, in turn; the result is a report in Markdown.
pub async fn measure(count: usize) -> Result<String> {
    let busybox = images::busybox()?;
    let Ground { cluster, client } = Ground::up().await?;
    cluster.import_image(&busybox)?;
    let listings: Api<SkuListing> = Api::namespaced(client.clone(), SHOP);
    let listing = objects::script("bench", &busybox, objects::SERVE);
    listings
        .create(&PostParams::default(), &listing)
        .await
        .map_err(Error::kube("create the listing"))?;

    let reconciles_before = reconciles(&cluster, &client).await?;
    let (mut previews, mut pods) = (vec![], vec![]);
    for number in 0..count {
        previews.push(preview(&client, number).await?);
        pods.push(bare_pod(&client, &busybox, number).await?);
    }
    let reconciles = reconciles(&cluster, &client).await? - reconciles_before;
    let writes = audit::read(&cluster.audit_log(), audit::Mark::default())?;
    let ours: Vec<_> = writes
        .iter()
        .filter(|w| w.user == OPERATOR && !w.is_aside())
        .collect();
    let mut to_ready: BTreeMap<String, usize> = BTreeMap::new();
    let mut after: BTreeMap<String, usize> = BTreeMap::new();
    for write in &ours {
        if let Some(life) = previews
            .iter()
            .find(|life| write.received >= life.created && write.received <= life.ended)
        {
            let side = if write.answered <= life.ready {
                &mut to_ready
            } else {
                &mut after
            };
            *side.entry(write.label()).or_default() += 1;
        }
    }
    Ok(report(count, &previews, &pods, &to_ready, &after, reconciles))
}

struct Life {
    created: Timestamp,
    ready: Timestamp,
    ended: Timestamp,
    seconds: f64,
}

async fn preview(client: &Client, number: usize) -> Result<Life> {
    let api: Api<PreviewSandbox> = Api::namespaced(client.clone(), SHOP);
    let name = format!("cold-{number}");
    let wanted = objects::preview(&name, "bench", &name, None);
    let (created, begun) = (Timestamp::now(), Instant::now());
    api.create(&PostParams::default(), &wanted)
        .await
        .map_err(Error::kube("create a preview"))?;
    loop {
        let preview = api.get(&name).await.map_err(Error::kube("get a preview"))?;
        match preview.phase() {
            Phase::Ready => break,
            Phase::Failed | Phase::Refused => {
                let status = preview.status.unwrap_or_default();
                return Err(Error::Other(format!(
                    "{name} did not become ready: {:?} {:?}",
                    status.reason, status.message
                )));
            }
            _ if begun.elapsed() > PATIENCE => {
                return Err(Error::Other(format!("{name} is not ready in time")));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
    let (seconds, ready) = (begun.elapsed().as_secs_f64(), Timestamp::now());
    api.delete(&name, &DeleteParams::default())
        .await
        .map_err(Error::kube("delete a preview"))?;
    while api
        .get_opt(&name)
        .await
        .map_err(Error::kube("get a preview"))?
        .is_some()
    {
        if begun.elapsed() > PATIENCE * 2 {
            return Err(Error::Other(format!("{name} does not end")));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(Life {
        created,
        ready,
        ended: Timestamp::now(),
        seconds,
    })
}

/// The floor: the same product in a pod without anything of Vitrine's.
async fn bare_pod(client: &Client, image: &Image, number: usize) -> Result<f64> {
    let api: Api<Pod> = Api::namespaced(client.clone(), SHOP);
    let name = format!("bare-{number}");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "product", "image": image.by_digest(), "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", objects::SERVE],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "readinessProbe": {"tcpSocket": {"port": 8090}, "periodSeconds": 1}}],
            "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}]}
    }))
    .map_err(|e| Error::Other(e.to_string()))?;
    let begun = Instant::now();
    api.create(&PostParams::default(), &pod)
        .await
        .map_err(Error::kube("create a pod"))?;
    loop {
        let pod = api.get(&name).await.map_err(Error::kube("get a pod"))?;
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        if conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
        {
            break;
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Other(format!("{name} is not ready in time")));
        }
        tokio::time::sleep(POLL).await;
    }
    let seconds = begun.elapsed().as_secs_f64();
    api.delete(&name, &DeleteParams::default())
        .await
        .map_err(Error::kube("delete a pod"))?;
    Ok(seconds)
}

async fn reconciles(cluster: &Cluster, client: &Client) -> Result<f64> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pods = pods
        .list(&params)
        .await
        .map_err(Error::kube("find the operator"))?;
    let ip = pods
        .items
        .iter()
        .find_map(|pod| pod.status.as_ref()?.pod_ip.clone());
    let ip = ip.ok_or_else(|| {
        Error::Other(format!(
            "no operator among {:?}",
            pods.items.iter().map(|p| p.name_any()).collect::<Vec<_>>()
        ))
    })?;
    let address = format!("{ip}:8080")
        .parse()
        .map_err(|e| Error::Other(format!("{ip}: {e}")))?;
    let port = cluster.forward(0, address)?;
    let answer = http::get(([127, 0, 0, 1], port).into(), "operator", "/metrics").await?;
    cluster.unforward(port)?;
    let lines = answer
        .body
        .lines()
        .filter(|line| line.starts_with("vitrine_reconciles_total"));
    Ok(lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

fn report(
    count: usize,
    previews: &[Life],
    pods: &[f64],
    to_ready: &BTreeMap<String, usize>,
    after: &BTreeMap<String, usize>,
    reconciles: f64,
) -> String {
    let seconds: Vec<f64> = previews.iter().map(|life| life.seconds).collect();
    let (preview, pod) = (median(&seconds), median(pods));
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
    let each = |total: usize| total as f64 / count as f64;
    let mut text = format!("{count} cold previews and {count} bare pods of the same image, in turn\n\n");
    text += "| create → Ready, s | min | median | max |\n|---|---|---|---|\n";
    for (what, figures) in [("cold preview", &seconds), ("bare pod", &pods.to_vec())] {
        let (min, max) = figures
            .iter()
            .fold((f64::MAX, 0.0_f64), |(a, b), s| (a.min(*s), b.max(*s)));
        text += &format!("| {what} | {min:.2} | {:.2} | {max:.2} |\n", median(figures));
    }
    text += &format!(
        "\nratio of the medians {:.2}, difference {:.2} s\n",
        preview / pod,
        preview - pod
    );
    for (what, writes) in [
        ("create → Ready", to_ready),
        ("Ready → gone (deleted when ready)", after),
    ] {
        text += &format!(
            "\nAPI writes by the operator, {what}: {:.1} a preview\n\n",
            each(writes.values().sum())
        );
        for (label, total) in writes {
            text += &format!("- {label}: {:.1}\n", each(*total));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
    let reconciles = reconciles / count as f64;
    text + &format!("\nreconciliations over the whole life: {reconciles:.1} a preview\n")
}
