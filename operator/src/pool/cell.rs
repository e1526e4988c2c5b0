//! One cell of a pool: dereference → decide → apply. Reads and writes that cell, and its slots.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt, core::PartialObjectMeta, runtime::reflector::ObjectRef};
use tokio::time::Instant;
use vitrine_crds::{
    StatusReason,
    preview_pool::ShortReason,
    preview_sandbox::{IsolationEvidence, PodIdentity, TrustLevel},
};
use vitrine_policies::{
    Envelope,
    cell::{
        pod as shape,
        record::{self, Holds, OfPool, Record},
    },
    envelope, names,
    probe::{UP, Verdict},
    queue::{Lack, Place},
    slots::{Dimension, Keys, Owner},
};

use super::{
    confinement::{self, Begun, Doubt, Found},
    decide::{self, Plan, Why, World},
    table::{BEHIND, State, Turn, Warm},
};
use crate::{
    error::{Error, Result, found},
    lanes::Lane,
    preview::{
        Context, cells,
        decide::{Cell, evidence, seal_identity, unsealed},
        dereference, make,
        make::{Podded, Sealed},
        observe, pods, quotas, slots,
        slots::Taken,
        standing, whose,
    },
    workqueue::Action,
};

/// When to look again for slots that were all taken.
const FULL: Duration = Duration::from_secs(5);
/// When to ask again a prober that did not answer.
const PROBER: Duration = Duration::from_millis(500);
/// One look that takes longer is given up and tried again.
const PATIENCE: Duration = Duration::from_secs(60);

type Meta = PartialObjectMeta<Namespace>;

/// Looks at a pool's cell that waits and does what is next.
///
/// # Errors
/// If the API server refuses or does not answer.
pub async fn step(context: &Context, name: &str, of: &OfPool) -> Result<Action> {
    let pools = &context.pools;
    let lane = if pools.is_surplus(&of.uid, name) {
        // Previews wait for what has to give way,
        Lane::Begins
    } else if pools.is_known() {
        Lane::Refill
    } else if pools.counts(&of.uid).ready == 0 && context.lanes.few_begin() {
        // and for the first one that is ready after a start. Not behind all the others: a preview that could have had the first waited
        // for its turn until three hundred cells had had theirs.
        Lane::Begins
    } else {
        Lane::Lives
    };
    let Some(_turn) = context.lanes.turn(lane).await else {
        return Ok(Action::await_change());
    };
    // What it needs, it gets only now.
    let judge = Box::pin(judge(context, name));
    let judged = tokio::time::timeout(PATIENCE, judge).await;
    judged.unwrap_or_else(|_| {
        Err(Error::Installation(format!(
            "the API server took longer than {} s for cell {name}",
            PATIENCE.as_secs()
        )))
    })
}

/// A pool's cell that no preview has, with what its record says.
pub(super) type Waits = (Meta, Record, OfPool);

/// A cell as the watch has it now, which may be newer than what woke this; if it is no pool's, or a preview has it, when it is to be looked
/// at again.
pub(super) fn waiting(context: &Context, name: &str) -> std::result::Result<Waits, Action> {
    let nothing = Err(Action::await_change());
    let Some(cell) = context.watched.cells.get(name) else {
        return nothing;
    };
    let Some(record) = Record::of(&cell.metadata) else {
        return nothing;
    };
    let Some(of) = record.pool.clone() else {
        return nothing;
    };
    if record.tenant.is_some() && !record.going {
        // What a preview has is its own business. Each claim comes by here: nothing is read for it.
        if context.pools.set(&of.uid, name, State::Claimed, None) {
            context.wakes.pool(&of);
        }
        // Told before anybody knew whose it would be.
        if context.pools.was_doubted(&of.uid, name)
            && let Some((namespace, preview)) = whose(cell.annotations())
        {
            context.looks.touch(&ObjectRef::new(preview).within(namespace));
            context.wakes.preview(namespace, preview);
        }
        return nothing;
    }
    let nonce = names::nonce(name, &record.epoch);
    if context
        .pools
        .was_just_taken(&of.uid, name, &nonce, Instant::now())
    {
        return Err(Action::requeue(BEHIND));
    }
    Ok((cell, record, of))
}

