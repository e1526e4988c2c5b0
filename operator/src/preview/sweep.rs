//! Removes cells and slots whose preview is gone: what a forced deletion of the preview itself leaves; and free cells that nobody has
//! taken for long. Writes the cluster.
//!
//! Also counts previews by phase and lowers the ceilings of slots, since it looks at all of them anyway.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::{Api, ResourceExt, core::PartialObjectMeta};
use serde::Deserialize;
use tokio::time::Instant;
use vitrine_crds::{
    POLICY_NAME, Phase, PreviewPolicy, PreviewPolicySpec, PreviewSandbox,
    conditions::{self, types},
    preview_policy::Cells,
};
use vitrine_policies::{
    capacity,
    cell::{pod::GRACE_SECONDS, record::Record},
    names,
};

use super::{
    Context, cells,
    observe::{self, End},
    pods, slots as own_slots, whose,
};
use crate::{
    api,
    error::{Error, Result, found},
    pool::keep,
};

/// Slots that are looked at before some are freed, for which all cells are listed once.
const AT_ONCE: usize = 500;

type Cell = PartialObjectMeta<Namespace>;

/// How often orphans are looked for. They come from forced deletions, which are rare, and cost a namespace each.
const PERIOD: Duration = Duration::from_secs(15);

/// While there is an orphan it is looked at again after this, and then after twice as long each time, up to `PERIOD`: pod,
/// namespace and slot go one after the other, and nothing else wakes the sweep.
const SOON: Duration = Duration::from_secs(1);

/// How long a policy is left alone before the ceilings follow it down: longer than a reconciliation may last, since one that
/// began under the policy before may still take a slot that was allowed then.
const SETTLED: Duration = Duration::from_secs(120);

/// Sweeps for ever.
pub async fn run(context: Arc<Context>) {
    let mut pause = SOON;
    let mut settling = Settling::default();
    loop {
        count(&context).await;
        keep::forget_gone(&context);
        let clean = match sweep(&context, &mut settling).await {
            Ok(clean) => clean,
            Err(error) => {
                context.metrics.failed(&error);
                tracing::warn!(%error, "failed to sweep orphans, will try again");
                true
            }
        };
        if clean {
            pause = SOON;
            tokio::time::sleep(PERIOD).await;
        } else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PERIOD);
        }
    }
}

async fn count(context: &Context) {
    let (mut counts, mut longest, now) = (HashMap::new(), 0, Timestamp::now());
    let count = |preview: Counted| {
        *counts.entry(preview.phase()).or_insert(0_i64) += 1;
        longest = longest.max(preview.ending_for(now));
    };
    context.watched.previews.skim(count).await;
    for phase in Phase::ALL {
        let gauge = context.metrics.previews.with_label_values(&[phase.as_str()]);
        gauge.set(counts.get(&phase).copied().unwrap_or_default());
    }
    context.metrics.longest_end_seconds.set(longest);
}

/// What of a preview is counted.
#[derive(Deserialize)]
struct Counted {
    metadata: ObjectMeta,
    status: Option<CountedStatus>,
}

