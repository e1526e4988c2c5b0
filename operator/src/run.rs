//! `run`: the controllers of one operator process, from readiness over leadership to a graceful end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, CustomResourceExt, runtime::events::Reporter};
use tokio::sync::watch;
use vitrine_crds::{PreviewPolicy, PreviewPool, PreviewSandbox, SkuListing};
use vitrine_policies::cell::{network::House, pod::ProbeImage};
use vitrine_program::{Readiness, until_told};

use crate::{
    activity::{self, Watchers},
    admission, api,
    costs::{self, Costs},
    denials::{self, Denials},
    error::{Error, Result},
    herald::Herald,
    lanes::Lanes,
    leader::Candidate,
    link::LinkSigner,
    link_keys, listing,
    metrics::Metrics,
    pool::{self, controller::Sources},
    preview::{
        Context, Settings, clock,
        controller::{self, Previews, Told},
        seals, sweep,
    },
    prober::{CONTROL_PORT, Prober},
    receipts::{self, Office, Receipts, exporter, key, post::Post, spool::Spool},
    targets,
};

/// The Lease of leadership.
const LEASE: &str = "vitrine-operator";
/// How often missing parts of the installation are looked for.
const RETRY: Duration = Duration::from_secs(2);
/// How long the end of this process waits for events that are on their way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the admission policies are tried: nine dry runs.
const PROVE: Duration = Duration::from_secs(30);
/// How often it is looked whether the public keys are still published, and still as they were.
const PUBLISH: Duration = Duration::from_secs(300);

/// Settings of the controllers.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The namespace of Vitrine itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vitrine-system")]
    namespace: String,
    /// The name of this process among candidates for leadership.
    #[arg(long, env = "POD_NAME", default_value = "vitrine-operator")]
    identity: String,
    /// The namespace of the slots.
    #[arg(long, default_value = "vitrine-slots")]
    slots_namespace: String,
    /// Vitrine's own image, by digest: the probe inside previews runs from it.
    #[arg(long, env = "VITRINE_IMAGE")]
    image: String,
    /// Pull policy of that image.
    #[arg(long, default_value = "IfNotPresent")]
    image_pull_policy: String,
    /// Address of a preview, with `{label}` where its own host label goes.
    #[arg(long, default_value = "http://{label}.previews.localhost:8080")]
    preview_url: String,
    /// The Service of the responder.
    #[arg(long, default_value = "vitrine-responder")]
    responder_service: String,
    /// The Service of the decoy.
    #[arg(long, default_value = "vitrine-decoy")]
    decoy_service: String,
    /// The Service of the egress proxy.
    #[arg(long, default_value = "vitrine-egress")]
    egress_service: String,
    /// The Service of the cluster's DNS, `namespace/name`; empty if the cluster has none.
    #[arg(long, default_value = "kube-system/kube-dns")]
    dns_service: String,
    /// Where the unconfined prober is, if not behind the responder's Service.
    #[arg(long)]
    prober_url: Option<String>,
    /// Whether the chart's admission policies must be in force before anything is done.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    admission_policies: bool,
    /// Whether one operator at a time works. For economy only: two do no harm.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    #[command(flatten)]
    receipts: receipts::Arguments,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If the settings cannot be used.
pub async fn run(arguments: Arguments) -> Result<()> {
    if !arguments.preview_url.contains("{label}") {
        return Err(Error::Setting(
            "--preview-url must contain {label}: every preview has a host of its own".to_owned(),
        ));
    }
    let dns = dns_service(&arguments.dns_service)?;
    let office = Office::open(&arguments.receipts)?;
    let client = api::client().await?;
    let metrics = Metrics::new().map_err(|e| Error::Setting(e.to_string()))?;
    let readiness = Readiness::default();
    readiness.missing("installation", "not looked at yet");
    let for_text = metrics.clone();
    let text = move || for_text.text();
    let server = vitrine_program::serve(Router::new(), arguments.listen, readiness.clone(), text);
    let server = tokio::spawn(server);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        until_told().await;
        stop.send_replace(true);
    });

    let work = work(
        &arguments,
        dns,
        office,
        client,
        metrics,
        readiness,
        stopped.clone(),
    );
    tokio::select! {
        result = work => result,
        served = server => match served {
            Ok(result) => Ok(result?),
            Err(error) => Err(Error::Setting(format!("the health server ended: {error}"))),
        },
    }
}