async fn judge(context: &Context, name: &str) -> Result<Action> {
    // Not as it was before the wait for a turn: somebody may have it since.
    let (cell, record, of) = match waiting(context, name) {
        Ok(waits) => waits,
        Err(action) => return Ok(action),
    };
    // What is told from here on may be of the pod that is read now, or of what came after it.
    let begun = context.pools.confinement.begin(name);
    let world = look(context, name, record, &of).await?;
    let plan = decide::decide(&world, Timestamp::now());
    tracing::debug!(cell = name, ?plan, "decided");
    apply(context, &cell, &of, &world, begun, plan).await
}

async fn look(context: &Context, name: &str, record: Record, of: &OfPool) -> Result<World> {
    let pool = context.watched.pool(of);
    let policy = context.watched.policy();
    let listing = pool.as_ref().and_then(|pool| {
        context
            .watched
            .listing(&of.namespace, &pool.spec.listing_ref.name)
    });
    let envelope = match (&pool, &policy, &listing) {
        (Some(pool), Some(policy), Some(listing)) if pool.metadata.deletion_timestamp.is_none() => {
            envelope::of_pool(&policy.spec, listing, &pool.spec).ok()
        }
        _ => None,
    };
    let template = envelope.as_ref().zip(pool.as_ref()).map(|(envelope, pool)| {
        (
            shape::template(envelope, &context.settings.probe),
            record::lot(envelope, pool.spec.trust_level, &context.settings.house),
        )
    });
    let pod = pod(context, name).await?;
    let uid = context.watched.cells.get(name).and_then(|cell| cell.uid());
    let held = uid.map_or_else(Vec::new, |uid| context.watched.slots.held_by(&uid));
    let own = record.holds.as_ref().map_or(&[][..], |holds| &holds.slots);
    let holds_more = record.holds.is_some() && held.iter().any(|slot| !own.contains(slot));
    let table = &context.pools;
    let warm = table.warm(&of.uid, name);
    let proven = pod
        .as_ref()
        .zip(warm)
        .is_some_and(|(pod, warm)| pod.uid().as_ref() == Some(&warm.pod.uid));
    let node = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    let pending = pod
        .as_ref()
        .is_some_and(|pod| observe::end(pod) == observe::End::Pending);
    let node_gone = pending && dereference::removed(context, node.as_deref()).await == Some(true);
    Ok(World {
        record,
        pod,
        envelope,
        template,
        policy: policy.map(|policy| policy.spec.clone()),
        max_age: pool
            .as_ref()
            .map_or(Duration::ZERO, |pool| pool.spec.max_age.as_duration()),
        surplus: table.is_surplus(&of.uid, name),
        needed: table.needs(&of.uid, name),
        paused: pool.as_ref().is_none_or(|pool| pool.spec.paused) || context.watched.admission_is_suspended(),
        proven,
        distrusted: node.and_then(|node| context.watched.distrusts(Some(&node))),
        node_gone,
        holds_any: !held.is_empty(),
        holds_more,
    })
}

/// The pod in a cell. Not asked for where there was none and no watch has told of one: a cell that rests is looked at whenever its pool
/// changes.
async fn pod(context: &Context, cell: &str) -> Result<Option<Pod>> {
    let confinement = &context.pools.confinement;
    if confinement.is_empty(cell) {
        return Ok(None);
    }
    let begun = confinement.begin(cell);
    let pods: Api<Pod> = context.api(cell);
    let pod = found(pods.get(names::POD).await).map_err(Error::kube("get", "Pod", cell))?;
    if pod.is_none() {
        confinement.found_empty(cell, begun);
    }
    Ok(pod)
}

