//! How many cells a pool has, and what its status says. Makes Namespaces, writes the pool's status.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, ResourceExt, api::PostParams};
use tokio::time::Instant;
use vitrine_crds::{
    PreviewPolicy, PreviewPool, PreviewPoolStatus, SkuListing, conditions,
    preview_pool::{ALL_READY, FULL, ShortReason},
};
use vitrine_policies::{
    Envelope,
    cell::record::{self, OfPool},
    envelope, names,
};

use super::table::{Counts, State, Turn, Wanted};
use crate::{
    error::{Error, Result},
    lanes::Lane,
    preview::{Context, cells, make},
    workqueue::Action,
};

/// The status follows at most this often: a pool under load changes many times a second, and nobody reads it so fast.
const STATUS: Duration = Duration::from_secs(1);
/// A pool is looked at this often even if nothing says so.
const SAFETY: Duration = Duration::from_secs(30);
/// By how many seconds the status may be wrong about since when the oldest waits.
const OLDEST: i64 = 2;
/// How many namespaces are made in one go.
const BATCH: usize = 8;

/// Looks at a pool and does what is next.
///
/// # Errors
/// If the API server refuses or does not answer.
pub async fn step(context: &Context, pool: &PreviewPool) -> Result<Action> {
    let of = OfPool {
        uid: pool.uid().unwrap_or_default(),
        namespace: pool.namespace().unwrap_or_default(),
        name: pool.name_any(),
    };
    let policy = context.watched.policy();
    let listing = context
        .watched
        .listing(&of.namespace, &pool.spec.listing_ref.name);
    let wants = wants(pool, policy.as_ref(), listing.as_ref());
    let (count, again) = match &wants {
        Ok((envelope, count)) => {
            let wanted = Wanted {
                count: *count,
                refill: pool.spec.refill.clone(),
                kind: super::kind(&context.settings, envelope, pool.spec.trust_level),
            };
            let changed = context.pools.want(&of.uid, wanted);
            if changed {
                // Every cell is judged anew by what is wanted now.
                context.wakes.cells(context.pools.cells(&of.uid));
            }
            let (empty, later) = context.pools.to_fill(&of.uid, Instant::now());
            context.wakes.cells(empty);
            let grown = grow(context, pool, &of, envelope).await?;
            (*count, [later, grown].into_iter().flatten().min())
        }
        Err(_) => {
            context.pools.rest(&of.uid);
            (0, None)
        }
    };
    context.wakes.cells(context.pools.trim(&of.uid));
    tell_totals(context);
    let counts = context.pools.counts(&of.uid);
    let why = wants.err().or_else(|| short(context, &of, pool, counts, count));
    let later = report(context, pool, &of, counts, why).await?;
    let next = [Some(SAFETY), again, later].into_iter().flatten().min();
    Ok(Action::requeue(next.unwrap_or(SAFETY)))
}

/// Forgets what no watch knows: a deletion that was told while nobody listened.
pub fn forget_gone(context: &Context) {
    let there = |cell: &str| context.watched.cells.has(cell);
    context.pools.forget_gone(there, Instant::now());
}

