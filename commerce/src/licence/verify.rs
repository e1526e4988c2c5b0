//! Whether a licence holds: by pinned keys, a revocation list and the time, without a network. Pure.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use semver::{Version, VersionReq};

use super::{KIND, Licence, Revocations};
use crate::note::{self, BadKey, BadNote, NamedKey};

/// Extensions that this verifier knows; a critical one that is not here refuses the licence.
const KNOWN_EXTENSIONS: [&str; 0] = [];
/// A licence that was issued a moment ago holds on a computer whose clock is slow.
const SLOW_CLOCK: SignedDuration = SignedDuration::from_mins(5);
/// A clock may be wrong by so much before it counts as turned back. Who turns it back gains so much at most.
const TURNED_BACK: SignedDuration = SignedDuration::from_hours(24);

/// The keys that are believed, by what they may sign. The algorithm is the key's and never the document's.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// For licences.
    pub licences: Vec<NamedKey>,
    /// For revocation lists.
    pub revocations: Vec<NamedKey>,
}

/// Not a list of pinned keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTrust {
    /// A line says nothing of a key.
    #[error("line {0} is neither empty, a comment, nor `licence KEY` or `revocations KEY`")]
    Line(usize),
    /// A line has no key.
    #[error("line {0}: {1}")]
    Key(usize, BadKey),
}

impl Trust {
    /// Reads pinned keys: one a line, with what it may sign before it, `licence` or `revocations`; `#` begins a comment.
    ///
    /// # Errors
    /// Which line is wrong.
    pub fn read(text: &str) -> Result<Self, BadTrust> {
        let mut trust = Self::default();
        let lines = text.lines().map(str::trim).zip(1..);
        for (line, number) in lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')) {
            let (role, key) = line.split_once(' ').ok_or(BadTrust::Line(number))?;
            let keys = match role {
                "licence" => &mut trust.licences,
                "revocations" => &mut trust.revocations,
                _ => return Err(BadTrust::Line(number)),
            };
            keys.push(NamedKey::read(key.trim()).map_err(|error| BadTrust::Key(number, error))?);
        }
        Ok(trust)
    }
}

/// What a verifier has seen before, and should keep: without it, it cannot tell that somebody shows it an older list, or turned its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The highest sequence of a revocation list.
    pub sequence: u64,
    /// The latest moment at which it was asked.
    pub latest: Option<Timestamp>,
}

/// What is asked of a licence.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The newest revocation list there is.
    pub revocations: Option<&'a [u8]>,
    /// When.
    pub now: Timestamp,
    /// What was seen before.
    pub remembered: Remembered,
    /// Whose it should be ([`super::account`]).
    pub account: Option<&'a str>,
    /// For which product it should be.
    pub sku: Option<&'a str>,
    /// For which version of it.
    pub version: Option<&'a Version>,
}

/// What a licence is worth. The words are part of the interface: they are in the vectors and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// It holds.
    Valid,
    /// It is no licence.
    Malformed,
    /// It is not written in its one way.
    NotCanonical,
    /// Who signed it is not trusted for licences.
    UnknownKey,
    /// It was changed after it was signed.
    BadSignature,
    /// It has a condition that this verifier does not know.
    UnknownCritical,
    /// It is somebody else's.
    WrongAccount,
    /// It is for another product.
    WrongSku,
    /// It is for other versions.
    WrongVersion,
    /// Its time has not come.
    NotYetValid,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
    /// It needs a revocation list, and none was given.
    RevocationsMissing,
    /// The revocation list proves nothing.
    RevocationsBad,
    /// A newer list was seen before.
    RevocationsRolledBack,
    /// The list is older than the licence allows.
    RevocationsStale,
    /// It is earlier than it was.
    ClockTurnedBack,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Valid,
        Self::Malformed,
        Self::NotCanonical,
        Self::UnknownKey,
        Self::BadSignature,
        Self::UnknownCritical,
        Self::WrongAccount,
        Self::WrongSku,
        Self::WrongVersion,
        Self::NotYetValid,
        Self::Expired,
        Self::Revoked,
        Self::RevocationsMissing,
        Self::RevocationsBad,
        Self::RevocationsRolledBack,
        Self::RevocationsStale,
        Self::ClockTurnedBack,
    ];

    /// In one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Malformed => "malformed",
            Self::NotCanonical => "not-canonical",
            Self::UnknownKey => "unknown-key",
            Self::BadSignature => "bad-signature",
            Self::UnknownCritical => "unknown-critical",
            Self::WrongAccount => "wrong-account",
            Self::WrongSku => "wrong-sku",
            Self::WrongVersion => "wrong-version",
            Self::NotYetValid => "not-yet-valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::RevocationsMissing => "revocations-missing",
            Self::RevocationsBad => "revocations-bad",
            Self::RevocationsRolledBack => "revocations-rolled-back",
            Self::RevocationsStale => "revocations-stale",
            Self::ClockTurnedBack => "clock-turned-back",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a licence that holds will soon not do any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The revocation list is too old, and is put up with until then.
    Grace(Timestamp),
}

/// What a licence is worth, and why.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// In one word.
    pub code: Code,
    /// In a sentence, for people.
    pub why: String,
    /// What it says, if its signature holds.
    pub licence: Option<Licence>,
    /// What is wrong and does not matter yet.
    pub warnings: Vec<Warning>,
    /// What is to be remembered for the next time.
    pub remember: Remembered,
}

