//! Verdicts on licences: the committed vectors, and a verifier in Go that shares no code with ours (`tests/verifier/`). Both say the same word.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vitrine_commerce::{
    licence::{
        Asked, Buyer, Code, KIND, Licence, Limits, Remembered, Revocations, Sku, Trust, account, id, verify,
    },
    note::{self, NamedKey},
};
use vitrine_parts::{Helper, soak};
use vitrine_service::Seal;
use vitrine_shop_tests::house::{Keys, seal};

const DAY: u32 = 86_400;
/// Vectors of each verdict.
const EACH: usize = 5;

/// What is asked of a verifier, as both read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    licence: String,
    revocations: String,
    licence_keys: Vec<String>,
    revocation_keys: Vec<String>,
    now: Timestamp,
    sequence: u64,
    latest: String,
    account: String,
    sku: String,
    version: String,
}

/// A question and the word that answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Vector {
    code: String,
    question: Question,
}

fn at(days: i64) -> Timestamp {
    let issued: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
    issued + SignedDuration::from_hours(24 * days)
}

fn licence() -> Licence {
    Licence {
        id: id(Uuid::from_u128(5), 0),
        order: Uuid::from_u128(6),
        sku: Sku {
            id: "acme/notes".to_owned(),
            versions: ">=1.2, <2".to_owned(),
        },
        manifest: None,
        buyer: Buyer {
            account: account("https://id.example", "alice"),
            recipient: None,
        },
        limits: Limits {
            users: Some(5),
            ..Limits::default()
        },
        entitlements: vec!["export".to_owned()],
        issued_at: at(0),
        not_before: at(0),
        expires: Some(at(365)),
        max_staleness_seconds: Some(7 * DAY),
        grace_seconds: 3 * DAY,
        finance_receipt_sha256: "ab".repeat(32),
        revocations: "https://shop.example/revocations".to_owned(),
        critical: vec![],
        extensions: BTreeMap::new(),
    }
}

fn list(keys: &Seal, sequence: u64, made: i64, revoked: &[Uuid]) -> Vec<u8> {
    let list = Revocations::new(
        sequence,
        at(made),
        at(made + 30),
        "5a".repeat(16),
        revoked.iter().copied(),
    );
    noted(keys, Revocations::KIND, &list)
}

fn noted<T: Serialize>(seal: &Seal, kind: &str, document: &T) -> Vec<u8> {
    seal.note(kind, document).unwrap().1
}

fn by_hand(seal: &Seal, text: &str) -> Vec<u8> {
    note::signed(text.as_bytes(), seal.key(), &seal.sign(text.as_bytes()).unwrap())
}

fn question(keys: &Keys, licence: &[u8], revocations: &[u8]) -> Question {
    Question {
        licence: STANDARD.encode(licence),
        revocations: STANDARD.encode(revocations),
        licence_keys: vec![keys.licences.key().to_string()],
        revocation_keys: vec![keys.revocations.key().to_string()],
        now: at(1),
        sequence: 0,
        latest: String::new(),
        account: String::new(),
        sku: String::new(),
        version: String::new(),
    }
}

fn ours(question: &Question) -> Code {
    let read = |keys: &[String]| keys.iter().map(|key| NamedKey::read(key).unwrap()).collect();
    let trust = Trust {
        licences: read(&question.licence_keys),
        revocations: read(&question.revocation_keys),
    };
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let (licence, list) = (
        STANDARD.decode(&question.licence).unwrap(),
        STANDARD.decode(&question.revocations).unwrap(),
    );
    let (account, sku) = (said(&question.account), said(&question.sku));
    let version = said(&question.version).map(|version| version.parse().unwrap());
    let asked = Asked {
        revocations: Some(list.as_slice()).filter(|list| !list.is_empty()),
        now: question.now,
        remembered: Remembered {
            sequence: question.sequence,
            latest: said(&question.latest).map(|latest| latest.parse().unwrap()),
        },
        account: account.as_deref(),
        sku: sku.as_deref(),
        version: version.as_ref(),
    };
    verify(&licence, &trust, &asked).code
}

