//! Writes a preview's status and publishes its transitions as events. Writes one object.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Resource, ResourceExt,
    api::PostParams,
    runtime::events::{Event, EventType},
};
use vitrine_crds::{
    Phase, PreviewSandbox, PreviewSandboxStatus, StatusReason,
    conditions::{self, types},
    preview_sandbox::AbuseFinding,
};

use super::{Context, report::Report};
use crate::error::{Error, Result};

/// Writes the status if it says anything new. Carries the resourceVersion that was read: whoever decided on an older state
/// is refused and looks again.
///
/// # Errors
/// If the API server refuses, also by conflict.
pub async fn write(context: &Context, preview: &PreviewSandbox, report: Report) -> Result<PreviewSandbox> {
    if !report.differs(preview) {
        return Ok(preview.clone());
    }
    let namespace = preview.namespace().unwrap_or_default();
    let api: Api<PreviewSandbox> = context.api(&namespace);
    let mut next = preview.clone();
    // The API server takes the status only; managed fields are large and its own.
    next.metadata.managed_fields = None;
    next.status = Some(report.status);
    let name = preview.name_any();
    let written = api.replace_status(&name, &PostParams::default(), &next).await;
    let written = written.map_err(Error::kube(
        "write the status of",
        "PreviewSandbox",
        format!("{namespace}/{name}"),
    ))?;
    let (before, after) = (
        preview.status.clone().unwrap_or_default(),
        written.status.clone().unwrap_or_default(),
    );
    count(context, preview, &before, &after);
    for event in transitions(&before, &after) {
        publish(context, preview, event);
    }
    Ok(written)
}

/// Publishes an event, when its turn comes.
pub fn publish(context: &Context, preview: &PreviewSandbox, event: Event) {
    context.herald.tell(event, preview.object_ref(&()));
}

fn count(
    context: &Context,
    preview: &PreviewSandbox,
    before: &PreviewSandboxStatus,
    after: &PreviewSandboxStatus,
) {
    let seconds =
        |later: &jiff::Timestamp, earlier: &jiff::Timestamp| later.duration_since(*earlier).as_secs_f64();
    if before.phase != Phase::Ready
        && after.phase == Phase::Ready
        && let (Some(created), Some(started)) = (&preview.metadata.creation_timestamp, &after.started_at)
    {
        context
            .metrics
            .ready_seconds
            .observe(seconds(&started.0, &created.0));
    }
    if let Some(found) = newly_found(before, after) {
        context
            .metrics
            .abuse
            .with_label_values(&[found.measure.as_str()])
            .inc();
    }
    if let (None, Some(receipt)) = (&before.receipt, &after.receipt) {
        context
            .metrics
            .ends
            .with_label_values(&[receipt.cause.as_str()])
            .inc();
        if let Some(expired) = after.conditions.iter().find(|c| c.type_ == types::EXPIRED) {
            context
                .metrics
                .end_seconds
                .observe(seconds(&receipt.ended_at.0, &expired.last_transition_time.0));
        }
    }
}

/// What is taken for abuse since, or more gravely than before.
fn newly_found<'a>(
    before: &PreviewSandboxStatus,
    after: &'a PreviewSandboxStatus,
) -> Option<&'a AbuseFinding> {
    let known = before.abuse.as_ref().map(|known| known.measure);
    after.abuse.as_ref().filter(|found| known != Some(found.measure))
}

/// An event that no condition tells of.
pub fn warning(reason: &str, note: &str) -> Event {
    Event {
        type_: EventType::Warning,
        reason: reason.to_owned(),
        note: Some(clip(note)),
        action: reason.to_owned(),
        secondary: None,
    }
}

/// The events of a change: one for each condition whose status or reason is new. Pure.
pub fn transitions(before: &PreviewSandboxStatus, after: &PreviewSandboxStatus) -> Vec<Event> {
    let same = |new: &Condition| {
        before
            .conditions
            .iter()
            .any(|old| old.type_ == new.type_ && old.status == new.status && old.reason == new.reason)
    };
    // One that was ready before anybody asked was so in one step: that it is, says all.
    let at_once = after.phase == Phase::Ready && !conditions::is_true(&before.conditions, types::ADMITTED);
    let steps = [types::ADMITTED, types::PROVISIONED, types::ISOLATED];
    let mut events: Vec<_> = after
        .conditions
        .iter()
        .filter(|new| !same(new))
        .filter(|new| !(at_once && steps.contains(&new.type_.as_str())))
        // That the way to readiness has begun is no news; its steps are.
        .filter(|new| !(new.type_ == types::ISOLATED && new.status == "False"))
        .filter(|new| !(new.type_ == types::TORN_DOWN && new.status == "False"))
        // Who deleted it, knows; and its receipt, which comes, says so.
        .filter(|new| !(new.type_ == types::EXPIRED && new.reason == StatusReason::Deleted.as_str()))
        // The end is told by Expired; that Ready fell with it says nothing more.
        .filter(|new| !(new.type_ == types::READY && new.status == "False" && after.phase == Phase::Ending))
        .filter(|new| {
            !(new.type_ == types::ADMITTED && new.status == "False" && after.phase == Phase::Ending)
        })
        .map(|new| Event {
            type_: if is_good(new) {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: new.reason.clone(),
            note: Some(clip(&new.message)),
            action: new.type_.clone(),
            secondary: None,
        })
        .collect();
    if let Some(found) = newly_found(before, after) {
        let (measure, reasons) = (found.measure.as_str(), found.reasons.join(", "));
        let note = format!("{} points, {measure}: {reasons}", found.score);
        events.push(warning("Abuse", &note));
    }
    if before.phase.is_terminal() != after.phase.is_terminal()
        && let Some(event) = receipt(after, "Receipt")
    {
        events.push(event);
    }
    events
}

/// The receipt as an event.
pub fn receipt(status: &PreviewSandboxStatus, reason: &str) -> Option<Event> {
    let mut receipt = status.receipt.clone()?;
    // For people, within a kilobyte: the signed form says the same and more.
    receipt.signed = None;
    let text = serde_json::to_string(&receipt).ok()?;
    Some(Event {
        type_: EventType::Normal,
        reason: reason.to_owned(),
        note: Some(clip(&text)),
        action: types::TORN_DOWN.to_owned(),
        secondary: None,
    })
}

fn is_good(condition: &Condition) -> bool {
    match condition.type_.as_str() {
        types::EXPIRED => matches!(condition.reason.as_str(), "TimeOver" | "Deleted"),
        types::ADMITTED => {
            condition.status == "True"
                || matches!(condition.reason.as_str(), "WaitingForSlot" | "WaitingForCapacity")
        }
        types::READY => condition.status == "True" || condition.reason == "ProductStarting",
        _ => condition.status == "True",
    }
}

/// events.k8s.io/v1 refuses notes over 1 KiB.
fn clip(text: &str) -> String {
    const MOST: usize = 1000;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
