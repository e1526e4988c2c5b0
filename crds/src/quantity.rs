//! Kubernetes resource quantities (`500m`, `1Gi`) as exact numbers that can be compared. Pure.
//!
//! Source: Kubernetes API conventions, `k8s.io/apimachinery/pkg/api/resource` (suffixes n u m k M G T P E, Ki..Ei).

use std::{fmt, str::FromStr};

/// A non-negative quantity in thousandths of its unit (cores or bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount {
    thousandths: u128,
}

/// The text is no quantity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a Kubernetes quantity like \"500m\", \"2\" or \"512Mi\"")]
pub struct NotAQuantity(pub String);

/// The quantities a manifest may carry: a decimal number and at most one suffix.
pub const PATTERN: &str = "^[0-9]{1,15}(\\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$";

impl Amount {
    /// An amount of whole units (cores or bytes).
    pub const fn whole(units: u64) -> Self {
        Self {
            thousandths: units as u128 * 1000,
        }
    }

    /// An amount in thousandths (millicores).
    pub const fn milli(thousandths: u64) -> Self {
        Self {
            thousandths: thousandths as u128,
        }
    }

    /// Whole units (cores or bytes), rounded down; saturates.
    pub fn units(self) -> u64 {
        u64::try_from(self.thousandths / 1000).unwrap_or(u64::MAX)
    }

    /// The sum; saturates, since no cluster comes near the bound.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            thousandths: self.thousandths.saturating_add(other.thousandths),
        }
    }

    /// The difference; nothing if there is less.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            thousandths: self.thousandths.saturating_sub(other.thousandths),
        }
    }

    /// It in thousandths; the largest number if it is more.
    pub const fn thousandths(self) -> u64 {
        if self.thousandths > u64::MAX as u128 {
            u64::MAX
        } else {
            self.thousandths as u64
        }
    }

    /// So many hundredths of it, rounded down.
    #[must_use]
    pub const fn percent(self, percent: u32) -> Self {
        Self {
            thousandths: self.thousandths.saturating_mul(percent as u128) / 100,
        }
    }
}

impl FromStr for Amount {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        let wrong = || NotAQuantity(text.to_owned());
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.len() > 3 || (number.contains('.') && fraction.is_empty()) {
            return Err(wrong());
        }
        let whole: u128 = whole.parse().map_err(|_| wrong())?;
        let fraction: u128 = if fraction.is_empty() {
            0
        } else {
            format!("{fraction:0<3}").parse().map_err(|_| wrong())?
        };
        let number = whole
            .checked_mul(1000)
            .and_then(|n| n.checked_add(fraction))
            .ok_or_else(wrong)?;
        let thousandths = match suffix {
            // Kubernetes rounds sub-milli amounts up.
            "m" => Some(number.div_ceil(1000)),
            "" => Some(number),
            "k" => number.checked_mul(1000),
            "M" => number.checked_mul(1000_u128.pow(2)),
            "G" => number.checked_mul(1000_u128.pow(3)),
            "T" => number.checked_mul(1000_u128.pow(4)),
            "Ki" => number.checked_mul(1024),
            "Mi" => number.checked_mul(1024_u128.pow(2)),
            "Gi" => number.checked_mul(1024_u128.pow(3)),
            "Ti" => number.checked_mul(1024_u128.pow(4)),
            _ => None,
        };
        Ok(Self {
            thousandths: thousandths.ok_or_else(wrong)?,
        })
    }
}

impl fmt::Display for Amount {
    /// The canonical form that the API server writes back: binary suffixes where they divide, else plain or milli.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.thousandths.is_multiple_of(1000) {
            return write!(f, "{}m", self.thousandths);
        }
        let units = self.thousandths / 1000;
        for (suffix, factor) in [("Gi", 1_u128 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
            if units >= factor && units.is_multiple_of(factor) {
                return write!(f, "{}{suffix}", units / factor);
            }
        }
        write!(f, "{units}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_amount_in_other_words_is_equal() {
        for (one, other) in [
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("0.5", "500m"),
            ("1k", "1000"),
            ("1.5Gi", "1536Mi"),
        ] {
            assert_eq!(
                one.parse::<Amount>().unwrap(),
                other.parse::<Amount>().unwrap(),
                "{one} {other}"
            );
        }
    }

    #[test]
    fn amounts_compare_and_print_in_canonical_form() {
        assert!("1500m".parse::<Amount>().unwrap() > "1".parse().unwrap());
        assert!("1Gi".parse::<Amount>().unwrap() > "1G".parse().unwrap());
        for (text, canonical) in [
            ("1024Mi", "1Gi"),
            ("0.25", "250m"),
            ("2", "2"),
            ("320Mi", "320Mi"),
            ("1G", "1000000000"),
        ] {
            assert_eq!(text.parse::<Amount>().unwrap().to_string(), canonical);
        }
        assert_eq!(Amount::whole(1).plus(Amount::milli(50)).to_string(), "1050m");
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for text in [
            "",
            "Gi",
            "-1",
            "1x",
            "1.",
            "1.0001",
            ".5",
            "1e3",
            "99999999999999999999999999999999999999Ti",
        ] {
            assert!(text.parse::<Amount>().is_err(), "{text:?}");
        }
    }
}