async fn apply(
    context: &Context,
    cell: &Meta,
    of: &OfPool,
    world: &World,
    begun: Begun,
    plan: Plan,
) -> Result<Action> {
    let name = cell.name_any();
    let set = |state, warm| {
        if context.pools.set(&of.uid, &name, state, warm) {
            context.wakes.pool(of);
        }
    };
    if let (Plan::EndPod | Plan::ReleasePod, Some(pod)) = (&plan, &world.pod)
        && cells::is_of_now(context, &name, pod).await?
    {
        return Ok(Action::requeue(BEHIND));
    }
    match plan {
        Plan::Idle(after) => {
            set(
                if is_current(world) {
                    State::Warming
                } else {
                    leaving(world)
                },
                None,
            );
            Ok(Action::requeue(after))
        }
        Plan::Rest => {
            set(State::Empty, None);
            Ok(Action::requeue(decide::SAFETY))
        }
        Plan::Hold => {
            set(State::Making, None);
            hold(context, cell, of, world).await
        }
        Plan::Fill => fill(context, cell, of, world).await,
        Plan::Renew(Why::Old) if !context.pools.renews(&of.uid, &name) => {
            Ok(Action::requeue(look_again(world)))
        }
        Plan::Renew(why) => {
            set(leaving(world), None);
            tell(context, &name, of, world, &why).await?;
            renew(context, cell).await
        }
        Plan::EndPod => {
            set(leaving(world), None);
            if let Some(pod) = &world.pod {
                pods::end(context, pod, shape::GRACE_SECONDS).await?;
            }
            Ok(Action::requeue(decide::SAFETY))
        }
        Plan::ReleasePod => {
            if let Some(pod) = &world.pod {
                if world.node_gone {
                    pods::end(context, pod, 0).await?;
                }
                pods::release_pod(context, pod).await?;
            }
            Ok(Action::requeue(decide::SAFETY))
        }
        Plan::Prove(verdict) => {
            let seal = match confined(context, cell, world, begun).await? {
                Ok(seal) => seal,
                Err(broken) => {
                    tracing::warn!(
                        cell = name,
                        broken,
                        "what confines a cell was changed while its pod came up"
                    );
                    set(State::Going, None);
                    cells::remove_free(&context.client, cell).await?;
                    return Ok(Action::await_change());
                }
            };
            let Some(warm) = prove(context, &name, of, world, &verdict, seal).await else {
                set(State::Warming, None);
                return Ok(Action::requeue(PROBER));
            };
            if !context.pools.ready(&of.uid, begun, warm) {
                set(State::Warming, None);
                return Ok(Action::requeue(Duration::ZERO));
            }
            context.wakes.pool(of);
            Ok(Action::requeue(look_again(world)))
        }
        // As it is known to be, unless somebody has taken it meanwhile.
        Plan::Ready => Ok(Action::requeue(look_again(world))),
        Plan::Remove => {
            set(State::Going, None);
            match cells::remove_free(&context.client, cell).await {
                // Somebody has taken it meanwhile.
                Err(error) if error.is_conflict() => Ok(Action::requeue(BEHIND)),
                removed => removed.map(|()| Action::await_change()),
            }
        }
        Plan::GiveBack => {
            set(State::Going, None);
            // An operator beside this one may have made one that no watch has told of yet: what it holds is taken as long as it runs.
            let pods: Api<Pod> = context.api(&name);
            let pod = found(pods.get_metadata(names::POD).await).map_err(Error::kube("get", "Pod", &name))?;
            if pod.is_some() {
                context.pools.confinement.doubt(&name, Doubt::Content);
                return Ok(Action::requeue(Duration::ZERO));
            }
            // First that it holds none: as long as it says so, they are taken for its own.
            if world.record.holds.is_some()
                && cells::annotate(context, cell, record::holds_nothing())
                    .await?
                    .is_none()
            {
                return Ok(Action::requeue(BEHIND));
            }
            let held = slots::held_by(context, &cell.uid().unwrap_or_default()).await?;
            slots::give_back(context, &held).await?;
            Ok(Action::requeue(decide::SAFETY))
        }
        Plan::Shed => {
            let own = world.record.holds.as_ref().map_or(&[][..], |holds| &holds.slots);
            let mut held = slots::held_by(context, &cell.uid().unwrap_or_default()).await?;
            held.retain(|slot| !own.contains(&slot.name_any()));
            slots::give_back(context, &held).await?;
            Ok(Action::requeue(decide::SAFETY))
        }
    }
}

/// Has the cell be for another pod from now on.
async fn renew(context: &Context, cell: &Meta) -> Result<Action> {
    let renewed = record::renewed(cells::new_epoch(), Timestamp::now());
    cells::annotate(context, cell, renewed).await?;
    Ok(Action::requeue(decide::SAFETY))
}

/// How a cell is whose pod ends: about to be another one's, unless nobody knows when its node says that it has ended.
fn leaving(world: &World) -> State {
    if world.record.going || world.distrusted.is_some() {
        State::Going
    } else {
        State::Emptying
    }
}

