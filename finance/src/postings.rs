//! What an entry does to the accounts: debits and credits that add up to nothing. Pure.
//!
//! Accounts, by name: `cash` is what the payment provider holds for us; `deposits:PAYMENT` is a customer's money that pays nothing yet;
//! `reserved:…` is shared out and waits for the licence; `payable:SELLER`, `fees` and `tax` are whose it is then; `returned:…` is what of that
//! went back. Of one unit the parts are the same to the minor unit whenever they are reckoned.

use vitrine_commerce::{
    finance::{EntryKind, EntryRequest, Part},
    money::{Money, MoneyError},
    split::split,
};

/// One side of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Which account.
    pub account: String,
    /// How much: positive for a debit, negative for a credit.
    pub amount: Money,
}

/// Why an entry cannot be written as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// Something that its kind needs is missing.
    #[error("an entry of kind {kind} needs {what}")]
    Missing {
        /// Its kind.
        kind: EntryKind,
        /// What.
        what: &'static str,
    },
    /// Something is there that its kind has no use for.
    #[error("an entry of kind {kind} has no {what}")]
    Needless {
        /// Its kind.
        kind: EntryKind,
        /// What.
        what: &'static str,
    },
    /// Its parts are not the whole.
    #[error("its parts come to {parts}, and it is of {amount}")]
    Sum {
        /// All parts together.
        parts: Money,
        /// What it says.
        amount: Money,
    },
    /// An amount is negative, or tax is more than what it is on.
    #[error("{0} is out of range")]
    Range(Money),
    /// It cannot be reckoned.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// The accounts' parts in an entry of so high a fee, in millionths of what is paid without tax.
///
/// # Errors
/// If the entry is not sound in itself.
pub fn postings(request: &EntryRequest, fee_ppm: u32) -> Result<Vec<Posting>, BadEntry> {
    let kind = request.kind;
    let needs = |is: bool, what| {
        if is {
            Ok(())
        } else {
            Err(BadEntry::Missing { kind, what })
        }
    };
    let lacks = |is: bool, what| {
        if is {
            Err(BadEntry::Needless { kind, what })
        } else {
            Ok(())
        }
    };
    sound(request)?;
    let amount = request.amount;
    let payment = request.payment.as_deref().unwrap_or_default();
    let deposits = || format!("deposits:{payment}");
    let mut posted = vec![];
    match kind {
        EntryKind::Memo => lacks(!amount.is_zero(), "amount")?,
        EntryKind::Deposit => {
            needs(request.payment.is_some(), "a payment")?;
            lacks(!request.parts.is_empty(), "parts")?;
            both(&mut posted, "cash".to_owned(), deposits(), amount);
        }
        EntryKind::Reserve => {
            needs(request.payment.is_some(), "a payment")?;
            needs(!request.parts.is_empty(), "parts")?;
            for (account, share) in shares(&request.parts, fee_ppm)? {
                both(&mut posted, deposits(), format!("reserved:{account}"), share);
            }
        }
        EntryKind::Post => {
            needs(request.reverses.is_some(), "the entry that reserved it")?;
            needs(!request.parts.is_empty(), "parts")?;
            for (account, share) in shares(&request.parts, fee_ppm)? {
                both(&mut posted, format!("reserved:{account}"), account, share);
            }
        }
        EntryKind::Refund | EntryKind::Reinstate => {
            needs(request.payment.is_some(), "a payment")?;
            let returned: Vec<_> = if request.parts.is_empty() {
                vec![(deposits(), amount)]
            } else {
                needs(request.reverses.is_some(), "the entry that it reverses")?;
                shares(&request.parts, fee_ppm)?
                    .into_iter()
                    .map(|(account, share)| (format!("returned:{account}"), share))
                    .collect()
            };
            for (account, share) in returned {
                match kind {
                    EntryKind::Refund => both(&mut posted, account, "cash".to_owned(), share),
                    _ => both(&mut posted, "cash".to_owned(), account, share),
                }
            }
        }
    }
    Ok(posted)
}

fn sound(request: &EntryRequest) -> Result<(), BadEntry> {
    let amount = request.amount;
    if amount.minor < 0 {
        return Err(BadEntry::Range(amount));
    }
    for part in &request.parts {
        if part.total.minor < 0
            || part.tax.minor < 0
            || part.tax.minor > part.total.minor
            || part.tax.currency != amount.currency
        {
            return Err(BadEntry::Range(part.total));
        }
    }
    if request.parts.is_empty() {
        return Ok(());
    }
    let parts = Money::sum(amount.currency, request.parts.iter().map(|part| part.total))?;
    if parts == amount {
        Ok(())
    } else {
        Err(BadEntry::Sum { parts, amount })
    }
}

/// A debit and a credit, unless there is nothing to move.
fn both(posted: &mut Vec<Posting>, debit: String, credit: String, amount: Money) {
    if amount.is_zero() {
        return;
    }
    let negative = Money::new(-amount.minor, amount.currency);
    posted.push(Posting {
        account: debit,
        amount,
    });
    posted.push(Posting {
        account: credit,
        amount: negative,
    });
}