/// Tells in the metrics how many cells there are in which state.
pub fn tell_totals(context: &Context) {
    let totals = context.pools.totals();
    for state in State::ALL {
        let count = totals.get(&state).copied().unwrap_or_default();
        let gauge = context.metrics.pool_cells.with_label_values(&[state.as_str()]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// Has cells that nobody has give way to previews that wait for what they hold.
pub fn make_way(context: &Context) {
    let already = |pool: &str, cell: &str| context.pools.is_surplus(pool, cell);
    for (pool, cell) in context.watched.giving_way(BATCH, already) {
        if context.pools.gives_way(&pool, &cell) {
            tracing::info!(cell = &*cell, pool_uid = pool, "gives way to previews that wait");
            context.wakes.cells([cell.to_string()]);
        }
    }
}

/// What the previews of a pool get, and how many cells are to wait for them; or why none is.
fn wants(
    pool: &PreviewPool,
    policy: Option<&PreviewPolicy>,
    listing: Option<&SkuListing>,
) -> std::result::Result<(Envelope, usize), (ShortReason, String)> {
    if pool.metadata.deletion_timestamp.is_some() {
        return Err((ShortReason::Paused, "the pool is being deleted".to_owned()));
    }
    let policy = policy.ok_or_else(|| {
        let message = "the cluster has no PreviewPolicy named \"default\"";
        (ShortReason::PolicyNotFound, message.to_owned())
    })?;
    let draining = policy
        .status
        .as_ref()
        .and_then(|status| status.draining_until.as_ref());
    if draining.is_some_and(|until| until.0 > Timestamp::now()) {
        let message = "Vitrine is being drained (PreviewPolicy status.drainingUntil)";
        return Err((ShortReason::Paused, message.to_owned()));
    }
    let listing = listing.ok_or_else(|| {
        let message = format!("no SkuListing {:?} in this namespace", pool.spec.listing_ref.name);
        (ShortReason::ListingNotFound, message)
    })?;
    let envelope = envelope::of_pool(&policy.spec, listing, &pool.spec)
        .map_err(|refusal| (ShortReason::ListingRefused, refusal.to_string()))?;
    let count = pool.spec.replicas.min(policy.spec.pools.max_replicas);
    Ok((envelope, usize::try_from(count).unwrap_or_default()))
}

/// Makes the namespaces of cells that are missing; after what time it is the next one's turn.
async fn grow(
    context: &Context,
    pool: &PreviewPool,
    of: &OfPool,
    envelope: &Envelope,
) -> Result<Option<Duration>> {
    if pool.spec.paused || context.watched.admission_is_suspended() {
        return Ok(None);
    }
    let lot = record::lot(envelope, pool.spec.trust_level, &context.settings.house);
    for _ in 0..BATCH {
        // Those that are there wait for slots or room: more would wait with them, however many pools there are.
        if context.pools.lack(&of.uid).is_some() {
            return Ok(None);
        }
        let Some(_turn) = context.lanes.turn(Lane::Refill).await else {
            return Ok(None);
        };
        let name = match context.pools.make(&of.uid, Instant::now()) {
            Ok(name) => name,
            Err(Turn::After(wait)) => return Ok(Some(wait)),
            Err(_) => return Ok(None),
        };
        let made = record::of(of, &name, cells::new_epoch(), lot.clone(), Timestamp::now());
        let begun = context.pools.confinement.begin(&name);
        match make::namespace(context, &made).await {
            Ok(true) => context.pools.confinement.made(&name, begun),
            // Another operator has made it, or an earlier one.
            Ok(false) => {}
            Err(error) => {
                context.pools.forget(&of.uid, &name);
                return Err(error);
            }
        }
    }
    Ok(Some(Duration::ZERO))
}

/// Why fewer are ready than were asked for.
fn short(
    context: &Context,
    of: &OfPool,
    pool: &PreviewPool,
    counts: Counts,
    allowed: usize,
) -> Option<(ShortReason, String)> {
    let asked = usize::try_from(pool.spec.replicas).unwrap_or_default();
    if counts.ready >= asked {
        return None;
    }
    if pool.spec.paused {
        return Some((ShortReason::Paused, "spec.paused is true".to_owned()));
    }
    if let Some(message) = context.pools.failing(&of.uid) {
        return Some((ShortReason::Failing, message));
    }
    if let Some(lack) = context.pools.lack(&of.uid) {
        return Some(lack);
    }
    if counts.ready < allowed {
        let message = format!(
            "{} of {allowed} are ready, {} are being made",
            counts.ready, counts.warming
        );
        return Some((ShortReason::Refilling, message));
    }
    let message = format!("the platform's policy allows {allowed} (PreviewPolicy spec.pools.maxReplicas)");
    Some((ShortReason::OutsideEnvelope, message))
}

/// Writes the status if it says anything new, and was not written just now; when it is to be tried again.
async fn report(
    context: &Context,
    pool: &PreviewPool,
    of: &OfPool,
    counts: Counts,
    why: Option<(ShortReason, String)>,
) -> Result<Option<Duration>> {
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let waited = context.pools.oldest(&of.uid).map(|since| since.elapsed());
    let oldest = waited.and_then(|waited| {
        let since = Timestamp::now()
            .checked_sub(SignedDuration::try_from(waited).ok()?)
            .ok()?;
        Timestamp::from_second(since.as_second()).ok().map(Time)
    });
    let before = pool.status.clone().unwrap_or_default();
    let (reason, message) = why.unzip();
    let mut conditions = before.conditions.clone();
    // The message changes with every cell, and stands beside it.
    conditions::set(
        &mut conditions,
        FULL,
        Some(reason.is_none()),
        reason.map_or(ALL_READY, ShortReason::as_str),
        "",
        pool.metadata.generation,
        &Time(Timestamp::now()),
    );
    let status = PreviewPoolStatus {
        replicas: number(counts.ready + counts.warming),
        ready: number(counts.ready),
        warming: number(counts.warming),
        claimed: number(counts.claimed),
        selector: Some(format!("{}={}", names::POOL_LABEL, of.uid)),
        oldest,
        reason,
        message,
        observed_generation: pool.metadata.generation,
        conditions,
    };
    // It is told from how long it waits: a few seconds more or less are no news.
    let when = |status: &PreviewPoolStatus| status.oldest.as_ref().map(|time| time.0.as_second());
    let moved = match (when(&before), when(&status)) {
        (Some(before), Some(now)) => (before - now).abs() > OLDEST,
        (before, now) => before != now,
    };
    let without = |status: &PreviewPoolStatus| PreviewPoolStatus {
        oldest: None,
        ..status.clone()
    };
    if !moved && without(&before) == without(&status) {
        return Ok(None);
    }
    if let Some(left) = context.pools.may_write(&of.uid, STATUS, Instant::now()) {
        return Ok(Some(left));
    }
    let api: Api<PreviewPool> = context.api(&of.namespace);
    let mut next = pool.clone();
    next.metadata.managed_fields = None;
    next.status = Some(status);
    let written = api.replace_status(&of.name, &PostParams::default(), &next).await;
    written.map_err(Error::kube(
        "write the status of",
        "PreviewPool",
        format!("{}/{}", of.namespace, of.name),
    ))?;
    Ok(None)
}