/// Questions of each verdict, which are made the same way each time.
fn questions() -> Vec<Question> {
    let keys = Keys::default();
    let stranger = seal("shop.example/licence", 77);
    let sign = |licence: &Licence| noted(&keys.licences, KIND, licence);
    let (good, fresh) = (
        sign(&licence()),
        list(&keys.revocations, 7, 0, &[Uuid::from_u128(99)]),
    );
    let ask = |licence: &[u8], list: &[u8], change: &dyn Fn(&mut Question)| {
        let mut question = question(&keys, licence, list);
        change(&mut question);
        question
    };
    let mut all = vec![];
    for number in 0..EACH {
        let (n, days) = (number as u64, number as i64);
        let with = |change: &dyn Fn(&mut Licence)| {
            let mut changed = licence();
            changed.order = Uuid::from_u128(100 + u128::from(n));
            change(&mut changed);
            sign(&changed)
        };
        let as_it_is = |_: &mut Question| {};
        // valid
        all.push(ask(&with(&|_| {}), &fresh, &|question| question.now = at(days)));
        // malformed
        let broken = [
            &b""[..],
            b"vitrine.dev/licence/v1\n{}\n",
            b"\xff\xfe",
            b"{\"licence\":1}",
            &good[1..],
        ];
        all.push(ask(broken[number], &fresh, &as_it_is));
        // not-canonical
        let json = serde_json::to_string(&licence()).unwrap();
        let loose = [
            json.clone(),
            json.replace("{\"", "{ \""),
            json.replace("\"export\"", "\"\\u0065xport\""),
            json.replace("\"entitlements\"", "\"critical\":[],\"entitlements\""),
            json.replace("\"entitlements\"", "\"manifest\":null,\"entitlements\""),
        ];
        all.push(ask(
            &by_hand(&keys.licences, &format!("{KIND}\n{}\n", loose[number])),
            &fresh,
            &as_it_is,
        ));
        // unknown-key
        let unknown = if number == 0 {
            noted(&stranger, KIND, &licence())
        } else {
            with(&|_| {})
        };
        all.push(ask(&unknown, &fresh, &|question| {
            if number > 0 {
                question.licence_keys =
                    vec![seal("shop.example/licence", 50 + number as u8).key().to_string()];
            }
        }));
        // bad-signature
        let place = good.windows(6).position(|window| window == b"export").unwrap() + number;
        let mut changed = good.clone();
        changed[place] ^= 1;
        all.push(ask(&changed, &fresh, &as_it_is));
        // unknown-critical
        all.push(ask(
            &with(&|licence| licence.critical = vec![format!("x{number}")]),
            &fresh,
            &as_it_is,
        ));
        // wrong-account, wrong-sku, wrong-version
        all.push(ask(&good, &fresh, &|question| {
            question.account = account("https://id.example", &format!("mallory{number}"))
        }));
        all.push(ask(&good, &fresh, &|question| {
            question.sku = format!("acme/{number}")
        }));
        let versions = ["0.9.0", "1.1.9", "2.0.0", "2.0.1", "10.0.0"];
        all.push(ask(&good, &fresh, &|question| {
            question.version = versions[number].to_owned()
        }));
        // not-yet-valid
        all.push(ask(
            &with(&|licence| licence.not_before = at(2 + days)),
            &fresh,
            &as_it_is,
        ));
        // expired
        all.push(ask(
            &with(&|licence| licence.expires = Some(at(1 - days))),
            &fresh,
            &as_it_is,
        ));
        // revoked
        let revoked: Vec<_> = (0..=n)
            .map(|other| {
                if other == n {
                    licence().id
                } else {
                    Uuid::from_u128(u128::from(other))
                }
            })
            .collect();
        all.push(ask(
            &good,
            &list(&keys.revocations, 8 + n, 0, &revoked),
            &as_it_is,
        ));
        // revocations-missing
        all.push(ask(&with(&|_| {}), b"", &as_it_is));
        // revocations-bad
        let lists = [
            b"no list".to_vec(),
            list(&stranger, 7, 0, &[]),
            good.clone(),
            fresh[..fresh.len() - 5].to_vec(),
            by_hand(&keys.revocations, &format!("{}\n{{}}\n", Revocations::KIND)),
        ];
        all.push(ask(&good, &lists[number], &as_it_is));
        // revocations-rolled-back
        all.push(ask(&good, &fresh, &|question| question.sequence = 8 + n));
        // revocations-stale
        all.push(ask(&good, &fresh, &|question| question.now = at(11 + days)));
        // clock-turned-back
        all.push(ask(&good, &fresh, &|question| {
            question.latest = at(3 + days).to_string()
        }));
    }
    all
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The verifier in Go, which reads a question a line.
struct Theirs {
    _helper: Helper,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Theirs {
    fn start() -> Self {
        let mut helper = Helper::start(&root().join("verifier"), ".", |command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        })
        .unwrap();
        let (to, from) = (
            helper.process.0.stdin.take().unwrap(),
            helper.process.0.stdout.take().unwrap(),
        );
        Self {
            _helper: helper,
            to,
            from: BufReader::new(from),
        }
    }

    fn say(&mut self, question: &Question) -> String {
        writeln!(self.to, "{}", serde_json::to_string(question).unwrap()).unwrap();
        let mut word = String::new();
        self.from.read_line(&mut word).unwrap();
        word.trim().to_owned()
    }
}

#[test]
fn the_committed_vectors_are_those_and_have_these_verdicts() {
    let now: Vec<_> = questions()
        .into_iter()
        .map(|question| Vector {
            code: ours(&question).to_string(),
            question,
        })
        .collect();
    for code in Code::ALL {
        let count = now.iter().filter(|vector| vector.code == code.as_str()).count();
        assert!(count >= EACH, "{count} vectors of {code}");
    }
    let path = root().join("vectors/licences.json");
    let text = serde_json::to_string_pretty(&now).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{} is not what it was; if that is meant, run this with UPDATE_GOLDEN=1",
        path.display()
    );
}

#[test]
fn a_verifier_in_another_language_says_the_same() {
    let mut theirs = Theirs::start();
    let vectors = questions();
    for question in &vectors {
        assert_eq!(theirs.say(question), ours(question).as_str(), "{question:?}");
    }
    let rounds = if soak() { 100_000 } else { 3_000 };
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..rounds {
        let mut question = vectors.choose(&mut rng).unwrap().clone();
        let mut bytes = STANDARD.decode(&question.licence).unwrap();
        let mut list = STANDARD.decode(&question.revocations).unwrap();
        // Bytes that are other ones, more or less of them, and other circumstances.
        for bytes in [&mut bytes, &mut list] {
            if !bytes.is_empty() && rng.random_bool(0.3) {
                let place = rng.random_range(0..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes[place] ^= 1 << rng.random_range(0..8),
                    1 => bytes.truncate(place),
                    _ => bytes.insert(place, rng.random()),
                }
            }
        }
        question.licence = STANDARD.encode(bytes);
        question.revocations = STANDARD.encode(list);
        question.now = at(0) + SignedDuration::from_mins(rng.random_range(-3 * 1440..400 * 1440));
        question.sequence = rng.random_range(0..12);
        assert_eq!(
            theirs.say(&question),
            ours(&question).as_str(),
            "round {round}: {question:?}"
        );
    }
}
