//! Reads a preview's pod: what each container is doing and whether its end is proven. Pure.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt;
use vitrine_crds::{Amount, StatusReason};
use vitrine_policies::{
    names,
    probe::{Judgement, Verdict},
};

/// What the init container of the probe has come to.
#[derive(Clone, Debug, PartialEq)]
pub enum Proof {
    /// It has not ended.
    Running,
    /// It saw isolation hold, in this very pod.
    Isolated(Box<Verdict>),
    /// It ended otherwise.
    Failed(StatusReason, String),
}

/// What the seller's container has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Product {
    /// Not started.
    Waiting,
    /// Running; whether it answers.
    Running {
        /// Its readiness check passes.
        ready: bool,
    },
    /// Ended.
    Ended {
        /// Why, in words.
        why: String,
    },
}

/// A container that cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// From the closed list.
    pub reason: StatusReason,
    /// In words.
    pub message: String,
    /// Whether waiting longer is of no use.
    pub hopeless: bool,
}

/// What there is to know of the pod of a live preview.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// Its uid.
    pub uid: String,
    /// The node, once it is bound.
    pub node: Option<String>,
    /// Its address.
    pub ip: Option<String>,
    /// The probe's proof.
    pub proof: Proof,
    /// The sidecar runs and has passed its first round.
    pub watching: bool,
    /// Why the sidecar ended or was restarted, and its words: it saw a breach, could not tell for too long, or somebody else ended it.
    pub watch_broken: Option<(StatusReason, String)>,
    /// The seller's container.
    pub product: Product,
    /// What keeps it from starting.
    pub trouble: Option<Trouble>,
    /// The pod as a whole was given up by node or deadline.
    pub given_up: Option<String>,
}

/// Reads a pod.
pub fn view(pod: &Pod, nonce: &str) -> PodView {
    let status = pod.status.clone().unwrap_or_default();
    let init = status.init_container_statuses.unwrap_or_default();
    let main = status.container_statuses.unwrap_or_default();
    let find = |list: &[ContainerStatus], name: &str| list.iter().find(|c| c.name == name).cloned();
    let watch = find(&init, names::WATCH);
    let product = find(&main, names::PRODUCT);
    let ended = main
        .iter()
        .any(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some()));
    PodView {
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        ip: status.pod_ip,
        proof: proof(find(&init, names::PROVE).as_ref(), nonce),
        watching: watch.as_ref().is_some_and(|w| {
            w.started == Some(true)
                && w.restart_count == 0
                && w.state.as_ref().is_some_and(|s| s.running.is_some())
        }),
        watch_broken: watch.as_ref().and_then(|w| watch_broken(w, ended)),
        product: product.as_ref().map_or(Product::Waiting, product_state),
        trouble: init.iter().chain(&main).find_map(trouble).or_else(|| {
            let scheduled = status
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == "PodScheduled")?;
            (scheduled.status == "False").then(|| Trouble {
                reason: StatusReason::Unschedulable,
                message: scheduled
                    .message
                    .clone()
                    .unwrap_or_else(|| "no node takes the pod".to_owned()),
                hopeless: false,
            })
        }),
        given_up: (status.phase.as_deref() == Some("Failed") && !ended).then(|| {
            let reason = status.reason.unwrap_or_else(|| "Failed".to_owned());
            format!(
                "the pod was given up: {reason} {}",
                status.message.unwrap_or_default()
            )
            .trim_end()
            .to_owned()
        }),
    }
}

/// Whether a pod that nobody uses yet says anything that can be judged: before its probe has ended, only what keeps it from ending is.
pub fn has_news(pod: &Pod) -> bool {
    // Whose verdict it is, is judged by who looks.
    let view = view(pod, "");
    pod.metadata.deletion_timestamp.is_some()
        || view.proof != Proof::Running
        || view.watch_broken.is_some()
        || view.trouble.is_some()
        || view.given_up.is_some()
}

