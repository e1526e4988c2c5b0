//! Durations as people write them in manifests: `90s`, `20m`, `1h30m`. Pure.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Hours, minutes and seconds in this order, each at most once. CEL's `duration()` reads the same text.
pub const PATTERN: &str = "^([0-9]{1,4}h)?([0-9]{1,5}m)?([0-9]{1,6}s)?$";

/// A length of time, written as hours, minutes and seconds (`1h30m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan(Duration);

/// The text is no duration of the form `1h30m10s`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a duration like \"90s\", \"20m\" or \"1h30m\"")]
pub struct NotADuration(pub String);

impl TimeSpan {
    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The span as the standard library's type.
    pub const fn as_duration(self) -> Duration {
        self.0
    }

    /// Whole seconds.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl FromStr for TimeSpan {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let wrong = || NotADuration(text.to_owned());
        let mut seconds: u64 = 0;
        let mut rest = text;
        for (unit, factor) in [('h', 3600_u64), ('m', 60), ('s', 1)] {
            let Some((number, tail)) = rest.split_once(unit) else {
                continue;
            };
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong());
            }
            let number: u64 = number.parse().map_err(|_| wrong())?;
            seconds = number
                .checked_mul(factor)
                .and_then(|n| seconds.checked_add(n))
                .ok_or_else(wrong)?;
            rest = tail;
        }
        if text.is_empty() || !rest.is_empty() {
            return Err(wrong());
        }
        Ok(Self::from_secs(seconds))
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.as_secs();
        let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if seconds > 0 || total == 0 {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN, "minLength": 2, "maxLength": 18})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write_and_writes_it_back_in_short_form() {
        for (text, seconds, short) in [
            ("90s", 90, "1m30s"),
            ("20m", 1200, "20m"),
            ("1h30m", 5400, "1h30m"),
            ("24h", 86_400, "24h"),
            ("0s", 0, "0s"),
        ] {
            let span: TimeSpan = text.parse().unwrap();
            assert_eq!(span.as_secs(), seconds);
            assert_eq!(span.to_string(), short);
        }
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in ["", "20", "m", "-5m", "5m1h", "1.5h", "5 m", "5d", "5mm"] {
            assert_eq!(
                text.parse::<TimeSpan>(),
                Err(NotADuration(text.to_owned())),
                "{text:?}"
            );
        }
    }
}
