//! Card numbers where there must be none: found by their check digit, in any text (CHK-01; PCI DSS 4.0, requirements 3.3 and 3.5). Pure.

use std::{borrow::Cow, ops::Range};

/// Digits of a card number (ISO/IEC 7812-1, section 4.2: up to 19; none in use has fewer than 13).
const DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

/// Whether there is a card number in a text.
pub fn is_in(text: &str) -> bool {
    next(text, 0).is_some()
}

/// The text with every digit of card numbers in it replaced, but for the last four, which receipts may show (PCI DSS 4.0, 3.4.1).
pub fn masked(text: &str) -> Cow<'_, str> {
    let mut masked = Cow::Borrowed(text);
    let mut from = 0;
    while let Some(found) = next(text, from) {
        let digits = text[found.clone()].bytes().filter(u8::is_ascii_digit).count();
        let mut seen = 0;
        let replaced = text[found.clone()].chars().map(|c| {
            seen += usize::from(c.is_ascii_digit());
            if c.is_ascii_digit() && seen + 4 <= digits {
                '*'
            } else {
                c
            }
        });
        let replaced: String = replaced.collect();
        from = found.end;
        masked.to_mut().replace_range(found, &replaced);
    }
    masked
}

/// The first card number at or after this byte. Its groups may be set apart by single spaces or dashes, and other groups of digits may be
/// before and after them.
fn next(text: &str, from: usize) -> Option<Range<usize>> {
    let groups = groups(text, from);
    groups.iter().enumerate().find_map(|(first, group)| {
        let mut digits = String::new();
        let mut last = group.clone();
        let mut longest = None;
        for one in &groups[first..] {
            let is_next = one.start == group.start
                || one.start == last.end + 1 && is_separator(text.as_bytes()[last.end]);
            if !is_next || digits.len() + one.len() > *DIGITS.end() {
                break;
            }
            digits.push_str(&text[one.clone()]);
            last = one.clone();
            if DIGITS.contains(&digits.len()) && luhn(&digits) {
                longest = Some(group.start..one.end);
            }
        }
        longest
    })
}

const fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'-')
}

/// The runs of digits at or after this byte.
fn groups(text: &str, from: usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = vec![];
    for (at, _) in text
        .bytes()
        .enumerate()
        .skip(from)
        .filter(|(_, byte)| byte.is_ascii_digit())
    {
        match groups.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => groups.push(at..at + 1),
        }
    }
    groups
}

/// The check digit (ISO/IEC 7812-1, annex B). All zeros have a right one and are no number.
fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(at, digit)| {
            let doubled = u32::from(digit - b'0') << (at % 2);
            if doubled > 9 { doubled - 9 } else { doubled }
        })
        .sum();
    sum > 0 && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn card_numbers_are_found_in_words_and_groups() {
        for (text, expected) in [
            ("4242424242424242", "************4242"),
            (
                "card 4242 4242 4242 4242, thanks",
                "card **** **** **** 4242, thanks",
            ),
            ("3782-822463-10005", "****-******-*0005"),
            ("no. 12 4242 4242 4242 4242 7", "no. 12 **** **** **** 4242 7"),
            (
                "{\"n\":\"6011000990139424\",\"m\":5555555555554444}",
                "{\"n\":\"************9424\",\"m\":************4444}",
            ),
            ("é4000056655665556é", "é************5556é"),
        ] {
            assert_eq!(masked(text), expected);
            assert!(is_in(text));
        }
    }

    #[test]
    fn other_numbers_are_left_alone() {
        for text in [
            "",
            "4242424242424241",
            "0000000000000000",
            "424242424242",
            "42424242424242424242",
            "4242  4242 4242 4242",
            "4242.4242.4242.4242",
            "2026-11-30 15:00:45",
            "pi_3Qa4242",
        ] {
            assert_eq!(masked(text), text);
            assert!(!is_in(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_number_with_a_right_check_digit_is_masked(digits in "[1-9][0-9]{11,17}", before in "[a-z ]{0,9}", after in "[a-z ]{0,9}") {
            let check = (0..10).map(|check| format!("{digits}{check}")).find(|all| luhn(all)).unwrap();
            let text = format!("{before}x{check}x{after}");
            prop_assert!(is_in(&text));
            let masked = masked(&text);
            prop_assert!(!is_in(&masked), "{masked}");
            prop_assert_eq!(masked.len(), text.len());
        }
    }
}