fn proof(prove: Option<&ContainerStatus>, nonce: &str) -> Proof {
    let Some(ended) = prove
        .and_then(|c| c.state.as_ref())
        .and_then(|s| s.terminated.as_ref())
    else {
        return Proof::Running;
    };
    let message = ended.message.as_deref().unwrap_or_default();
    let Ok(verdict) = serde_json::from_str::<Verdict>(message) else {
        return Proof::Failed(
            StatusReason::ProbeFailed,
            format!(
                "the isolation probe ended with code {} and no verdict: {message:?}",
                ended.exit_code
            ),
        );
    };
    if verdict.nonce != nonce {
        return Proof::Failed(
            StatusReason::ProbeFailed,
            "the verdict carries another pod's nonce".to_owned(),
        );
    }
    match (verdict.judgement, ended.exit_code) {
        (Judgement::Isolated, 0) => Proof::Isolated(Box::new(verdict)),
        (Judgement::Leaking, _) => Proof::Failed(StatusReason::NetworkNotEnforcing, verdict.complaint()),
        (Judgement::ImageVolumes, _) => Proof::Failed(StatusReason::ImageVolumes, verdict.complaint()),
        (Judgement::Unproven, _) => Proof::Failed(StatusReason::Unproven, verdict.complaint()),
        (Judgement::Isolated, code) => Proof::Failed(
            StatusReason::ProbeFailed,
            format!("the probe saw isolation but ended with code {code}"),
        ),
    }
}

/// Cores that the product of a pod may use now; `None` if it names none, which the builder always does.
pub fn cpu_limit(pod: &Pod) -> Option<Amount> {
    let product = pod.spec.as_ref()?.containers.first()?;
    let limits = product.resources.as_ref()?.limits.as_ref()?;
    limits.get("cpu")?.0.parse().ok()
}

fn watch_broken(watch: &ContainerStatus, product_ended: bool) -> Option<(StatusReason, String)> {
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|s| s.terminated.clone());
    // One that was started anew ends with other words than the one that saw what happened.
    let ends: Vec<_> = [ended(&watch.state), ended(&watch.last_state)]
        .into_iter()
        .flatten()
        .collect();
    let said = |beginning: &str| {
        let mut words = ends.iter().filter_map(|end| end.message.clone());
        words.find(|message| message.starts_with(beginning))
    };
    if let Some(breach) = said(BREACH) {
        return Some((StatusReason::IsolationBroken, breach));
    }
    if let Some(unproven) = said(UNPROVEN) {
        return Some((StatusReason::Unproven, unproven));
    }
    if watch.restart_count > 0 {
        return Some((StatusReason::IsolationBroken, RESTARTED.to_owned()));
    }
    // After the product's own end the kubelet stops the sidecar, which then ends in order.
    let end = ends.first().filter(|end| !product_ended || end.exit_code != 0)?;
    let message = format!(
        "the isolation sidecar ended with code {}: {:?}",
        end.exit_code,
        end.message.as_deref().unwrap_or_default()
    );
    Some((StatusReason::IsolationBroken, message))
}

/// How the sidecar's last words begin when it saw a breach.
pub const BREACH: &str = "isolation broken";
/// How they begin when for too long it could not tell: that says nothing of the node.
pub const UNPROVEN: &str = "isolation unproven";
/// The words of a sidecar that was started anew, and of whoever sees one: nobody looked in between.
pub const RESTARTED: &str = "the isolation sidecar was restarted";

fn product_state(product: &ContainerStatus) -> Product {
    match &product.state {
        Some(ContainerState {
            terminated: Some(ended),
            ..
        }) => Product::Ended {
            why: format!(
                "exit code {}{}",
                ended.exit_code,
                ended
                    .message
                    .as_deref()
                    .filter(|m| !m.is_empty())
                    .map(|m| format!(": {m}"))
                    .unwrap_or_default()
            ),
        },
        Some(ContainerState { running: Some(_), .. }) => Product::Running { ready: product.ready },
        _ => Product::Waiting,
    }
}

