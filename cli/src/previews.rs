//! Previews: what they are, why, and their end. Reads and writes `PreviewSandbox`es.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandbox, TimeSpan};

use crate::{
    error::{Error, Result},
    table::table,
};

/// How often it is looked whether an end is proven.
const POLL: Duration = Duration::from_millis(300);

/// Which previews.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Of all namespaces.
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only those of this subject.
    #[arg(long)]
    subject: Option<String>,
    /// Only those on this node.
    #[arg(long)]
    node: Option<String>,
}

/// One preview.
#[derive(Args, Clone, Debug)]
pub struct Named {
    /// Its name.
    name: String,
}

/// A preview and how long it is to live.
#[derive(Args, Clone, Debug)]
pub struct Extend {
    /// Its name.
    name: String,
    /// How long it may live, counted from when it was ready, like `25m`. At most what the platform's policy allows.
    ttl: TimeSpan,
}

/// A preview and how long to wait.
#[derive(Args, Clone, Debug)]
pub struct End {
    /// Its name.
    name: String,
    /// How long to wait for it.
    #[arg(long, default_value = "60s")]
    timeout: TimeSpan,
}

/// Lists.
///
/// # Errors
/// If the API server refuses.
pub async fn list(client: &Client, list: &List) -> Result<String> {
    let api: Api<PreviewSandbox> = if list.all_namespaces {
        Api::all(client.clone())
    } else {
        Api::default_namespaced(client.clone())
    };
    let mut params = ListParams::default();
    if let Some(subject) = &list.subject {
        params = params.fields(&format!("spec.subject={subject}"));
    }
    let previews = api
        .list(&params)
        .await
        .map_err(Error::kube("list", "PreviewSandbox", "all"))?;
    let on_node = |preview: &&PreviewSandbox| {
        let node = preview.status.as_ref().and_then(|status| status.node.as_ref());
        list.node.is_none() || node == list.node.as_ref()
    };
    let rows: Vec<Vec<String>> = previews.items.iter().filter(on_node).map(row).collect();
    if rows.is_empty() {
        return Ok("no previews\n".to_owned());
    }
    Ok(table(
        &[
            "NAMESPACE",
            "NAME",
            "PHASE",
            "REASON",
            "LISTING",
            "NODE",
            "UNTIL",
            "MESSAGE",
        ],
        &rows,
    ))
}

fn row(preview: &PreviewSandbox) -> Vec<String> {
    let status = preview.status.clone().unwrap_or_default();
    let place = status.queue_position.map(|place| format!("place {place}"));
    let until = status
        .expires_at
        .as_ref()
        .map(|time| left(time.0, Timestamp::now()));
    vec![
        preview.namespace().unwrap_or_default(),
        preview.name_any(),
        preview.phase().as_str().to_owned(),
        status
            .reason
            .map(|reason| reason.as_str().to_owned())
            .unwrap_or_default(),
        preview.spec.listing_ref.name.clone(),
        status.node.unwrap_or_default(),
        until.or(place).unwrap_or_default(),
        status.message.unwrap_or_default(),
    ]
}

fn left(until: Timestamp, now: Timestamp) -> String {
    let seconds = until.duration_since(now).as_secs();
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => TimeSpan::from_secs(seconds).to_string(),
        _ => "over".to_owned(),
    }
}

async fn get(client: &Client, name: &str) -> Result<(Api<PreviewSandbox>, PreviewSandbox)> {
    let api: Api<PreviewSandbox> = Api::default_namespaced(client.clone());
    let preview = api
        .get(name)
        .await
        .map_err(Error::kube("get", "PreviewSandbox", name))?;
    Ok((api, preview))
}

