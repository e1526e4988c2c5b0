//! In what Finance's receipts and ours differ. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use vitrine_commerce::{
    finance,
    note::{self, NamedKey},
};

use crate::store::postgres::Held;

/// Differences are told one by one up to so many: who reads more has something else to do first.
const TOLD: usize = 1_000;

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrong {
    /// Finance has acknowledged it, and has it no more.
    Lost,
    /// Finance has another one by its number than it has acknowledged.
    Differs,
    /// It was never asked for here.
    NotAsked,
    /// Its receipt is not Finance's.
    NotSigned,
    /// It does not follow the one before.
    NotChained,
    /// A payment that has succeeded, of which Finance was never told.
    NeverBooked,
}

/// Something in which the books differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which entry of the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The entry's key, or the payment's id.
    pub of: String,
    /// What is wrong.
    pub wrong: Wrong,
}

/// How Finance's books compare with ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Entries of the ledger that were looked at.
    pub entries: u64,
    /// Of those, the ones whose receipt is held here, in the same bytes.
    pub equal: u64,
    /// Of those, the ones that were asked for here, and whose receipt has not come yet.
    pub unread: u64,
    /// Entries that were asked for, and that are not acknowledged yet; the ones before are among them.
    pub waiting: i64,
    /// How many differences there are.
    pub differing: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// The ledger's root; nothing after an entry that could not be read.
    #[serde(skip)]
    root: Option<String>,
}

/// Entries of Finance's that are not held here, by number and key.
pub type Unknown = Vec<(u64, String)>;

impl Default for Report {
    /// Of an empty ledger.
    fn default() -> Self {
        Self {
            entries: 0,
            equal: 0,
            unread: 0,
            waiting: 0,
            differing: 0,
            differences: vec![],
            root: Some(finance::FIRST_ROOT.to_owned()),
        }
    }
}

impl Report {
    fn differs(&mut self, sequence: Option<u64>, of: &str, wrong: Wrong) {
        self.differing += 1;
        if self.differences.len() < TOLD {
            self.differences.push(Difference {
                sequence,
                of: of.to_owned(),
                wrong,
            });
        }
    }

    /// Takes in the ledger's entries after one, and the receipts that are held here of the same ones. What is not held here is answered.
    pub fn window(&mut self, after: u64, theirs: &[String], held: &[Held], keys: &[NamedKey]) -> Unknown {
        let mut left: BTreeMap<u64, &Held> = held.iter().map(|held| (held.sequence, held)).collect();
        let mut unknown = vec![];
        for (note, sequence) in theirs.iter().zip(after + 1..) {
            self.entries += 1;
            let held = left.remove(&sequence);
            let Ok(receipt) = finance::open(note.as_bytes(), keys) else {
                self.root = None;
                self.differs(
                    Some(sequence),
                    held.map_or("", |held| held.key.as_str()),
                    Wrong::NotSigned,
                );
                continue;
            };
            let follows = self
                .root
                .as_ref()
                .is_none_or(|root| *root == receipt.previous_root);
            if !follows || receipt.sequence != sequence {
                self.differs(Some(sequence), &receipt.key, Wrong::NotChained);
            }
            self.root = note::text(finance::KIND, &receipt)
                .ok()
                .map(|text| finance::next_root(&receipt.previous_root, &text));
            match held {
                Some(held) if held.note == note.as_bytes() => self.equal += 1,
                Some(held) => self.differs(Some(sequence), &held.key, Wrong::Differs),
                None => unknown.push((sequence, receipt.key)),
            }
        }
        for held in left.into_values() {
            self.differs(Some(held.sequence), &held.key, Wrong::Lost);
        }
        unknown
    }

    /// Takes in what is known of entries that are not held here: which of them were asked for.
    pub fn unknown(&mut self, unknown: &Unknown, asked: &BTreeSet<String>) {
        for (sequence, key) in unknown {
            if asked.contains(key) {
                self.unread += 1;
            } else {
                self.differs(Some(*sequence), key, Wrong::NotAsked);
            }
        }
    }