fn is_current(world: &World) -> bool {
    let epoch = world
        .pod
        .as_ref()
        .and_then(|pod| pod.annotations().get(names::EPOCH_ANNOTATION));
    epoch == Some(&world.record.epoch)
}

fn look_again(world: &World) -> Duration {
    let pod = world.pod.as_ref();
    pod.map_or(decide::SAFETY, |pod| {
        decide::next_look(pod, world.max_age, Timestamp::now())
    })
}

/// Takes the slots that every preview needs whose listing this is; written on the cell, they are its own.
async fn hold(context: &Context, cell: &Meta, of: &OfPool, world: &World) -> Result<Action> {
    let Some(envelope) = &world.envelope else {
        return Ok(Action::requeue(decide::SAFETY));
    };
    // Read anew: who takes slots must know of a lower limit sooner than the ceilings follow it.
    let Some(policy) = dereference::policy(context).await? else {
        return Ok(Action::requeue(decide::SAFETY));
    };
    let (name, uid) = (cell.name_any(), cell.uid().unwrap_or_default());
    if let Place::Behind(behind) = context.watched.place_of_cell(&uid, envelope, &policy) {
        let reason = match behind.lack {
            _ if behind.position > 1 => ShortReason::GivesWay,
            Lack::Slots { .. } => ShortReason::WaitingForSlot,
            Lack::Room { .. } => ShortReason::WaitingForCapacity,
        };
        lacks(context, of, reason, behind.words());
        return Ok(Action::requeue(FULL));
    }
    let listing = envelope::listing_uid(&envelope.listing).to_owned();
    let owner = Owner::cell(&name, &uid);
    // None of these depends on how well a subject is known.
    let limit = |dimension: Dimension| dimension.limit(&policy.spec, TrustLevel::default());
    let demands = Keys::of_listing(&listing, &envelope.seller).demands(limit);
    if let Some(lack) = context.watched.lacking(&uid, &demands, &policy) {
        lacks(context, of, ShortReason::WaitingForSlot, lack.words());
        return Ok(Action::requeue(FULL));
    }
    match slots::take(context, &owner, &policy, &demands).await? {
        Taken::All(taken) => {
            let holds = Holds {
                listing,
                seller: envelope.seller.clone(),
                size: envelope.resolved().size,
                slots: taken.iter().map(ResourceExt::name_any).collect(),
            };
            context.pools.lacks(&of.uid, None);
            cells::annotate(context, cell, record::holding(&holds)).await?;
            Ok(Action::await_change())
        }
        Taken::Full {
            dimension,
            limit,
            taken,
        } => {
            let lack = Lack::Slots { dimension, limit };
            lacks(context, of, ShortReason::WaitingForSlot, lack.words());
            // Another operator may have got all of them for it, of which these are some: then it has written the cell, and this is refused.
            // The next attempt may come before these are gone: it writes what it finds, and so keeps it.
            let untouched = cells::annotate(context, cell, record::returned(Timestamp::now())).await?;
            if untouched.is_some() {
                slots::give_back(context, &taken).await?;
            }
            Ok(Action::requeue(FULL))
        }
    }
}

/// Says what the next cell of a pool waits for.
fn lacks(context: &Context, of: &OfPool, reason: ShortReason, words: String) {
    context.pools.lacks(&of.uid, Some((reason, words)));
    context.wakes.pool(of);
}

async fn fill(context: &Context, cell: &Meta, of: &OfPool, world: &World) -> Result<Action> {
    let name = cell.name_any();
    let Some(envelope) = &world.envelope else {
        return Ok(Action::requeue(decide::SAFETY));
    };
    if known(context, cell, world).is_none()
        && let Some(action) = confine(context, cell, of, world, envelope).await?
    {
        return Ok(action);
    }
    match context.pools.fill(&of.uid, &name, Instant::now()) {
        Turn::Now => {}
        // Its pool wakes it when it is its turn.
        Turn::After(_) | Turn::Enough => {
            if context.pools.set(&of.uid, &name, State::Empty, None) {
                context.wakes.pool(of);
            }
            return Ok(Action::requeue(decide::SAFETY));
        }
    }
    let policy = context.watched.policy();
    // Whatever comes of it, and whenever the watch tells.
    context.pools.confinement.doubt(&name, Doubt::Content);
    match make::pod(
        context,
        &name,
        &world.record.epoch,
        envelope,
        policy.as_ref(),
        Some(&of.uid),
    )
    .await?
    {
        // What it says wakes this; that it says nothing is looked at when its time is over.
        Podded::There(_) => Ok(Action::requeue(envelope.provisioning_deadline.as_duration())),
        Podded::Again => {
            // Its quota was made to count anew, perhaps, and the watch has not told.
            context.pools.confinement.doubt(&name, Doubt::Confinement);
            Ok(Action::requeue(Duration::ZERO))
        }
        Podded::Refused(error) => {
            // Because a part of it is missing, perhaps, of which no watch has told.
            context.pools.confinement.doubt(&name, Doubt::Confinement);
            if quotas::is_by_quota(&error) {
                return give_up(context, cell, of, &error).await;
            }
            context.pools.failed(&of.uid, &error.to_string(), Instant::now());
            context.wakes.pool(of);
            Err(error)
        }
    }
}