/// Prints the link.
///
/// # Errors
/// If it has none, with why.
pub async fn open(client: &Client, named: &Named) -> Result<String> {
    let (_, preview) = get(client, &named.name).await?;
    let phase = preview.phase();
    let status = preview.status.unwrap_or_default();
    match status.url {
        Some(url) if phase == Phase::Ready => Ok(url + "\n"),
        _ => Err(Error::Other(format!(
            "preview {} has no link: it is {} ({})",
            named.name,
            phase.as_str(),
            status.message.unwrap_or_default()
        ))),
    }
}

/// Says why.
///
/// # Errors
/// If the API server refuses.
pub async fn why(client: &Client, named: &Named) -> Result<String> {
    let (_, preview) = get(client, &named.name).await?;
    let events: Api<Event> = Api::default_namespaced(client.clone());
    let about = ListParams::default().fields(&format!("regarding.name={}", named.name));
    let events = events
        .list(&about)
        .await
        .map_err(Error::kube("list", "Event", &named.name))?;
    Ok(explained(&preview, &events.items, Timestamp::now()))
}

fn explained(preview: &PreviewSandbox, events: &[Event], now: Timestamp) -> String {
    let status = preview.status.clone().unwrap_or_default();
    let reason = status
        .reason
        .map(|reason| reason.as_str())
        .unwrap_or("no operator has looked at it yet");
    let mut text = format!(
        "{} is {}: {reason}\n",
        preview.name_any(),
        preview.phase().as_str()
    );
    let mut say = |what: &str, words: Option<String>| {
        if let Some(words) = words.filter(|words| !words.is_empty()) {
            text += &format!("  {what:<12} {words}\n");
        }
    };
    say("message", status.message.clone());
    say(
        "queue",
        status.queue_position.map(|place| {
            let estimate = status.queue_estimate.as_ref();
            let estimate =
                estimate.map(|time| format!(", its turn comes in {} at the latest", left(time.0, now)));
            format!("place {place}{}", estimate.unwrap_or_default())
        }),
    );
    say("cell", status.cell.clone());
    say("node", status.node.clone());
    say(
        "ends",
        status
            .expires_at
            .as_ref()
            .map(|time| format!("{} ({})", time.0, left(time.0, now))),
    );
    let isolation = status.isolation.as_ref();
    let unproven = isolation.map(|isolation| {
        let open = isolation
            .targets
            .iter()
            .filter(|target| !target.required && !target.inside.starts_with("shut"));
        let open: Vec<_> = open.map(|target| target.name.as_str()).collect();
        let not_shut = if open.is_empty() {
            String::new()
        } else {
            format!("; not shut, only reported: {}", open.join(", "))
        };
        format!(
            "seen from inside at {}, {} targets{not_shut}",
            isolation.proven_at.0,
            isolation.targets.len()
        )
    });
    say("isolation", unproven);
    say(
        "abuse",
        status.abuse.as_ref().map(|found| {
            format!(
                "{} points at {}, {}: {}",
                found.score,
                found.at.0,
                found.measure.as_str(),
                found.reasons.join(", ")
            )
        }),
    );
    say(
        "receipt",
        status.receipt.as_ref().map(|receipt| {
            let signed = if receipt.signed.is_some() {
                "signed"
            } else {
                "not signed yet"
            };
            let delivered = receipt
                .delivered_at
                .as_ref()
                .map(|time| format!(", the sink has it since {}", time.0));
            format!("{signed}{}", delivered.unwrap_or_default())
        }),
    );
    let rows: Vec<Vec<String>> = status
        .conditions
        .iter()
        .map(|c| {
            vec![
                c.type_.clone(),
                c.status.clone(),
                c.reason.clone(),
                c.message.clone(),
            ]
        })
        .collect();
    text += &table(&["CONDITION", "STATUS", "REASON", "MESSAGE"], &rows);
    let mut told: Vec<_> = events.iter().collect();
    told.sort_by_key(|event| event.event_time.as_ref().map(|time| time.0));
    let rows: Vec<Vec<String>> = told
        .iter()
        .map(|event| {
            let time = event.event_time.as_ref().map(|time| time.0.to_string());
            vec![
                time.unwrap_or_default(),
                event.reason.clone().unwrap_or_default(),
                event.note.clone().unwrap_or_default(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text += &table(&["TIME", "EVENT", "NOTE"], &rows);
    }
    text
}

/// Lets it live longer.
///
/// # Errors
/// If the API server refuses: a ttl only grows, and within the policy.
pub async fn extend(client: &Client, extend: &Extend) -> Result<String> {
    let (api, preview) = get(client, &extend.name).await?;
    let lives = preview.status.and_then(|status| status.envelope);
    if let Some(lives) = lives.filter(|lives| extend.ttl <= lives.ttl) {
        return Err(Error::Other(format!(
            "preview {} lives {} already, and a ttl only grows: `end` ends it early",
            extend.name, lives.ttl
        )));
    }
    let patch = Patch::Merge(json!({"spec": {"ttl": extend.ttl.to_string()}}));
    let patched = api.patch(&extend.name, &PatchParams::default(), &patch).await;
    patched.map_err(Error::kube("extend", "PreviewSandbox", &extend.name))?;
    Ok(format!(
        "asked for {} for preview {}; `why` says what came of it\n",
        extend.ttl, extend.name
    ))
}

/// Ends it.
///
/// # Errors
/// If the API server refuses, or the end is not proven in time: with why.
pub async fn end(client: &Client, end: &End) -> Result<String> {
    let (api, preview) = get(client, &end.name).await?;
    delete(&api, &preview).await?;
    gone(&api, &preview, end.timeout).await?;
    Ok(format!(
        "preview {} has ended, and nothing of it is left\n",
        end.name
    ))
}

/// Asks for the end of a preview.
///
/// # Errors
/// If the API server refuses.
pub async fn delete(api: &Api<PreviewSandbox>, preview: &PreviewSandbox) -> Result<()> {
    let name = preview.name_any();
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Error::kube("delete", "PreviewSandbox", name)(error)),
    }
}

/// Ends it, and does not wait for more than that nobody can reach it any more.
///
/// # Errors
/// If the API server refuses, or the link is not withdrawn in time: then no operator works.
pub async fn cut(client: &Client, cut: &End) -> Result<String> {
    let (api, preview) = get(client, &cut.name).await?;
    delete(&api, &preview).await?;
    let is_cut = |now: &PreviewSandbox| now.phase() == Phase::Ending || now.phase().is_terminal();
    until(&api, &preview, cut.timeout, "is not cut off", is_cut).await?;
    Ok(format!(
        "preview {} is cut off; its end is still to be proven\n",
        cut.name
    ))
}

/// Waits until a preview is gone.
///
/// # Errors
/// If it is not in time: with its phase and why.
pub async fn gone(api: &Api<PreviewSandbox>, preview: &PreviewSandbox, timeout: TimeSpan) -> Result<()> {
    until(api, preview, timeout, "has no proven end", |_| false).await
}

/// Waits until a preview is as wanted, or gone.
async fn until(
    api: &Api<PreviewSandbox>,
    preview: &PreviewSandbox,
    timeout: TimeSpan,
    otherwise: &str,
    wanted: impl Fn(&PreviewSandbox) -> bool,
) -> Result<()> {
    let name = preview.name_any();
    let deadline = tokio::time::Instant::now() + timeout.as_duration();
    loop {
        let now = api
            .get_opt(&name)
            .await
            .map_err(Error::kube("get", "PreviewSandbox", &name))?;
        // Another one under the same name is not this one.
        let Some(now) = now.filter(|now| now.uid() == preview.uid() && !wanted(now)) else {
            return Ok(());
        };
        if tokio::time::Instant::now() >= deadline {
            let phase = now.phase();
            let status = now.status.unwrap_or_default();
            return Err(Error::Other(format!(
                "preview {name} {otherwise} after {timeout}: {} {}",
                phase.as_str(),
                status.message.unwrap_or_default()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}