#[derive(Deserialize)]
struct CountedStatus {
    phase: Phase,
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl Counted {
    fn phase(&self) -> Phase {
        let said = self.status.as_ref().map(|status| status.phase);
        Phase::of(said, self.metadata.deletion_timestamp.is_some())
    }

    /// For how many seconds it has been ending; 0 if it is not.
    fn ending_for(&self, now: Timestamp) -> i64 {
        let conditions = self.status.as_ref().map(|status| &status.conditions);
        let said = conditions.and_then(|conditions| conditions::find(conditions, types::EXPIRED));
        let since = said.map(|expired| &expired.last_transition_time);
        since
            .or(self.metadata.deletion_timestamp.as_ref())
            .filter(|_| self.phase() == Phase::Ending)
            .map_or(0, |since| now.duration_since(since.0).as_secs().max(0))
    }
}

/// Since when the policy has been as it is, as far as this process knows.
#[derive(Default)]
struct Settling(Option<(PreviewPolicySpec, Instant)>);

impl Settling {
    fn settled(&mut self, spec: &PreviewPolicySpec) -> bool {
        match &self.0 {
            Some((known, since)) if known == spec => since.elapsed() >= SETTLED,
            _ => {
                self.0 = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }
}

/// One sweep; whether there was nothing to do.
async fn sweep(context: &Context, settling: &mut Settling) -> Result<bool> {
    let mut clean = true;
    // Before the slots: ceilings that somebody raises after this look are refused to be lowered by their version.
    let policies: Api<PreviewPolicy> = Api::all(context.client.clone());
    let policy = found(policies.get(POLICY_NAME).await);
    let policy = policy.map_err(Error::kube("get", "PreviewPolicy", POLICY_NAME))?;
    let aside = policy
        .as_ref()
        .map(|policy| capacity::set_aside(policy, Timestamp::now()));
    let aside = aside.map_or(0, |nodes| nodes.len());
    context
        .metrics
        .nodes_set_aside
        .set(i64::try_from(aside).unwrap_or(i64::MAX));
    let rules = policy
        .as_ref()
        .map(|policy| policy.spec.cells.clone())
        .unwrap_or_default();
    for cell in context.watched.cells.each() {
        // Ten thousand of them are a tenth of a second.
        tokio::task::coop::consume_budget().await;
        if is_doubtful(context, &cell, &rules) {
            let name = cell.name_any();
            clean &= sweep_cell(context, &name, &rules).await.unwrap_or_else(|error| {
                // The others, and the slots, do not wait for one that cannot be looked at.
                context.metrics.failed(&error);
                tracing::warn!(cell = name, %error, "failed to look at a cell, will try again");
                true
            });
        }
    }
    // By what the watches have seen.
    let watched = &context.watched;
    let orphans = watched
        .slots
        .left_by(|uid| watched.living(uid).is_none() && !watched.is_cell(uid));
    for some in orphans.chunks(AT_ONCE) {
        clean &= sweep_slots(context, some).await?;
    }
    if let Some(policy) = policy
        && settling.settled(&policy.spec)
    {
        match own_slots::lower(context, &policy).await {
            // Somebody raised them meanwhile: they are needed.
            Err(error) if !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(clean)
}

/// Whether a cell, by what the watches have seen, is not needed any more.
fn is_doubtful(context: &Context, cell: &Cell, rules: &Cells) -> bool {
    // A namespace that carries our label but not our name is somebody else's.
    let Some(record) = Record::of(&cell.metadata) else {
        return false;
    };
    match &record.tenant {
        Some(uid) => context.watched.living(uid).is_none(),
        // Those of pools are looked after one by one.
        None => record.pool.is_none() && !record.is_kept(rules, Timestamp::now()),
    }
}

/// Looks at one cell as it is now; whether there was nothing to do.
async fn sweep_cell(context: &Context, name: &str, rules: &Cells) -> Result<bool> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let there = found(namespaces.get(name).await).map_err(Error::kube("get", "Namespace", name))?;
    let Some(namespace) = there else { return Ok(true) };
    let Some(record) = Record::of(&namespace.metadata) else {
        return Ok(true);
    };
    let Some(uid) = record.tenant.clone() else {
        if record.pool.is_none() && !record.is_kept(rules, Timestamp::now()) {
            remove(context, &namespace, &record).await?;
        }
        return Ok(true);
    };
    match left(context, namespace.annotations(), &uid).await? {
        // An operator that was slower than the end may have taken one for it.
        Left::There(phase) if phase.is_terminal() && !record.going => {
            cells::give_back(context, std::slice::from_ref(&namespace)).await?;
            Ok(true)
        }
        Left::There(_) | Left::Unreadable => Ok(true),
        Left::Gone => {
            tracing::warn!(
                cell = name,
                preview_uid = uid,
                "removing a cell whose preview is gone"
            );
            remove(context, &namespace, &record).await?;
            Ok(false)
        }
    }
}

/// Looks at slots that nobody seems to need, and frees those; whether there was nothing to do.
async fn sweep_slots(context: &Context, slots: &[String]) -> Result<bool> {
    let (mut clean, mut left) = (true, vec![]);
    for slot in slots {
        match look_at_slot(context, slot).await {
            Ok(Slot::Needed) => {}
            Ok(Slot::Freed) => clean = false,
            Ok(Slot::Left(lease, uid)) => left.push((lease, uid)),
            // The others do not wait for one that cannot be looked at.
            Err(error) => {
                context.metrics.failed(&error);
                tracing::warn!(slot, %error, "failed to look at a slot, will try again");
            }
        }
    }
    if left.is_empty() {
        return Ok(clean);
    }
    free_slots(context, left).await?;
    Ok(false)
}

/// What is to be done with a slot that nobody seems to need.
enum Slot {
    /// Somebody needs it.
    Needed,
    /// Its cell was gone, and it was freed.
    Freed,
    /// Its preview, with this uid, is gone or over.
    Left(Box<Lease>, String),
}

/// Looks at one slot as it is now.
async fn look_at_slot(context: &Context, name: &str) -> Result<Slot> {
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let there = found(leases.get(name).await).map_err(Error::kube("get", "Lease", name))?;
    let holder = |lease: &Lease| lease.spec.as_ref()?.holder_identity.clone();
    let Some((lease, uid)) = there.and_then(|lease| holder(&lease).map(|uid| (lease, uid))) else {
        return Ok(Slot::Needed);
    };
    if let Some(cell) = lease.annotations().get(names::CELL_ANNOTATION) {
        let namespaces: Api<Namespace> = Api::all(context.client.clone());
        let there = found(namespaces.get_metadata(cell).await);
        let there = there.map_err(Error::kube("get", "Namespace", cell))?;
        // What a cell that goes held, is given back by whoever removes it; this is for what was missed.
        if there.and_then(|cell| cell.uid()) == Some(uid) {
            return Ok(Slot::Needed);
        }
        tracing::warn!(slot = name, cell, "freeing a slot whose cell is gone");
        own_slots::give_back(context, std::slice::from_ref(&lease)).await?;
        return Ok(Slot::Freed);
    }
    if needs_slot(context, lease.annotations(), &uid).await? {
        return Ok(Slot::Needed);
    }
    Ok(Slot::Left(Box::new(lease), uid))
}

/// Frees those of previews that are gone or over. A slot goes last: while a cell of its preview is there, as they are now, something of it
/// may run.
async fn free_slots(context: &Context, left: Vec<(Box<Lease>, String)>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let mut had = HashSet::new();
    api::each_in(&namespaces, names::CELL_SELECTOR, |cell: &Cell| {
        had.extend(Record::of(&cell.metadata).and_then(|record| record.tenant));
    })
    .await
    .map_err(Error::kube("list", "Namespace", "cells"))?;
    for (lease, uid) in left {
        let cell = names::cell(&uid);
        let there = found(namespaces.get_metadata(&cell).await);
        let there = there.map_err(Error::kube("get", "Namespace", &cell))?;
        if had.contains(&uid) || there.is_some() {
            continue;
        }
        tracing::warn!(
            slot = lease.name_any(),
            preview_uid = uid,
            "freeing a slot whose preview is gone or over"
        );
        own_slots::give_back(context, std::slice::from_ref(&*lease)).await?;
        context.metrics.orphans.inc();
    }
    Ok(())
}

/// What is left of the preview that an object was made for.
enum Left {
    /// It exists, in this phase.
    There(Phase),
    /// It exists and cannot be read: it is not ours to judge.
    Unreadable,
    /// It is gone, or another one has its name.
    Gone,
}

async fn left(context: &Context, annotations: &BTreeMap<String, String>, uid: &str) -> Result<Left> {
    let Some((namespace, name)) = whose(annotations) else {
        return Ok(Left::Gone);
    };
    let api: Api<PreviewSandbox> = context.api(namespace);
    match api.get(name).await {
        Ok(preview) if preview.uid().as_deref() == Some(uid) => Ok(Left::There(preview.phase())),
        Ok(_) => Ok(Left::Gone),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Left::Gone),
        Err(kube::Error::SerdeError(_)) => Ok(Left::Unreadable),
        Err(error) => Err(Error::kube(
            "get",
            "PreviewSandbox",
            format!("{namespace}/{name}"),
        )(error)),
    }
}

/// Whether a slot's preview is there and not over: an operator that was slower than the end may have taken one after it.
async fn needs_slot(context: &Context, annotations: &BTreeMap<String, String>, uid: &str) -> Result<bool> {
    Ok(match left(context, annotations, uid).await? {
        Left::There(phase) => !phase.is_terminal(),
        Left::Unreadable => true,
        Left::Gone => false,
    })
}

async fn remove(context: &Context, namespace: &Namespace, record: &Record) -> Result<()> {
    let cell = namespace.name_any();
    let api: Api<Pod> = context.api(&cell);
    match found(api.get(names::POD).await).map_err(Error::kube("get", "Pod", &cell))? {
        // It takes a while to go, and counts once.
        None if record.going => {}
        None if record.tenant.is_none() => match cells::remove_free(&context.client, namespace).await {
            // Somebody has taken it meanwhile.
            Err(error) if error.is_conflict() => {}
            removed => removed?,
        },
        None => {
            cells::remove(&context.client, namespace).await?;
            context.metrics.orphans.inc();
        }
        // A preview may have taken the cell since it was read, and this is its pod.
        Some(_)
            if cells::record_now(context, &cell)
                .await?
                .is_some_and(|now| now.tenant != record.tenant) => {}
        Some(pod) => match observe::end(&pod) {
            End::NotAsked => pods::end(context, &pod, GRACE_SECONDS).await?,
            End::Pending => {}
            End::Verified | End::NeverStarted => {
                pods::release_pod(context, &pod).await?;
            }
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_preview_that_ends_still_has_been_ending_for_any_time() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let preview = |phase: &str, since: i64| -> Counted {
            serde_json::from_value(json!({
                "metadata": {"name": "a"}, "spec": {"listingRef": {"name": "l"}, "subject": "s"},
                "status": {"phase": phase, "conditions": [{"type": "Expired", "status": "True", "reason": "TimeOver",
                    "message": "", "lastTransitionTime": at(since).to_string()}]}
            }))
            .unwrap()
        };
        assert_eq!(preview("Ending", 60).ending_for(at(100)), 40);
        // A clock that is behind makes no negative time.
        assert_eq!(preview("Ending", 60).ending_for(at(50)), 0);
        assert_eq!(preview("Ended", 10).ending_for(at(100)), 0);
    }
}
