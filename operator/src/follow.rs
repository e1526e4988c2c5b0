//! Keeps a table up to date with all previews, and with the platform's policy, by watches of its own: what the gateway and the
//! egress proxy live on. Reads previews and the policy, writes nothing to the cluster.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use vitrine_crds::{POLICY_NAME, PreviewPolicy, PreviewPolicySpec, PreviewSandbox};

use vitrine_program::Readiness;

use crate::api;

/// What is kept of previews.
pub trait Table {
    /// A preview is so now.
    fn set(&self, preview: &PreviewSandbox);
    /// A preview is gone.
    fn forget(&self, uid: &str);
    /// These are all.
    fn keep_only(&self, uids: &HashSet<String>);
}

/// Follows all previews for ever. Not ready before they were listed once.
pub async fn previews(client: Client, table: &impl Table, readiness: &Readiness) {
    let api: Api<DeserializeGuard<PreviewSandbox>> = Api::all(client);
    let mut seen = HashSet::new();
    let mut events = kube::runtime::watcher(api, watcher::Config::default())
        .backoff(api::Again)
        .boxed();
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => seen.clear(),
            Ok(Some(Event::InitApply(guarded))) => {
                if let Ok(preview) = &guarded.0 {
                    seen.extend(preview.uid());
                    table.set(preview);
                }
            }
            Ok(Some(Event::InitDone)) => {
                table.keep_only(&seen);
                readiness.present("previews");
            }
            Ok(Some(Event::Apply(guarded))) => {
                if let Ok(preview) = &guarded.0 {
                    table.set(preview);
                }
            }
            Ok(Some(Event::Delete(guarded))) => {
                // Also one that cannot be read, as a newer operator may have written it.
                table.forget(&guarded.meta().uid.clone().unwrap_or_default());
            }
            // What is known stays good: everything in the table has its own end.
            Err(error) => tracing::warn!(%error, "the watch of previews broke, going on with what is known"),
            Ok(None) => return,
        }
    }
}

/// Follows the platform's policy for ever; `None` while there is none. Not ready before it was read once.
pub async fn policy(client: Client, changed: impl Fn(Option<PreviewPolicySpec>), readiness: &Readiness) {
    let mut policies = watcher::watch_object(Api::<PreviewPolicy>::all(client), POLICY_NAME)
        .backoff(api::Again)
        .boxed();
    loop {
        match policies.try_next().await {
            Ok(Some(policy)) => {
                changed(policy.map(|policy| policy.spec));
                readiness.present("policy");
            }
            Err(error) => {
                tracing::warn!(%error, "the watch of the policy broke, going on with what is known")
            }
            Ok(None) => return,
        }
    }
}

/// Says that neither was read yet.
pub fn not_read_yet(readiness: &Readiness) {
    readiness.missing("previews", "not listed yet");
    readiness.missing("policy", format!("PreviewPolicy {POLICY_NAME} was not read yet"));
}