/// Removes a cell in which something else is, so that its quota has no room for what is to be in it.
async fn give_up(context: &Context, cell: &Meta, of: &OfPool, error: &Error) -> Result<Action> {
    tracing::warn!(cell = cell.name_any(), %error, "something else is in a cell that nobody has: it is removed");
    context.pools.failed(&of.uid, &error.to_string(), Instant::now());
    context.wakes.pool(of);
    cells::remove_free(&context.client, cell).await?;
    Ok(Action::await_change())
}

/// What a look at all of a cell has found that confines it as it is to be, and nobody doubts since.
fn known(context: &Context, cell: &Meta, world: &World) -> Option<Found> {
    let (_, lot) = world.template.as_ref()?;
    let confinement = &context.pools.confinement;
    confinement.of(&cell.name_any(), cell.metadata.uid.as_ref(), lot, Instant::now())
}

/// Has a cell confined as it is to be; what comes then, if it is not yet or cannot be.
async fn confine(
    context: &Context,
    cell: &Meta,
    of: &OfPool,
    world: &World,
    envelope: &Envelope,
) -> Result<Option<Action>> {
    let name = cell.name_any();
    let begun = context.pools.confinement.begin(&name);
    // Of one that is new nothing has to be read before the rest is made; what is there all the same the next look finds, before a pod is.
    let new = context.pools.confinement.take_new(&name);
    let there = if new {
        Cell {
            namespace: Some(Namespace {
                metadata: cell.metadata.clone(),
                ..Namespace::default()
            }),
            ..Cell::default()
        }
    } else {
        dereference::cell(context, &name).await?
    };
    if !there.foreign_policies.is_empty() {
        tracing::warn!(
            cell = name,
            "a foreign NetworkPolicy stands in a cell that nobody has: it is removed"
        );
        cells::remove_free(&context.client, cell).await?;
        return Ok(Some(Action::await_change()));
    }
    match make::seal(context, &name, &there, envelope).await? {
        Sealed::Whole(_) if !new => {}
        Sealed::Whole(_) | Sealed::Again => return Ok(Some(Action::requeue(Duration::ZERO))),
        Sealed::Refused(error) => return give_up(context, cell, of, &error).await.map(Some),
        // A watch tells when to go on.
        Sealed::Unfurnished | Sealed::Uncounted(_) => {
            context.pools.set(&of.uid, &name, State::Making, None);
            return Ok(Some(Action::requeue(quotas::FURNISHED)));
        }
    }
    if let Some(broken) = unsealed(&name, &there, envelope, &context.settings.house) {
        tracing::warn!(
            cell = name,
            broken,
            "what confines a cell that nobody has was changed: it is removed"
        );
        cells::remove_free(&context.client, cell).await?;
        return Ok(Some(Action::await_change()));
    }
    remember(context, &name, world, &there, begun);
    Ok(None)
}

/// What the network policy of a cell that is confined as it is to be is known by, or what of it does not confine its pod.
async fn confined(
    context: &Context,
    cell: &Meta,
    world: &World,
    begun: Begun,
) -> Result<std::result::Result<String, &'static str>> {
    if let Some(found) = known(context, cell, world) {
        return Ok(Ok(found.seal.into()));
    }
    let name = cell.name_any();
    let there = dereference::cell(context, &name).await?;
    if let Some(broken) = opened(context, &name, &there, world) {
        return Ok(Err(broken));
    }
    remember(context, &name, world, &there, begun);
    let policy = there.network_policy.as_ref();
    Ok(policy.map(seal_identity).ok_or("the NetworkPolicy"))
}

