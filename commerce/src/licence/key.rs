//! The key of a licence, which a person can type: 128 random bits and a checksum in Crockford's base 32 (LIC-06). Pure.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// Crockford's base 32 (<https://www.crockford.com/base32.html>): no I, L, O or U.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Before the digits, so that a key is known when it is seen in the wrong place.
const PREFIX: &str = "VL";
/// 128 bits of 5 each.
const RANDOM_DIGITS: usize = 26;
/// One in a million mistyped keys is taken for another.
const CHECK_DIGITS: usize = 4;
/// Digits between two dashes.
const GROUP: usize = 5;

/// A licence's key, like `VL-0RRTK-…`, 38 characters long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LicenceKey(u128);

/// Not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLicenceKey {
    /// Not of the right form.
    #[error("this is no licence key; one looks like VL-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX")]
    Malformed,
    /// Its checksum is another.
    #[error("this licence key was mistyped: its last digits do not fit the others")]
    Mistyped,
}

impl LicenceKey {
    /// Of these random bits.
    pub const fn new(random: u128) -> Self {
        Self(random)
    }

    fn digits(self) -> [u8; RANDOM_DIGITS] {
        let mut digits = [0; RANDOM_DIGITS];
        let mut left = self.0;
        for digit in digits.iter_mut().rev() {
            // Five bits.
            *digit = DIGITS[(left & 31) as usize];
            left >>= 5;
        }
        digits
    }

    fn checksum(self) -> [u8; CHECK_DIGITS] {
        let mut hash = Sha256::new();
        hash.update(PREFIX.as_bytes());
        hash.update(self.0.to_be_bytes());
        let hash = hash.finalize();
        std::array::from_fn(|at| DIGITS[usize::from(hash[at] & 31)])
    }
}

impl fmt::Display for LicenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        let all = self.digits().into_iter().chain(self.checksum());
        for (at, digit) in all.enumerate() {
            if at % GROUP == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(digit))?;
        }
        Ok(())
    }
}

impl fmt::Debug for LicenceKey {
    /// Who has the key has the licence: logs get its beginning only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.to_string();
        write!(f, "{}…", &text[..PREFIX.len() + 1 + GROUP])
    }
}

impl FromStr for LicenceKey {
    type Err = BadLicenceKey;

    /// Small letters, missing dashes and spaces are put right; so are I and L, which are read as 1, and O, which is read as 0.
    fn from_str(text: &str) -> Result<Self, BadLicenceKey> {
        let mut typed = text
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '-')
            .map(|c| c.to_ascii_uppercase());
        if !PREFIX.chars().all(|expected| typed.next() == Some(expected)) {
            return Err(BadLicenceKey::Malformed);
        }
        let value = |c: char| {
            let c = match c {
                'I' | 'L' => '1',
                'O' => '0',
                other => other,
            };
            DIGITS
                .iter()
                .position(|digit| char::from(*digit) == c)
                .ok_or(BadLicenceKey::Malformed)
        };
        let values: Vec<_> = typed.map(value).collect::<Result<_, _>>()?;
        let Some((random, check)) = values
            .split_at_checked(RANDOM_DIGITS)
            .filter(|(_, check)| check.len() == CHECK_DIGITS)
        else {
            return Err(BadLicenceKey::Malformed);
        };
        // 26 digits are 130 bits: the first one has three.
        if random[0] > 7 {
            return Err(BadLicenceKey::Malformed);
        }
        let key = Self(random.iter().fold(0, |all, value| (all << 5) | *value as u128));
        let expected = key.checksum();
        let fits = check
            .iter()
            .zip(expected)
            .all(|(value, digit)| DIGITS[*value] == digit);
        if fits {
            Ok(key)
        } else {
            Err(BadLicenceKey::Mistyped)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_short_and_says_nothing_in_logs() {
        let key = LicenceKey::new(u128::MAX);
        let text = key.to_string();
        assert!(text.starts_with("VL-7ZZZZ-ZZZZZ-") && text.len() == 38, "{text}");
        assert_eq!(format!("{key:?}"), "VL-7ZZZZ…");
    }

    #[test]
    fn what_is_no_key_is_told() {
        for text in [
            "",
            "VL",
            "VL-",
            "XX-00000",
            "VL-ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ-ZZZZZ",
            "VL-U",
        ] {
            assert_eq!(
                text.parse::<LicenceKey>(),
                Err(BadLicenceKey::Malformed),
                "{text}"
            );
        }
        let long = format!("{}0", LicenceKey::new(1));
        assert_eq!(long.parse::<LicenceKey>(), Err(BadLicenceKey::Malformed));
    }

    proptest! {
        #[test]
        fn a_key_is_read_as_people_type_it(random: u128) {
            let key = LicenceKey::new(random);
            let text = key.to_string();
            prop_assert_eq!(text.parse(), Ok(key));
            let sloppy = text.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
            prop_assert_eq!(sloppy.parse(), Ok(key));
        }
    }

    #[test]
    fn one_wrong_digit_is_seen() {
        let text = LicenceKey::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef).to_string();
        for (at, digit) in
            (PREFIX.len()..text.len()).flat_map(|at| DIGITS.iter().map(move |digit| (at, *digit)))
        {
            let mut wrong = text.clone().into_bytes();
            if wrong[at] == b'-' || wrong[at] == digit {
                continue;
            }
            wrong[at] = digit;
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong.parse::<LicenceKey>().is_err(), "{wrong}");
        }
    }
}