fn trouble(container: &ContainerStatus) -> Option<Trouble> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let kubelet = waiting.reason.as_deref()?;
    let (reason, hopeless) = match kubelet {
        // The kubelet tries once more before it backs off.
        "ErrImagePull" => (StatusReason::ImageUnavailable, false),
        "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            (StatusReason::ImageUnavailable, true)
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            (StatusReason::PodRejected, true)
        }
        "CrashLoopBackOff" => (StatusReason::ProductCrashed, true),
        _ => return None,
    };
    let detail = waiting.message.as_deref().unwrap_or_default();
    Some(Trouble {
        reason,
        message: format!("container {}: {kubelet} {detail}", container.name)
            .trim_end()
            .to_owned(),
        hopeless,
    })
}

/// How far the end of a pod is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not asked to end yet.
    NotAsked,
    /// Something may still run.
    Pending,
    /// It was never bound to a node, and is not going to be.
    NeverStarted,
    /// The kubelet has shown every container terminated.
    Verified,
}

/// Judges whether a pod's end is proven. The pod is kept by our finalizer until it is (docs/adr/0002), so the last state of
/// its containers is always to be seen, also after a crash of ours or a forced deletion by somebody.
pub fn end(pod: &Pod) -> End {
    if pod.metadata.deletion_timestamp.is_none() {
        return End::NotAsked;
    }
    // The API server binds no pod that is being deleted (pkg/registry/core/pod/storage: assignPod).
    if pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()) {
        return End::NeverStarted;
    }
    let Some(status) = &pod.status else {
        return End::Pending;
    };
    // The kubelet gives a deleted pod its terminal phase only once nothing of it runs (KEP-3329).
    let terminal = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let mut containers = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses)
        .flatten();
    let over = |c: &ContainerStatus| match &c.state {
        Some(state) if state.terminated.is_some() => true,
        Some(state) if state.running.is_some() => false,
        // Waiting: over only if no container was ever made for it.
        _ => c.container_id.as_deref().unwrap_or_default().is_empty(),
    };
    if terminal && containers.all(over) {
        End::Verified
    } else {
        End::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn verdict(nonce: &str, judgement: &str) -> String {
        json!({"nonce": nonce, "judgement": judgement, "rounds": 1, "elapsedMs": 5, "canary": true, "targets": [
            {"name": "internet", "address": "203.0.113.10:80", "required": true, "outcome": "reached"}]})
        .to_string()
    }

    fn with_prove(code: i32, message: &str) -> Pod {
        pod(
            json!({"metadata": {"uid": "u"}, "status": {"initContainerStatuses": [
            {"name": "prove", "image": "", "imageID": "", "ready": true, "restartCount": 0,
             "state": {"terminated": {"exitCode": code, "message": message}}}]}}),
        )
    }

    #[test]
    fn only_a_verdict_with_this_pods_nonce_and_exit_0_is_proof() {
        assert!(matches!(
            view(&with_prove(0, &verdict("n", "isolated")), "n").proof,
            Proof::Isolated(_)
        ));
        for (code, message, reason) in [
            (0, verdict("other", "isolated"), StatusReason::ProbeFailed),
            (0, String::new(), StatusReason::ProbeFailed),
            (1, verdict("n", "isolated"), StatusReason::ProbeFailed),
            (1, verdict("n", "leaking"), StatusReason::NetworkNotEnforcing),
            (0, verdict("n", "leaking"), StatusReason::NetworkNotEnforcing),
            (1, verdict("n", "unproven"), StatusReason::Unproven),
        ] {
            match view(&with_prove(code, &message), "n").proof {
                Proof::Failed(found, _) => assert_eq!(found, reason, "{code} {message}"),
                other => panic!("{code} {message}: {other:?}"),
            }
        }
    }

    fn ending(node: Option<&str>, phase: &str, states: &[serde_json::Value]) -> Pod {
        let containers: Vec<_> = states
            .iter()
            .enumerate()
            .map(|(i, state)| json!({"name": format!("c{i}"), "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "containerID": if state.get("waiting").is_some() { "" } else { "containerd://1" }, "state": state}))
            .collect();
        pod(
            json!({"metadata": {"uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase, "containerStatuses": containers}}),
        )
    }

    #[test]
    fn an_end_is_proven_only_by_terminated_containers_in_a_terminal_pod() {
        let (over, runs) = (json!({"terminated": {"exitCode": 137}}), json!({"running": {}}));
        assert_eq!(
            end(&ending(Some("n"), "Failed", &[over.clone(), over.clone()])),
            End::Verified
        );
        assert_eq!(
            end(&ending(Some("n"), "Failed", &[over.clone(), runs])),
            End::Pending
        );
        assert_eq!(
            end(&ending(Some("n"), "Running", std::slice::from_ref(&over))),
            End::Pending
        );
        assert_eq!(end(&ending(Some("n"), "Pending", &[])), End::Pending);
        assert_eq!(end(&ending(None, "Pending", &[])), End::NeverStarted);
        assert_eq!(
            end(&ending(Some("n"), "Failed", &[over, json!({"waiting": {}})])),
            End::Verified
        );
        assert_eq!(end(&pod(json!({"metadata": {"uid": "u"}}))), End::NotAsked);
    }

    #[test]
    fn a_sidecar_that_ended_or_was_restarted_is_a_breach() {
        let watch = |state: serde_json::Value, restarts: i32| {
            pod(
                json!({"metadata": {"uid": "u"}, "status": {"initContainerStatuses": [
                {"name": "watch", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": restarts, "state": state}]}}),
            )
        };
        assert_eq!(view(&watch(json!({"running": {}}), 0), "n").watch_broken, None);
        assert!(view(&watch(json!({"running": {}}), 0), "n").watching);
        assert!(
            view(&watch(json!({"running": {}}), 1), "n")
                .watch_broken
                .is_some()
        );
        let said = |message: &str, restarts| {
            let ended = json!({"terminated": {"exitCode": 0, "message": message}});
            view(&watch(ended, restarts), "n").watch_broken
        };
        for (message, reason) in [
            ("isolation broken: internet", StatusReason::IsolationBroken),
            (
                "isolation unproven for 15s: the canary does not answer",
                StatusReason::Unproven,
            ),
        ] {
            assert_eq!(said(message, 0), Some((reason, message.to_owned())));
        }
        let restarted = (StatusReason::IsolationBroken, RESTARTED.to_owned());
        assert_eq!(said(RESTARTED, 1), Some(restarted));
        // Nobody looked while it saw a breach, was started anew, and ended with the pod.
        let mut twice = watch(json!({"terminated": {"exitCode": 0, "message": RESTARTED}}), 1);
        let sidecar = &mut twice
            .status
            .as_mut()
            .unwrap()
            .init_container_statuses
            .as_mut()
            .unwrap()[0];
        let first = json!({"terminated": {"exitCode": 1, "message": "isolation broken: internet"}});
        sidecar.last_state = serde_json::from_value(first).unwrap();
        let breach = (
            StatusReason::IsolationBroken,
            "isolation broken: internet".to_owned(),
        );
        assert_eq!(view(&twice, "n").watch_broken, Some(breach));
    }

    #[test]
    fn an_image_that_cannot_be_had_is_told_at_once_and_given_up_at_the_second_try() {
        let waiting = |reason: &str| {
            pod(json!({"metadata": {"uid": "u"}, "status": {"containerStatuses": [
                {"name": "product", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": reason, "message": "not found"}}}]}}))
        };
        let first = view(&waiting("ErrImagePull"), "n").trouble.unwrap();
        assert_eq!(
            (first.reason, first.hopeless),
            (StatusReason::ImageUnavailable, false)
        );
        assert!(view(&waiting("ImagePullBackOff"), "n").trouble.unwrap().hopeless);
        assert_eq!(view(&waiting("PodInitializing"), "n").trouble, None);
    }
}