    /// Takes in payments of which Finance was never told.
    pub fn never_booked(&mut self, payments: &[String]) {
        for payment in payments {
            self.differs(None, payment, Wrong::NeverBooked);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use uuid::Uuid;
    use vitrine_commerce::{
        finance::{EntryKind, Receipt},
        money::Money,
    };
    use vitrine_keys::SoftwareSigner;
    use vitrine_service::Seal;

    use super::*;

    fn seal(seed: u8) -> Seal {
        let signer = SoftwareSigner::new([seed; 32].into()).unwrap();
        Seal::new(Arc::new(signer), "shop.example/finance").unwrap()
    }

    /// A ledger with so many entries.
    fn ledger(seal: &Seal, entries: u64) -> Vec<String> {
        let mut root = finance::FIRST_ROOT.to_owned();
        let of = |sequence| {
            let receipt = Receipt {
                epoch: Uuid::from_u128(1),
                sequence,
                previous_root: root.clone(),
                key: format!("deposit:pi_{sequence}"),
                request_sha256: "1".repeat(64),
                kind: EntryKind::Deposit,
                order: Uuid::from_u128(7),
                amount: Money::new(100, "EUR".parse().unwrap()),
                at: Timestamp::UNIX_EPOCH,
            };
            let (text, note) = seal.note(finance::KIND, &receipt).unwrap();
            root = finance::next_root(&root, &text);
            String::from_utf8(note).unwrap()
        };
        (1..=entries).map(of).collect()
    }

    fn held(notes: &[String]) -> Vec<Held> {
        let of = |(note, sequence): (&String, u64)| Held {
            sequence,
            key: format!("deposit:pi_{sequence}"),
            request: vec![],
            note: note.clone().into_bytes(),
        };
        notes.iter().zip(1..).map(of).collect()
    }

    fn compared(theirs: &[String], held: &[Held], asked: &[&str]) -> Report {
        let (mut report, keys) = (Report::default(), [seal(1).key().clone()]);
        // In windows of two, as large ledgers are.
        for after in (0..6).step_by(2) {
            let theirs: Vec<_> = theirs.iter().skip(after).take(2).cloned().collect();
            let after = after as u64;
            let held: Vec<_> = held
                .iter()
                .filter(|held| (after + 1..=after + 2).contains(&held.sequence))
                .cloned()
                .collect();
            let unknown = report.window(after, &theirs, &held, &keys);
            report.unknown(&unknown, &asked.iter().map(|&key| key.to_owned()).collect());
        }
        report
    }

    fn found(report: &Report) -> Vec<(Option<u64>, Wrong)> {
        let found = report.differences.iter().map(|one| (one.sequence, one.wrong));
        found.collect()
    }

    #[test]
    fn books_that_are_the_same_differ_in_nothing() {
        let theirs = ledger(&seal(1), 5);
        let report = compared(&theirs, &held(&theirs), &[]);
        assert_eq!(
            (report.entries, report.equal, report.differing),
            (5, 5, 0),
            "{report:?}"
        );
        // One of which the answer was lost is asked for again.
        let report = compared(&theirs, &held(&theirs)[..4], &["deposit:pi_5"]);
        assert_eq!(
            (report.equal, report.unread, report.differing),
            (4, 1, 0),
            "{report:?}"
        );
    }

    #[test]
    fn each_way_in_which_books_differ_is_told() {
        let theirs = ledger(&seal(1), 5);
        let ours = held(&theirs);
        let of = |theirs: &[String], held: &[Held]| found(&compared(theirs, held, &[]));
        assert_eq!(of(&theirs[..4], &ours), [(Some(5), Wrong::Lost)]);
        assert_eq!(of(&theirs, &ours[..4]), [(Some(5), Wrong::NotAsked)]);
        let mut changed = ours.clone();
        changed[2].note.push(b'x');
        assert_eq!(of(&theirs, &changed), [(Some(3), Wrong::Differs)]);
        let mut forged = theirs.clone();
        forged[1] = ledger(&seal(2), 2).remove(1);
        assert_eq!(of(&forged, &ours), [(Some(2), Wrong::NotSigned)]);
        let mut cut = theirs.clone();
        cut.remove(2);
        let cut = of(&cut, &held(&cut));
        assert!(cut.contains(&(Some(3), Wrong::NotChained)), "{cut:?}");
        let mut report = Report::default();
        report.never_booked(&["pi_9".to_owned()]);
        assert_eq!(found(&report), [(None, Wrong::NeverBooked)]);
    }
}