/// Spares the next look the reads, if all of it was there.
fn remember(context: &Context, name: &str, world: &World, there: &Cell, begun: Begun) {
    if let (true, Some(uid), Some((_, lot)), Some(policy), Some(quota), Some(closed)) = (
        there.is_whole(),
        there.namespace.as_ref().and_then(ResourceExt::uid),
        &world.template,
        &there.network_policy,
        &there.quota,
        &there.closed,
    ) {
        let found = Found {
            which: confinement::which(&uid, lot),
            seal: seal_identity(policy).into(),
            quotas: [quota, closed].map(confinement::allows),
            at: Instant::now(),
        };
        context.pools.confinement.found(name, begun, found);
    }
}

/// What of a cell does not confine its pod as it should.
fn opened(context: &Context, name: &str, there: &Cell, world: &World) -> Option<&'static str> {
    if !there.is_whole() {
        return Some("a part of it is missing");
    }
    if !there.foreign_policies.is_empty() {
        return Some("a foreign NetworkPolicy stands in it");
    }
    let envelope = world.envelope.as_ref()?;
    unsealed(name, there, envelope, &context.settings.house)
}

/// Asks whether what its pod found shut is up; the cell as it is ready then.
async fn prove(
    context: &Context,
    name: &str,
    of: &OfPool,
    world: &World,
    verdict: &Verdict,
    seal: String,
) -> Option<Warm> {
    let pod = world.pod.as_ref()?;
    let addresses: Vec<_> = verdict
        .targets
        .iter()
        .map(|target| target.address.clone())
        .collect();
    let outside = match context.prober.ask(&addresses).await {
        Ok(outside) => outside,
        Err(error) => {
            tracing::warn!(cell = name, error, "the unconfined prober did not answer");
            return None;
        }
    };
    let targets = evidence(verdict, &outside);
    if let Some(down) = targets
        .iter()
        .find(|target| target.required && target.outside != UP)
    {
        tracing::warn!(
            cell = name,
            target = down.name,
            "a target was silent, but it was not up either"
        );
        return None;
    }
    let (template, lot) = world.template.as_ref()?;
    let view = observe::view(pod, &names::nonce(name, &world.record.epoch));
    let port = world
        .envelope
        .as_ref()
        .map_or(0, |envelope| i32::from(envelope.port));
    Some(Warm {
        cell: name.to_owned(),
        pool: of.clone(),
        kind: super::kind_of(template, lot),
        pod: PodIdentity {
            uid: view.uid.clone(),
            ip: view.ip.clone(),
            port,
            nonce: Some(names::nonce(name, &world.record.epoch)),
        },
        node: view.node.clone(),
        seal,
        isolation: IsolationEvidence {
            proven_at: Time(Timestamp::now()),
            pod_uid: view.uid,
            rounds: i32::try_from(verdict.rounds).unwrap_or(i32::MAX),
            image_volumes: verdict.image_volumes,
            targets,
        },
        since: Instant::now(),
    })
}

/// Says why a pod that waited is ended; its node gets no other where that is the reason.
async fn tell(context: &Context, name: &str, of: &OfPool, world: &World, why: &Why) -> Result<()> {
    let Why::Failed(reason, message) = why else {
        return Ok(());
    };
    context.pools.failed(
        &of.uid,
        &format!("{}: {message}", reason.as_str()),
        Instant::now(),
    );
    let node = world
        .pod
        .as_ref()
        .and_then(|pod| pod.spec.as_ref()?.node_name.clone());
    let breach = match reason {
        StatusReason::NetworkNotEnforcing | StatusReason::ImageVolumes => true,
        StatusReason::IsolationBroken => message.starts_with(observe::BREACH),
        _ => false,
    };
    let (true, Some(node)) = (breach, node) else {
        return Ok(());
    };
    // A node cannot enforce a policy that somebody has taken away.
    let there = dereference::cell(context, name).await?;
    if let Some(broken) = opened(context, name, &there, world) {
        tracing::warn!(
            cell = name,
            broken,
            node,
            "the node is not blamed for a cell that was open"
        );
        return Ok(());
    }
    standing::quarantine(context, node, message).await
}