/// Namespace and name of a Service, if one is named.
fn dns_service(text: &str) -> Result<Option<(String, String)>> {
    match text.split_once('/') {
        Some((namespace, name)) => Ok(Some((namespace.to_owned(), name.to_owned()))),
        None if text.is_empty() => Ok(None),
        None => Err(Error::Setting(
            "--dns-service must be namespace/name, or empty where the cluster has no DNS".to_owned(),
        )),
    }
}

async fn work(
    arguments: &Arguments,
    dns: Option<(String, String)>,
    office: Office,
    client: Client,
    metrics: Metrics,
    readiness: Readiness,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    let settings = Settings {
        house: House {
            namespace: arguments.namespace.clone(),
        },
        slots: arguments.slots_namespace.clone(),
        receipts: office.namespace.clone(),
        probe: ProbeImage {
            image: arguments.image.clone(),
            pull_policy: arguments.image_pull_policy.clone(),
        },
        url: arguments.preview_url.clone(),
        responder: arguments.responder_service.clone(),
        decoy: arguments.decoy_service.clone(),
        egress: arguments.egress_service.clone(),
        dns,
    };
    let prober = tokio::select! {
        prober = installation(&client, &settings, arguments, &readiness) => prober,
        () = told(stopped.clone()) => return Ok(()),
    };
    // Ready from here on, also as a standby: a rollout waits for readiness while the old operator still leads.
    let mut candidate = Candidate::new(client.clone(), &arguments.namespace, LEASE, &arguments.identity);
    let signer = LinkSigner::generate();
    loop {
        if arguments.leader_elect {
            tracing::info!(identity = arguments.identity, "waiting for leadership");
            tokio::select! {
                () = candidate.acquire() => tracing::info!(identity = arguments.identity, "leading"),
                () = told(stopped.clone()) => break,
            }
        }
        let told = Told::default();
        let (controller, pools, listings, watched) =
            controller::controller(&client, &settings.slots, &office.namespace, told.clone());
        let spool = Spool::new(&client, &office.namespace, watched.receipts.clone(), office.kept);
        let reporter = Reporter {
            controller: "vitrine.dev/operator".into(),
            instance: Some(arguments.identity.clone()),
        };
        let context = Arc::new(Context {
            herald: Herald::new(&client, &reporter),
            watched,
            client: client.clone(),
            metrics: metrics.clone(),
            settings: settings.clone(),
            signer: signer.clone(),
            prober: prober.clone(),
            watchers: Watchers::default(),
            costs: Costs::default(),
            denials: Denials::default(),
            receipts: Receipts {
                office: office.clone(),
                spool,
                post: Post::default(),
            },
            map: targets::Map::default(),
            lanes: Lanes::default(),
            looks: told.looks,
            pools: told.pools,
            wakes: told.wakes,
        });
        tokio::select! {
            () = lead(arguments, context, controller, (pools, listings), &readiness, stopped.clone()) => {
                if arguments.leader_elect {
                    candidate.release().await;
                }
                break;
            }
            // Not the end of the process: while the API server is away for longer than a lease may go without renewal, the kubelet
            // would start it again and again, and wait longer each time.
            why = candidate.keep(), if arguments.leader_elect => {
                tracing::error!(why, "leadership is lost; standing by");
                metrics.stands_by();
            }
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Works until told to stop. Whoever drops this stops the work at whatever it does, like a process that is killed.
async fn lead(
    arguments: &Arguments,
    context: Arc<Context>,
    controller: Previews,
    beside: (Sources, listing::controller::Sources),
    readiness: &Readiness,
    stopped: watch::Receiver<bool>,
) {
    let known = async {
        while let Err(error) =
            link_keys::publish(&context.client, &arguments.namespace, &context.signer).await
        {
            readiness.missing("link-key", error.to_string());
            tracing::warn!(%error, "failed to publish the link key, will try again");
            tokio::time::sleep(RETRY).await;
        }
        readiness.present("link-key");
        let office = &context.receipts.office;
        while let Err(error) = key::publish(&context.client, &arguments.namespace, office).await {
            readiness.missing("receipt-key", error.to_string());
            tracing::warn!(%error, "failed to publish the receipt key, will try again");
            tokio::time::sleep(RETRY).await;
        }
        readiness.present("receipt-key");
        // Without its first list the queue would have no order.
        context.watched.known().await;
    };
    tokio::select! {
        () = known => {}
        () = told(stopped.clone()) => return,
    }
    pool::controller::begin(&context);
    tokio::select! {
        () = controller::run(controller, context.clone(), told(stopped)) => {}
        () = background(context.clone(), beside) => {}
        () = guard(&context, arguments.admission_policies, readiness) => {}
    }
    context.herald.finish(LAST_WORDS).await;
}

/// What runs beside the controller; never returns.
async fn background(context: Arc<Context>, (pools, listings): (Sources, listing::controller::Sources)) {
    // An orphan is one that the watches do not know: without their first lists everything would be one.
    context.watched.indexes.previews.wait_until_ready().await;
    context.watched.indexes.cells.wait_until_ready().await;
    let publishing = async {
        loop {
            tokio::time::sleep(PUBLISH).await;
            let namespace = &context.settings.house.namespace;
            if let Err(error) = link_keys::publish(&context.client, namespace, &context.signer).await {
                tracing::warn!(%error, "failed to publish the link key anew");
            }
            if let Err(error) = key::publish(&context.client, namespace, &context.receipts.office).await {
                tracing::warn!(%error, "failed to publish the receipt key anew");
            }
        }
    };
    tokio::join!(
        publishing,
        pool::controller::run(pools, context.clone()),
        listing::controller::run(listings, context.clone()),
        sweep::run(context.clone()),
        seals::run(&context),
        clock::run(&context),
        activity::run(&context),
        costs::run(&context),
        denials::run(&context),
        exporter::run(&context)
    );
}

/// Waits until everything is there that previews need; says in `/readyz` what is not.
async fn installation(
    client: &Client,
    settings: &Settings,
    arguments: &Arguments,
    readiness: &Readiness,
) -> Prober {
    let mut told = String::new();
    loop {
        match look(client, settings, arguments.admission_policies).await {
            Ok(responder) => {
                readiness.present("installation");
                let prober = arguments.prober_url.as_deref();
                let base = prober.map_or_else(|| format!("http://{responder}:{CONTROL_PORT}"), str::to_owned);
                return Prober::new(base);
            }
            Err(error) => {
                // Once a reason: it is looked for every two seconds.
                if told != error.to_string() {
                    told = error.to_string();
                    tracing::warn!(%error, "not ready");
                }
                readiness.missing("installation", told.clone());
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Proves again and again that the admission policies are in force; says in `/readyz` when they are not. Never returns.
async fn guard(context: &Context, admission_policies: bool, readiness: &Readiness) {
    if !admission_policies {
        return std::future::pending().await;
    }
    let mut next = PROVE;
    loop {
        tokio::time::sleep(next).await;
        next = match admission::prove(&context.client, &context.settings).await {
            Ok(()) => {
                readiness.present("admission-policies");
                PROVE
            }
            Err(error) => {
                tracing::error!(%error, "previews are less confined than they should be");
                readiness.missing("admission-policies", error.to_string());
                RETRY
            }
        };
    }
}

async fn look(client: &Client, settings: &Settings, admission_policies: bool) -> Result<String> {
    // The operator has no right to read CRDs, and needs none: listing the resources shows whether they are served.
    let params = kube::api::ListParams::default().limit(1);
    let crds = [
        PreviewSandbox::crd(),
        SkuListing::crd(),
        PreviewPolicy::crd(),
        PreviewPool::crd(),
    ];
    let [previews, listings, policies, pools] =
        crds.map(|crd: CustomResourceDefinition| crd.metadata.name.unwrap_or_default());
    let missing = |name: String| {
        move |error: kube::Error| Error::Installation(format!("{name} cannot be listed: {error}"))
    };
    Api::<PreviewSandbox>::all(client.clone())
        .list_metadata(&params)
        .await
        .map_err(missing(previews))?;
    Api::<SkuListing>::all(client.clone())
        .list_metadata(&params)
        .await
        .map_err(missing(listings))?;
    Api::<PreviewPolicy>::all(client.clone())
        .list_metadata(&params)
        .await
        .map_err(missing(policies))?;
    Api::<PreviewPool>::all(client.clone())
        .list_metadata(&params)
        .await
        .map_err(missing(pools))?;
    if admission_policies {
        admission::prove(client, settings).await?;
    }
    Ok(targets::landmarks(client, settings).await?.responder)
}

async fn told(mut stopped: watch::Receiver<bool>) {
    // A closed channel means that nobody can tell any more: then nobody did.
    if stopped.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
