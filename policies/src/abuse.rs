//! What a preview does, judged by the platform's rules: signs → points → a measure. Pure.

use vitrine_crds::{
    Amount,
    preview_policy::{AbuseRules, Sign},
    preview_sandbox::Measure,
};

/// Which part of its processor time a throttled preview keeps, in hundredths: enough to answer, too little to mine.
pub const THROTTLED_PERCENT: u32 = 10;

/// What was seen of one preview. What nobody could tell is absent, and speaks neither for it nor against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Processor time over the whole of `abuse.sustainedCpu.period`, in hundredths of the limit.
    pub cpu_percent: Option<u64>,
    /// Names that the egress proxies have refused it.
    pub egress_denials: Option<u64>,
    /// Its processes.
    pub processes: Option<u64>,
    /// Previews that were made from its network within the last hour.
    pub network_previews: Option<u64>,
}

/// What the signs come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// The points.
    pub score: i32,
    /// The gravest measure that they reach.
    pub measure: Option<Measure>,
    /// Each sign in words.
    pub reasons: Vec<String>,
}

/// Judges.
pub fn judge(rules: &AbuseRules, signs: &Signs) -> Judgement {
    let mut judgement = Judgement::default();
    let mut add = |points: i32, reason: String| {
        judgement.score = judgement.score.saturating_add(points);
        judgement.reasons.push(reason);
    };
    if let (Some(rule), Some(percent)) = (&rules.sustained_cpu, signs.cpu_percent)
        && reaches(percent, rule.percent)
    {
        add(
            rule.points,
            format!("{percent} % of its processor time for {}", rule.period),
        );
    }
    let counts: [(&Option<Sign>, Option<u64>, &str); 3] = [
        (
            &rules.egress_denials,
            signs.egress_denials,
            "names asked for that it may not reach",
        ),
        (&rules.processes, signs.processes, "processes"),
        (
            &rules.network_previews,
            signs.network_previews,
            "previews from its network within an hour",
        ),
    ];
    for (rule, seen, what) in counts {
        if let (Some(rule), Some(seen)) = (rule, seen)
            && reaches(seen, rule.count)
        {
            add(rule.points, format!("{seen} {what}"));
        }
    }
    let score = judgement.score;
    judgement.measure = [
        (rules.block_at, Measure::Block),
        (rules.end_at, Measure::End),
        (rules.throttle_at, Measure::Throttle),
    ]
    .into_iter()
    .find_map(|(at, measure)| (score >= at?).then_some(measure));
    judgement
}

fn reaches(seen: u64, most: i32) -> bool {
    seen >= u64::try_from(most).unwrap_or_default()
}

/// The processor time that a preview may use, once something was found or before. Who is throttled and uses all that is left
/// shows the same sign as before: else a sign that is seen later would never add to it.
pub fn allowed(cpu: Amount, found: Option<Measure>) -> Amount {
    if found.is_some() { throttled(cpu) } else { cpu }
}

/// What a preview with this much processor time has once it is throttled, and never nothing.
pub fn throttled(cpu: Amount) -> Amount {
    cpu.percent(THROTTLED_PERCENT).max(Amount::milli(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> AbuseRules {
        serde_json::from_value(serde_json::json!({
            "sustainedCpu": {"percent": 90, "period": "3m", "points": 60},
            "egressDenials": {"count": 100, "points": 40},
            "processes": {"count": 200, "points": 60},
            "networkPreviews": {"count": 60, "points": 30},
            "throttleAt": 50, "endAt": 80, "blockAt": 120
        }))
        .unwrap()
    }

    #[test]
    fn signs_add_up_and_the_gravest_measure_is_taken() {
        let mut signs = Signs::default();
        assert_eq!(judge(&rules(), &signs), Judgement::default());
        signs.cpu_percent = Some(89);
        assert_eq!(judge(&rules(), &signs).measure, None);
        signs.cpu_percent = Some(90);
        let judgement = judge(&rules(), &signs);
        assert_eq!(
            (judgement.score, judgement.measure),
            (60, Some(Measure::Throttle))
        );
        assert_eq!(judgement.reasons, ["90 % of its processor time for 3m"]);
        signs.network_previews = Some(60);
        assert_eq!(judge(&rules(), &signs).measure, Some(Measure::End));
        signs.egress_denials = Some(1000);
        let judgement = judge(&rules(), &signs);
        assert_eq!((judgement.score, judgement.measure), (130, Some(Measure::Block)));
        assert_eq!(judgement.reasons.len(), 3);
    }

    #[test]
    fn what_no_rule_names_is_no_sign_and_what_nobody_told_is_none_either() {
        let signs = Signs {
            cpu_percent: Some(100),
            egress_denials: Some(u64::MAX),
            processes: Some(u64::MAX),
            network_previews: Some(u64::MAX),
        };
        let mut none = rules();
        (none.sustained_cpu, none.egress_denials) = (None, None);
        (none.processes, none.network_previews) = (None, None);
        assert_eq!(judge(&none, &signs).score, 0);
        let mut mild = rules();
        (mild.end_at, mild.block_at) = (None, None);
        assert_eq!(judge(&mild, &signs).measure, Some(Measure::Throttle));
    }

    #[test]
    fn who_is_throttled_is_measured_by_what_is_left() {
        let cpu = Amount::milli(500);
        assert_eq!(allowed(cpu, None), cpu);
        assert_eq!(allowed(cpu, Some(Measure::Throttle)), Amount::milli(50));
    }

    #[test]
    fn who_is_throttled_keeps_a_tenth_and_never_nothing() {
        assert_eq!(throttled("500m".parse().unwrap()).to_string(), "50m");
        assert_eq!(throttled("5m".parse().unwrap()).to_string(), "1m");
    }
}