/// Who gets how much of each part, in the parts' order.
fn shares(parts: &[Part], fee_ppm: u32) -> Result<Vec<(String, Money)>, BadEntry> {
    const MILLION: u32 = 1_000_000;
    let mut shares = vec![];
    for part in parts {
        let currency = part.total.currency;
        let net = part.total.minus(part.tax)?;
        let weights = [
            (0, u64::from(MILLION.saturating_sub(fee_ppm))),
            (1, u64::from(fee_ppm.min(MILLION))),
        ];
        let split = split(net.minor, &weights).unwrap_or_default();
        let of = |whose: i32| {
            split
                .iter()
                .find(|(of, _)| *of == whose)
                .map_or(0, |(_, minor)| *minor)
        };
        shares.push((format!("payable:{}", part.seller), Money::new(of(0), currency)));
        shares.push(("fees".to_owned(), Money::new(of(1), currency)));
        shares.push(("tax".to_owned(), part.tax));
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn eur(minor: i64) -> Money {
        Money::new(minor, "EUR".parse().unwrap())
    }

    fn part(unit: u32, total: i64, tax: i64) -> Part {
        Part {
            item: Uuid::from_u128(1),
            unit,
            seller: "acme".to_owned(),
            total: eur(total),
            tax: eur(tax),
        }
    }

    fn request(kind: EntryKind, minor: i64, parts: Vec<Part>) -> EntryRequest {
        EntryRequest {
            key: "k".to_owned(),
            kind,
            order: Uuid::from_u128(2),
            amount: eur(minor),
            payment: Some("pi_1".to_owned()),
            parts,
            reverses: Some("reserve:2".to_owned()),
        }
    }

    fn balances<'a>(all: impl IntoIterator<Item = &'a Posting>) -> BTreeMap<String, i64> {
        let mut balances = BTreeMap::new();
        for posting in all {
            *balances.entry(posting.account.clone()).or_default() += posting.amount.minor;
        }
        balances.retain(|_, minor| *minor != 0);
        balances
    }

    #[test]
    fn what_is_paid_ends_with_seller_fees_and_tax() {
        let parts = vec![part(0, 1190, 190), part(1, 1191, 191)];
        let mut all = postings(&request(EntryKind::Deposit, 2381, vec![]), 150_000).unwrap();
        all.extend(postings(&request(EntryKind::Reserve, 2381, parts.clone()), 150_000).unwrap());
        let reserved = balances(&all);
        assert_eq!(
            (reserved.get("cash"), reserved.get("reserved:payable:acme")),
            (Some(&2381), Some(&-1700))
        );
        for part in parts {
            all.extend(postings(&request(EntryKind::Post, part.total.minor, vec![part]), 150_000).unwrap());
        }
        let expected = [
            ("cash", 2381),
            ("fees", -300),
            ("payable:acme", -1700),
            ("tax", -381),
        ];
        assert_eq!(
            balances(&all),
            expected
                .map(|(account, minor)| (account.to_owned(), minor))
                .into()
        );
    }

    #[test]
    fn a_refund_that_fails_leaves_nothing_behind() {
        let refund = postings(
            &request(EntryKind::Refund, 1190, vec![part(0, 1190, 190)]),
            150_000,
        )
        .unwrap();
        assert_eq!(balances(&refund)["returned:payable:acme"], 850);
        let failed = postings(
            &request(EntryKind::Reinstate, 1190, vec![part(0, 1190, 190)]),
            150_000,
        )
        .unwrap();
        assert_eq!(balances(refund.iter().chain(&failed)), BTreeMap::new());
        let surplus = postings(&request(EntryKind::Refund, 1190, vec![]), 150_000).unwrap();
        assert_eq!(
            balances(&surplus),
            BTreeMap::from([("deposits:pi_1".to_owned(), 1190), ("cash".to_owned(), -1190)])
        );
    }

    #[test]
    fn what_is_not_sound_is_refused() {
        let of = |request: &EntryRequest| postings(request, 150_000).unwrap_err();
        assert!(matches!(
            of(&request(EntryKind::Memo, 1, vec![])),
            BadEntry::Needless { .. }
        ));
        assert!(matches!(
            of(&request(EntryKind::Reserve, 1, vec![])),
            BadEntry::Missing { .. }
        ));
        assert!(matches!(
            of(&request(EntryKind::Reserve, 2, vec![part(0, 1, 0)])),
            BadEntry::Sum { .. }
        ));
        assert!(matches!(
            of(&request(EntryKind::Reserve, 1, vec![part(0, 1, 2)])),
            BadEntry::Range(_)
        ));
        assert!(matches!(
            of(&request(EntryKind::Deposit, -1, vec![])),
            BadEntry::Range(_)
        ));
        let nobodys = EntryRequest {
            payment: None,
            ..request(EntryKind::Deposit, 1, vec![])
        };
        assert!(matches!(of(&nobodys), BadEntry::Missing { .. }));
    }

    proptest! {
        /// Requirement FIN-03, for one entry: the database asks the same of all.
        #[test]
        fn debits_are_credits(
            kind in prop::sample::select(vec![EntryKind::Reserve, EntryKind::Post, EntryKind::Refund, EntryKind::Reinstate]),
            parts in prop::collection::vec((0_i64..1_000_000, 0_i64..1_000_000), 1..6),
            fee_ppm in 0_u32..=1_000_000,
        ) {
            let parts: Vec<_> = (0..).zip(parts).map(|(unit, (a, b))| part(unit, a.max(b), a.min(b))).collect();
            let amount = parts.iter().map(|part| part.total.minor).sum();
            let posted = postings(&request(kind, amount, parts), fee_ppm).unwrap();
            prop_assert_eq!(posted.iter().map(|posting| posting.amount.minor).sum::<i64>(), 0);
            prop_assert!(posted.iter().all(|posting| posting.amount.minor != 0));
        }
    }
}
