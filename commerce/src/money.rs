//! Money in minor units of an ISO 4217 currency. Pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A currency by its ISO 4217 code, like `EUR`. Only one that has minor units, so not gold (`XAU`) nor the testing code (`XTS`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency(iso_currency::Currency);

impl Currency {
    /// How many decimal places its amounts have: 2 for EUR, 0 for JPY, 3 for KWD (ISO 4217, table A.1).
    pub fn exponent(self) -> u16 {
        // Ones without were refused when it was made.
        self.0.exponent().unwrap_or_default()
    }

    /// Its code, in capital letters.
    pub fn code(self) -> &'static str {
        self.0.code()
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    /// Capital or small letters: Stripe writes small ones.
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let known = iso_currency::Currency::from_code(&text.to_ascii_uppercase());
        known
            .filter(|currency| currency.exponent().is_some())
            .map(Self)
            .ok_or_else(|| MoneyError::NoCurrency(text.to_owned()))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl PartialOrd for Currency {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Currency {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.code().cmp(other.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    /// Capital letters only: what is signed has one spelling.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let currency: Self = text.parse().map_err(de::Error::custom)?;
        if currency.code() == text {
            Ok(currency)
        } else {
            Err(de::Error::custom(format!(
                "currency {text:?} is not in capital letters"
            )))
        }
    }
}

/// An amount, which may be negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// In which currency.
    pub currency: Currency,
    /// In its minor unit: cents of EUR, whole JPY, fils of KWD.
    pub minor: i64,
}

/// What cannot be reckoned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// No such currency.
    #[error("{0:?} is no ISO 4217 currency with minor units; give a code such as EUR")]
    NoCurrency(String),
    /// Two currencies in one sum.
    #[error("{0} and {1} do not add up; convert one of them first")]
    Currencies(Currency, Currency),
    /// Larger than can be written.
    #[error("an amount in {0} is out of range")]
    OutOfRange(Currency),
    /// Not an amount of this currency.
    #[error("{text:?} is no amount in {currency}, which has {} decimal places", .currency.exponent())]
    NoAmount {
        /// What was given.
        text: String,
        /// In which currency.
        currency: Currency,
    },
}

impl Money {
    /// So many minor units.
    pub const fn new(minor: i64, currency: Currency) -> Self {
        Self { currency, minor }
    }

    /// Nothing.
    pub const fn zero(currency: Currency) -> Self {
        Self::new(0, currency)
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.minor == 0
    }

    /// Both together.
    ///
    /// # Errors
    /// If the currencies differ, or the sum is out of range.
    pub fn plus(self, other: Self) -> Result<Self, MoneyError> {
        self.with(other, i64::checked_add)
    }

    /// Without the other.
    ///
    /// # Errors
    /// If the currencies differ, or the difference is out of range.
    pub fn minus(self, other: Self) -> Result<Self, MoneyError> {
        self.with(other, i64::checked_sub)
    }

    /// So many of it.
    ///
    /// # Errors
    /// If the product is out of range.
    pub fn times(self, count: u32) -> Result<Self, MoneyError> {
        self.made_of(self.minor.checked_mul(i64::from(count)))
    }

    /// All together; nothing, of none.
    ///
    /// # Errors
    /// If the currencies differ, or the sum is out of range.
    pub fn sum(currency: Currency, all: impl IntoIterator<Item = Self>) -> Result<Self, MoneyError> {
        all.into_iter().try_fold(Self::zero(currency), Self::plus)
    }

    fn with(self, other: Self, reckon: fn(i64, i64) -> Option<i64>) -> Result<Self, MoneyError> {
        if self.currency == other.currency {
            self.made_of(reckon(self.minor, other.minor))
        } else {
            Err(MoneyError::Currencies(self.currency, other.currency))
        }
    }

    fn made_of(self, minor: Option<i64>) -> Result<Self, MoneyError> {
        let minor = minor.ok_or(MoneyError::OutOfRange(self.currency))?;
        Ok(Self::new(minor, self.currency))
    }

