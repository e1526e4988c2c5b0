//! Leader election on a Lease, for economy only: every effect of the operator is safe with two leaders. Touches one Lease.
//!
//! The algorithm is client-go's (`tools/leaderelection`): every write carries the resourceVersion that was read, so two
//! candidates cannot both win an expired Lease (docs/adr/0004: why not the crate).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Result, found};

/// client-go's defaults (`LeaseDuration`, `RenewDeadline`, `RetryPeriod`).
const LEASE: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// A candidate.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// What was last seen of another's lease, and when by our own monotonic clock: clocks of two machines are not compared.
    seen: Option<(Option<MicroTime>, Option<String>, Instant)>,
}

impl Candidate {
    /// A candidate for a Lease.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            seen: None,
        }
    }

    /// Returns once leadership is held.
    pub async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "leader election: will try again"),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews until leadership is lost, and says why it is; then the leader's work must end.
    pub async fn keep(&mut self) -> String {
        let mut renewed = Instant::now();
        loop {
            sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            // An attempt that hangs must not keep a leader in office.
            match timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return "another operator holds the lease".to_owned(),
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew leadership, will try again"),
                Err(_) => return format!("the lease was not renewed within {} s", RENEW_DEADLINE.as_secs()),
            }
        }
    }

    /// Gives leadership up so that the next operator need not wait.
    pub async fn release(&mut self) {
        let Ok(Some(mut lease)) = found(self.leases.get(&self.name).await) else {
            return;
        };
        let Some(spec) = lease
            .spec
            .as_mut()
            .filter(|s| s.holder_identity.as_ref() == Some(&self.identity))
        else {
            return;
        };
        spec.holder_identity = None;
        if let Err(error) = self
            .leases
            .replace(&self.name, &PostParams::default(), &lease)
            .await
        {
            tracing::warn!(%error, "failed to give leadership up; the next operator waits for the lease to run out");
        }
    }

    async fn attempt(&mut self) -> Result<bool> {
        let params = PostParams::default();
        let Some(mut lease) =
            found(self.leases.get(&self.name).await).map_err(Error::kube("get", "Lease", &self.name))?
        else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(0)),
            };
            return won(self
                .leases
                .create(&params, &lease)
                .await
                .map_err(Error::kube("create", "Lease", &self.name)));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|h| !h.is_empty());
        let ours = holder.as_ref() == Some(&self.identity);
        if !ours && holder.is_some() && !self.expired(&spec) {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!ours);
        let mut next = self.spec(transitions);
        if ours {
            next.acquire_time = spec.acquire_time;
        }
        lease.spec = Some(next);
        let result = self.leases.replace(&self.name, &params, &lease).await;
        won(result.map_err(Error::kube("replace", "Lease", &self.name)))
    }

    fn expired(&mut self, spec: &LeaseSpec) -> bool {
        let now = Instant::now();
        match &self.seen {
            Some((time, holder, since)) if *time == spec.renew_time && *holder == spec.holder_identity => {
                now.duration_since(*since) > LEASE
            }
            _ => {
                self.seen = Some((spec.renew_time.clone(), spec.holder_identity.clone(), now));
                // A lease that is long over by any clock need not be watched first.
                spec.renew_time.as_ref().is_some_and(|t| {
                    Timestamp::now().duration_since(t.0)
                        > SignedDuration::try_from(LEASE * 4).unwrap_or_default()
                })
            }
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// A conflict means that another candidate was quicker.
fn won<T>(result: Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}
