//! Takes slots, gives them back, and keeps the ceilings below which they are. Writes Leases and the policy's status.
//!
//! What makes a slot a limit is that creating a Lease under its name succeeds once. The rest keeps a slot from being given
//! back under a preview that has just been admitted with it:
//! - whoever takes over a slot that an earlier attempt has left writes it first, so that its resourceVersion is new;
//! - whoever gives slots back deletes the very version that was read or written, and if the preview lives on, has written
//!   the preview in between: an admission that began earlier fails at its status, one that begins later writes the slot.
//!
//! `policies/tests/slot_protocol.rs` tries every order of these writes.

use std::collections::HashMap;

use futures::future::{join_all, try_join_all};
use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use vitrine_crds::{
    PreviewPolicy, PreviewSandbox, PreviewSandboxStatus,
    conditions::{self, types},
    preview_policy::Ceilings,
};
use vitrine_policies::{
    Envelope, envelope,
    slots::{self, Demand, Dimension, Holder, Keys, Owner},
};

use super::{Context, decide::Lost, standing};
use crate::{
    api,
    error::{Error, Result, found},
};

/// After a limit was lowered by 450, each admission asked for 450 slots in each of three dimensions, and the API server did
/// not keep up. A list of one key's slots is one request, which the API server answers from its cache at one revision.
const ASKED_ONE_BY_ONE: usize = 8;

/// What came of an attempt to take slots.
#[derive(Clone, Debug)]
pub enum Taken {
    /// One of every demand.
    All(Vec<Lease>),
    /// One dimension had none.
    Full {
        /// Which.
        dimension: Dimension,
        /// Its limit.
        limit: i32,
        /// What was taken of the others, to be given back.
        taken: Vec<Lease>,
    },
}

