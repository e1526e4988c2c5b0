//! The seal: whether what is in the cluster is still what was built. Pure comparison, no repair.

use serde::Serialize;
use serde_json::Value;

/// Whether everything that `desired` says is so in `live`. What `desired` leaves out (defaults, status, managed fields) is
/// free; lists must be equal element by element, so that an added rule is a difference.
pub fn holds<T: Serialize>(desired: &T, live: &T) -> bool {
    match (serde_json::to_value(desired), serde_json::to_value(live)) {
        (Ok(desired), Ok(live)) => contains(&live, &desired),
        _ => false,
    }
}

fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired
            .iter()
            .all(|(key, value)| live.get(key).is_some_and(|found| contains(found, value))),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(l, d)| contains(l, d))
        }
        (live, desired) => live == desired,
    }
}

/// Whether a part that must be exactly so is: for specs in which an additional key would widen.
pub fn same<T: Serialize>(desired: &T, live: &T) -> bool {
    match (serde_json::to_value(desired), serde_json::to_value(live)) {
        (Ok(desired), Ok(live)) => desired == live,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{boundary, fixtures, network, record};

    #[test]
    fn defaults_added_by_the_api_server_are_no_difference() {
        let desired = boundary::service_account(fixtures::CELL);
        let mut live = desired.clone();
        live.metadata.uid = Some("1".into());
        live.metadata
            .labels
            .get_or_insert_default()
            .insert("other".into(), "x".into());
        assert!(holds(&desired, &live));
    }

    #[test]
    fn a_raised_quota_a_lost_label_and_an_added_rule_are_differences() {
        let (tenant, envelope) = (fixtures::tenant(), fixtures::envelope());
        let desired = boundary::quota(fixtures::CELL, &envelope);
        let mut live = desired.clone();
        live.spec
            .as_mut()
            .unwrap()
            .hard
            .as_mut()
            .unwrap()
            .get_mut("limits.cpu")
            .unwrap()
            .0 = "64".into();
        assert!(!holds(&desired, &live));

        let desired = record::had_by(&tenant);
        let mut live = desired.clone();
        live.metadata
            .labels
            .as_mut()
            .unwrap()
            .remove("pod-security.kubernetes.io/enforce");
        assert!(!holds(&desired, &live));

        let desired = network::policy(fixtures::CELL, &envelope, &fixtures::house());
        let mut live = desired.clone();
        live.spec
            .as_mut()
            .unwrap()
            .egress
            .as_mut()
            .unwrap()
            .push(Default::default());
        assert!(!same(&desired.spec, &live.spec));
        live.spec = None;
        assert!(!same(&desired.spec, &live.spec));
    }
}
