//! What the operator keeps in the policy's status: ceilings of slots, blocked subjects, nodes set aside. Writes that status, and
//! each write keeps what others have written.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, api::PostParams};
use vitrine_crds::{
    POLICY_NAME, PreviewPolicy,
    preview_policy::{BlockedSubject, NodeSetAside, PreviewPolicyStatus},
};

use super::Context;
use crate::error::{Error, Result};

/// How many of each are kept, as the schema has it.
const MOST: usize = 1024;

/// Characters of why a node was set aside, as the schema has it.
pub const MOST_REASON: usize = 512;

/// Changes the status of a policy as it was read.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody wrote meanwhile.
pub async fn write(
    context: &Context,
    policy: &PreviewPolicy,
    change: impl FnOnce(&mut PreviewPolicyStatus),
) -> Result<()> {
    let policies: Api<PreviewPolicy> = Api::all(context.client.clone());
    let mut next = policy.clone();
    next.metadata.managed_fields = None;
    change(next.status.get_or_insert_default());
    let written = policies
        .replace_status(POLICY_NAME, &PostParams::default(), &next)
        .await;
    written.map_err(Error::kube("write the status of", "PreviewPolicy", POLICY_NAME))?;
    Ok(())
}

/// Sets a node aside on which isolation did not hold, for as long as the policy says.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody wrote meanwhile.
pub async fn quarantine(context: &Context, node: String, reason: &str) -> Result<()> {
    let Some(policy) = super::dereference::policy(context).await? else {
        return Ok(());
    };
    let Some(time) = policy.spec.isolation.node_quarantine else {
        return Ok(());
    };
    let now = Timestamp::now();
    let until = now.saturating_add(SignedDuration::try_from(time.as_duration()).unwrap_or_default());
    tracing::error!(node, reason, "isolation did not hold on this node");
    let aside = NodeSetAside {
        name: node,
        until: Time(until.unwrap_or(now)),
        reason: reason.chars().take(MOST_REASON).collect(),
    };
    write(context, &policy, |status| set_aside(status, aside, now)).await
}

/// Adds a block in place of an older one of the same subject.
pub fn block(status: &mut PreviewPolicyStatus, block: BlockedSubject, now: Timestamp) {
    let ends = |known: &BlockedSubject| known.until.as_ref().map_or(Timestamp::MAX, |until| until.0);
    let blocks = &mut status.blocked_subjects;
    blocks.retain(|known| known.sha256 != block.sha256);
    add(blocks, block, ends, now);
}

/// Sets a node aside, in place of an older time.
pub fn set_aside(status: &mut PreviewPolicyStatus, node: NodeSetAside, now: Timestamp) {
    let nodes = &mut status.nodes_set_aside;
    nodes.retain(|known| known.name != node.name);
    add(nodes, node, |known| known.until.0, now);
}

/// Adds one; drops those that are over, and the first to be over if there are too many.
fn add<T>(list: &mut Vec<T>, new: T, ends: impl Fn(&T) -> Timestamp, now: Timestamp) {
    list.retain(|known| ends(known) > now);
    list.sort_by_key(&ends);
    // Before the new one comes: whoever asked for it asks again until it stands there.
    let too_many = (list.len() + 1).saturating_sub(MOST);
    list.drain(..too_many);
    list.push(new);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn of(subject: &str, until: i64) -> BlockedSubject {
        BlockedSubject {
            sha256: subject.to_owned(),
            until: Some(Time(at(until))),
            reason: None,
        }
    }

    #[test]
    fn a_block_replaces_its_like_and_what_is_over_goes() {
        let mut status = PreviewPolicyStatus::default();
        for (subject, until) in [("a", 100), ("b", 50), ("a", 200)] {
            block(&mut status, of(subject, until), at(10));
        }
        let names = |status: &PreviewPolicyStatus| -> Vec<_> {
            let all = status.blocked_subjects.iter();
            all.map(|block| block.sha256.clone()).collect()
        };
        assert_eq!(names(&status), ["b", "a"]);
        block(&mut status, of("c", 300), at(60));
        assert_eq!(names(&status), ["a", "c"]);
        for subject in 0..2000 {
            block(&mut status, of(&subject.to_string(), 1000 + subject), at(60));
        }
        assert_eq!(status.blocked_subjects.len(), MOST);
        assert_eq!(
            names(&status).last().unwrap(),
            "1999",
            "the first to be over went"
        );
        block(&mut status, of("short", 70), at(60));
        assert_eq!(
            names(&status).last().unwrap(),
            "short",
            "the new one stands there in any case"
        );
        assert_eq!(status.blocked_subjects.len(), MOST);
    }

    #[test]
    fn a_node_is_set_aside_once_and_until_the_last_time_that_was_said() {
        let mut status = PreviewPolicyStatus::default();
        let node = |name: &str, until| NodeSetAside {
            name: name.to_owned(),
            until: Time(at(until)),
            reason: "isolation broken".to_owned(),
        };
        set_aside(&mut status, node("n", 100), at(10));
        set_aside(&mut status, node("m", 50), at(10));
        set_aside(&mut status, node("n", 200), at(60));
        let kept: Vec<_> = status.nodes_set_aside.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(kept, ["n"]);
    }
}