/// Which of its slots a live preview has lost. Asks only for those that the watch does not show as its own.
///
/// # Errors
/// If the API server does not answer.
pub async fn lost(context: &Context, status: &PreviewSandboxStatus, uid: &str) -> Result<Vec<Lost>> {
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let unseen = |name: &&String| !context.watched.slots.is_held_by(name, uid);
    let asked = status.slots.iter().filter(unseen).map(|name| {
        let leases = leases.clone();
        async move {
            let there = found(leases.get(name).await).map_err(Error::kube("get", "Lease", name))?;
            Ok::<_, Error>(match there {
                None => Some(Lost::Gone(name.clone())),
                Some(slot) => (!holds(&slot, uid)).then(|| Lost::Taken(name.clone())),
            })
        }
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

/// Takes slots again that a live preview has lost, and says which. One that somebody takes meanwhile is his: the next look tells.
///
/// # Errors
/// If the API server does not answer.
pub async fn retake(
    context: &Context,
    preview: &PreviewSandbox,
    envelope: &Envelope,
    lost: &[String],
) -> Result<Vec<String>> {
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let keys = Keys::new(
        preview,
        envelope::listing_uid(&envelope.listing),
        &envelope.seller,
    );
    let mut taken = vec![];
    for name in lost {
        let Some((dimension, index)) = slots::parse(name) else {
            continue;
        };
        let Some((_, key)) = keys.each().find(|(of, _)| *of == dimension) else {
            continue;
        };
        let demand = Demand {
            dimension,
            key: key.to_owned(),
            limit: index.saturating_add(1),
        };
        if claim(context, &leases, &Owner::preview(preview), &demand, index)
            .await?
            .is_some()
        {
            taken.push(name.clone());
        }
    }
    Ok(taken)
}

/// Takes one slot for every demand. All at once, and whoever lacks one keeps none: nobody waits while holding.
///
/// # Errors
/// If the API server does not answer; what was taken until then is taken over by the next attempt.
pub async fn take(
    context: &Context,
    owner: &Owner,
    policy: &PreviewPolicy,
    demands: &[Demand],
) -> Result<Taken> {
    let ceilings = raise(context, policy).await?;
    let attempts = demands
        .iter()
        .map(|demand| one(context, owner, demand, &ceilings));
    let mut taken = vec![];
    let mut full = None;
    for (demand, slot) in demands.iter().zip(join_all(attempts).await) {
        match slot? {
            Some(slot) => taken.push(slot),
            None => full = full.or(Some((demand.dimension, demand.limit))),
        }
    }
    Ok(match full {
        None => Taken::All(taken),
        Some((dimension, limit)) => Taken::Full {
            dimension,
            limit,
            taken,
        },
    })
}

async fn one(
    context: &Context,
    owner: &Owner,
    demand: &Demand,
    ceilings: &Ceilings,
) -> Result<Option<Lease>> {
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let uid = &owner.uid;
    let ceiling = demand.dimension.ceiling(ceilings);
    let limit = demand.limit.min(ceiling);
    let stem = slots::stem(demand.dimension, &demand.key);
    let name = |index| format!("{stem}-{index}");
    let watched = &context.watched;
    // Left from a time when the limit was higher, or held by previews of a trust level that may have more.
    let over: Vec<String> = (limit..ceiling).map(name).collect();
    let there = stored(&leases, demand, &over).await?;
    let above = over
        .iter()
        .filter(|name| match there.get(*name) {
            Some(lease) => slots::holder(lease, &demand.key, uid) != Holder::Us,
            None => watched.is_lived_with(name),
        })
        .count();
    let above = i32::try_from(above).unwrap_or(i32::MAX);
    let indices = slots::indices(limit, above, uid);
    // What an earlier attempt has left comes first, so that one preview does not hold two.
    let left = watched.slots.held_by(uid);
    let own = |index: &i32| left.contains(&name(*index));
    // A watch that is behind makes a try fail or a preview wait for the next look; it never gives a slot away. One that somebody
    // has deleted under a live preview is left to that preview.
    let free = |index: &i32| {
        let name = name(*index);
        !watched.slots.is_held(&name) && !watched.is_lived_with(&name)
    };
    let own: Vec<i32> = if left.is_empty() {
        vec![]
    } else {
        indices.iter().copied().filter(own).collect()
    };
    for index in own.into_iter().chain(indices.into_iter().filter(free)) {
        if let Some(slot) = claim(context, &leases, owner, demand, index).await? {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// Those of these slots that are held, as they are stored: asked one by one as long as that is little.
async fn stored(leases: &Api<Lease>, demand: &Demand, names: &[String]) -> Result<HashMap<String, Lease>> {
    let there = if names.len() <= ASKED_ONE_BY_ONE {
        let asked = names.iter().map(|name| async move {
            let there = found(leases.get(name).await);
            there.map_err(Error::kube("get", "Lease", name))
        });
        try_join_all(asked).await?.into_iter().flatten().collect()
    } else {
        let key = slots::key_label(demand.dimension, &demand.key);
        let of_key = ListParams::default().labels(&format!("{}={key}", slots::KEY_LABEL));
        let list = leases.list(&of_key).await;
        list.map_err(Error::kube("list", "Lease", key))?.items
    };
    Ok(there.into_iter().map(|slot| (slot.name_any(), slot)).collect())
}

/// Creating the Lease is the compare-and-set: two operators, or one that was killed here before, come to one slot.
async fn claim(
    context: &Context,
    leases: &Api<Lease>,
    owner: &Owner,
    demand: &Demand,
    index: i32,
) -> Result<Option<Lease>> {
    let lease = slots::lease(
        &context.settings.slots,
        demand.dimension,
        &demand.key,
        index,
        owner,
    );
    let name = lease.name_any();
    let created = leases.create(&PostParams::default(), &lease).await;
    match created.map_err(Error::kube("create", "Lease", &name)) {
        Ok(lease) => return Ok(Some(lease)),
        Err(error) if error.is_conflict() => {}
        Err(error) => return Err(error),
    }
    let there = found(leases.get(&name).await).map_err(Error::kube("get", "Lease", &name))?;
    let Some(mut there) = there else { return Ok(None) };
    match slots::holder(&there, &demand.key, &owner.uid) {
        Holder::Other => Ok(None),
        Holder::Foreign => Err(Error::Foreign { kind: "Lease", name }),
        Holder::Us => {
            there.metadata.managed_fields = None;
            there.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
            let touched = leases.replace(&name, &PostParams::default(), &there).await;
            touched.map(Some).map_err(Error::kube("take over", "Lease", name))
        }
    }
}

/// Frees slots, each in the very version that is given: one that was written since is somebody's. Whether none was. Of a preview that
/// lives on, only after a write to the preview.
///
/// # Errors
/// If the API server does not answer.
pub async fn give_back(context: &Context, slots: &[Lease]) -> Result<bool> {
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let freed = slots.iter().map(|slot| {
        let (leases, name) = (leases.clone(), slot.name_any());
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: slot.uid(),
            resource_version: slot.resource_version(),
        });
        async move {
            let freed = found(leases.delete(&name, &params).await);
            match freed.map_err(Error::kube("free", "Lease", name)) {
                Err(error) if error.is_conflict() => Ok(false),
                freed => freed.map(|_| true),
            }
        }
    });
    Ok(try_join_all(freed).await?.into_iter().all(|free| free))
}

/// The slots that a preview at its end still holds.
///
/// # Errors
/// If the API server does not answer.
pub async fn held(context: &Context, status: &PreviewSandboxStatus, uid: &str) -> Result<Vec<Lease>> {
    if !conditions::is_true(&status.conditions, types::ADMITTED)
        || context.watched.holds_beside(uid, &status.slots)
    {
        return held_by(context, uid).await;
    }
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let slots = status.slots.iter().map(|name| {
        let leases = leases.clone();
        async move { found(leases.get(name).await).map_err(Error::kube("get", "Lease", name)) }
    });
    let slots = try_join_all(slots).await?;
    Ok(slots
        .into_iter()
        .flatten()
        .filter(|slot| holds(slot, uid))
        .collect())
}

/// All slots that a preview holds, also those that no status names: an admission may have been cut off, or two operators
/// may each have taken one.
///
/// # Errors
/// If the API server does not answer.
pub async fn held_by(context: &Context, uid: &str) -> Result<Vec<Lease>> {
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let own = ListParams::default().labels(&format!("{}={uid}", slots::HOLDER_LABEL));
    let list = leases.list(&own).await;
    let list = list.map_err(Error::kube("list", "Lease", &context.settings.slots))?;
    Ok(list.items.into_iter().filter(|slot| holds(slot, uid)).collect())
}

fn holds(slot: &Lease, uid: &str) -> bool {
    slot.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) == Some(uid)
}

/// Raises the ceilings to what the policy needs. Before any slot of a raised limit is taken: who takes one under a lower
/// limit must know how far up to look.
async fn raise(context: &Context, policy: &PreviewPolicy) -> Result<Ceilings> {
    let now = policy.status.clone().unwrap_or_default().ceilings;
    let raised = slots::raised(&now, &slots::ceilings(&policy.spec));
    if raised != now {
        standing::write(context, policy, |status| status.ceilings = raised).await?;
    }
    Ok(raised)
}

/// Lowers the ceilings to what the policy needs, or to the highest slot that is held.
///
/// Only for a policy that has been as it is for longer than a reconciliation may last: one that began under the policy
/// before may still take a slot that was allowed then.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody raised them meanwhile.
pub async fn lower(context: &Context, policy: &PreviewPolicy) -> Result<()> {
    let now = policy.status.clone().unwrap_or_default().ceilings;
    let mut lowered = slots::ceilings(&policy.spec);
    if slots::raised(&lowered, &now) == lowered {
        return Ok(());
    }
    let leases: Api<Lease> = context.api(&context.settings.slots);
    api::each_in(&leases, slots::DIMENSION_LABEL, |slot| {
        if let Some(name) = slots::Name::read(&slot.name_any()) {
            let ceiling = name.dimension.ceiling_mut(&mut lowered);
            *ceiling = (*ceiling).max(name.index.saturating_add(1));
        }
    })
    .await
    .map_err(Error::kube("list", "Lease", &context.settings.slots))?;
    // Raising is for whoever needs it.
    for dimension in Dimension::ALL {
        let ceiling = dimension.ceiling_mut(&mut lowered);
        *ceiling = (*ceiling).min(dimension.ceiling(&now));
    }
    if lowered != now {
        standing::write(context, policy, |status| status.ceilings = lowered).await?;
    }
    Ok(())
}