/// Whether a licence holds.
pub fn verify(licence: &[u8], trust: &Trust, asked: &Asked<'_>) -> Verdict {
    let mut verdict = Verdict {
        code: Code::Valid,
        why: "the licence holds".to_owned(),
        licence: None,
        warnings: vec![],
        remember: asked.remembered,
    };
    if let Err((code, why)) = judge(licence, trust, asked, &mut verdict) {
        verdict.code = code;
        verdict.why = why;
    }
    verdict
}

type Refusal = (Code, String);

fn of_note(bad: &BadNote) -> Code {
    match bad {
        BadNote::Malformed(_) => Code::Malformed,
        BadNote::NotCanonical => Code::NotCanonical,
        BadNote::UnknownKey(_) => Code::UnknownKey,
        BadNote::BadSignature(_) => Code::BadSignature,
    }
}

fn judge(note: &[u8], trust: &Trust, asked: &Asked<'_>, verdict: &mut Verdict) -> Result<(), Refusal> {
    let opened = note::open::<Licence>(KIND, note, &trust.licences);
    let licence = opened.map_err(|bad| (of_note(&bad), bad.to_string()))?;
    verdict.licence = Some(licence.clone());
    let versions: VersionReq = licence.sku.versions.parse().map_err(|error| {
        let versions = &licence.sku.versions;
        (
            Code::Malformed,
            format!("its versions {versions:?} are no range: {error}"),
        )
    })?;
    if let Some(unknown) = licence
        .critical
        .iter()
        .find(|name| !KNOWN_EXTENSIONS.contains(&name.as_str()))
    {
        return Err((
            Code::UnknownCritical,
            format!("it must not be used without {unknown:?}, which this verifier does not know; update it"),
        ));
    }
    for_whom_and_what(&licence, &versions, asked)?;
    let now = asked.now;
    let list = asked
        .revocations
        .map(|note| Revocations::open(note, &trust.revocations));
    let list = list.transpose().map_err(|bad| {
        (
            Code::RevocationsBad,
            format!("the revocation list proves nothing: {bad}"),
        )
    })?;
    on_time(&licence, list.as_ref(), asked)?;
    verdict.remember.latest = asked.remembered.latest.max(Some(now));
    if let Some(list) = &list {
        if list.sequence < asked.remembered.sequence {
            let (shown, seen) = (list.sequence, asked.remembered.sequence);
            return Err((
                Code::RevocationsRolledBack,
                format!("revocation list {shown} was shown, and {seen} was seen before"),
            ));
        }
        verdict.remember.sequence = list.sequence;
        if list.has(licence.id) {
            return Err((
                Code::Revoked,
                format!("licence {} is in revocation list {}", licence.id, list.sequence),
            ));
        }
    }
    if let Some(expires) = licence.expires.filter(|expires| now >= *expires) {
        return Err((Code::Expired, format!("it expired at {expires}")));
    }
    verdict
        .warnings
        .extend(fresh_enough(&licence, list.as_ref(), now)?);
    Ok(())
}

fn for_whom_and_what(licence: &Licence, versions: &VersionReq, asked: &Asked<'_>) -> Result<(), Refusal> {
    if asked
        .account
        .is_some_and(|account| account != licence.buyer.account)
    {
        return Err((Code::WrongAccount, "it is another account's".to_owned()));
    }
    if let Some(sku) = asked.sku.filter(|sku| *sku != licence.sku.id) {
        return Err((
            Code::WrongSku,
            format!("it is for {} and not for {sku}", licence.sku.id),
        ));
    }
    match asked.version {
        Some(version) if !versions.matches(version) => Err((
            Code::WrongVersion,
            format!("it is for versions {versions} and not for {version}"),
        )),
        _ => Ok(()),
    }
}

fn on_time(licence: &Licence, list: Option<&Revocations>, asked: &Asked<'_>) -> Result<(), Refusal> {
    let now = asked.now;
    if later(now, SLOW_CLOCK) < licence.not_before {
        return Err((Code::NotYetValid, format!("it holds from {}", licence.not_before)));
    }
    let seen = asked.remembered.latest.max(list.map(|list| list.issued_at));
    match seen {
        Some(seen) if later(now, TURNED_BACK) < seen => Err((
            Code::ClockTurnedBack,
            format!("it is {now}, and {seen} has been before; set the clock"),
        )),
        _ => Ok(()),
    }
}

/// So much later, or as late as there is.
fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Whether the list is new enough, or old and put up with.
fn fresh_enough(
    licence: &Licence,
    list: Option<&Revocations>,
    now: Timestamp,
) -> Result<Option<Warning>, Refusal> {
    let Some(staleness) = licence.max_staleness_seconds else {
        return Ok(None);
    };
    let Some(list) = list else {
        return Err((
            Code::RevocationsMissing,
            format!(
                "it holds with a revocation list only; get the newest from {}",
                licence.revocations
            ),
        ));
    };
    let seconds = |seconds: u32| SignedDuration::from_secs(i64::from(seconds));
    let stale = list.expires.min(later(list.issued_at, seconds(staleness)));
    let refused = later(stale, seconds(licence.grace_seconds));
    match () {
        () if now <= stale => Ok(None),
        () if now <= refused => Ok(Some(Warning::Grace(refused))),
        () => Err((
            Code::RevocationsStale,
            format!(
                "the revocation list of {} is too old since {refused}; get the newest from {}",
                list.issued_at, licence.revocations
            ),
        )),
    }
}