    /// From decimal notation, like `12.30`: all decimal places of the currency, no others, no signs but a leading `-`, no separators.
    ///
    /// # Errors
    /// If it is written otherwise, or out of range.
    pub fn parse(text: &str, currency: Currency) -> Result<Self, MoneyError> {
        let no_amount = || MoneyError::NoAmount {
            text: text.to_owned(),
            currency,
        };
        let places = usize::from(currency.exponent());
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = match digits.split_once('.') {
            Some((whole, fraction)) if places > 0 => (whole, fraction),
            None if places == 0 => (digits, ""),
            _ => return Err(no_amount()),
        };
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || fraction.len() != places || !is_number(whole) || !is_number(fraction) {
            return Err(no_amount());
        }
        let sign = if digits.len() == text.len() { "" } else { "-" };
        let minor = format!("{sign}{whole}{fraction}").parse();
        minor
            .map(|minor| Self::new(minor, currency))
            .map_err(|_| MoneyError::OutOfRange(currency))
    }
}

impl fmt::Display for Money {
    /// In decimal notation with the currency's code, like `12.30 EUR`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = usize::from(self.currency.exponent());
        let sign = if self.minor < 0 { "-" } else { "" };
        let digits = format!("{:0>width$}", self.minor.unsigned_abs(), width = places + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places);
        let point = if places == 0 { "" } else { "." };
        write!(f, "{sign}{whole}{point}{fraction} {}", self.currency)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    pub(crate) fn eur(minor: i64) -> Money {
        Money::new(minor, currency("EUR"))
    }

    #[test]
    fn amounts_are_written_with_the_places_of_their_currency() {
        for (minor, code, text) in [
            (1230, "EUR", "12.30 EUR"),
            (-5, "EUR", "-0.05 EUR"),
            (1230, "JPY", "1230 JPY"),
            (0, "JPY", "0 JPY"),
            (1230, "KWD", "1.230 KWD"),
            (i64::MIN, "EUR", "-92233720368547758.08 EUR"),
        ] {
            assert_eq!(Money::new(minor, currency(code)).to_string(), text);
        }
    }

    #[test]
    fn what_has_other_places_or_signs_is_no_amount() {
        for (text, code) in [
            ("12", "EUR"),
            ("12.3", "EUR"),
            ("12.345", "EUR"),
            ("12.0", "JPY"),
            ("+1.00", "EUR"),
            ("1,000.00", "EUR"),
            (".50", "EUR"),
            ("--1.00", "EUR"),
            ("1.0\u{662}", "EUR"),
            ("", "JPY"),
            ("-", "JPY"),
        ] {
            let read = Money::parse(text, currency(code));
            assert!(
                matches!(read, Err(MoneyError::NoAmount { .. })),
                "{text:?}: {read:?}"
            );
        }
        let large = Money::parse("92233720368547758.08", currency("EUR"));
        assert_eq!(large, Err(MoneyError::OutOfRange(currency("EUR"))));
    }

    #[test]
    fn what_has_no_minor_unit_is_no_currency_here() {
        for code in ["XAU", "XTS", "XXX", "EURO", "", "E"] {
            assert!(code.parse::<Currency>().is_err(), "{code}");
        }
        assert_eq!("eur".parse(), Ok(currency("EUR")));
        assert!(serde_json::from_str::<Currency>("\"eur\"").is_err());
    }

    #[test]
    fn two_currencies_do_not_add_up() {
        let yen = Money::new(1, currency("JPY"));
        assert_eq!(
            eur(1).plus(yen),
            Err(MoneyError::Currencies(currency("EUR"), currency("JPY")))
        );
        assert_eq!(
            eur(i64::MAX).plus(eur(1)),
            Err(MoneyError::OutOfRange(currency("EUR")))
        );
        assert_eq!(
            eur(i64::MIN).minus(eur(1)),
            Err(MoneyError::OutOfRange(currency("EUR")))
        );
        assert_eq!(
            eur(i64::MAX).times(2),
            Err(MoneyError::OutOfRange(currency("EUR")))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(minor: i64, code in prop::sample::select(vec!["EUR", "JPY", "KWD"])) {
            let money = Money::new(minor, currency(code));
            let text = money.to_string();
            let (amount, _) = text.split_once(' ').unwrap();
            prop_assert_eq!(Money::parse(amount, currency(code)), Ok(money));
            let json = serde_json::to_string(&money).unwrap();
            prop_assert_eq!(serde_json::from_str::<Money>(&json).unwrap(), money);
        }
    }
}
