//! The DSSE envelope of a receipt (Dead Simple Signing Envelope 1.0.2). Pure.
//!
//! <https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md>: the signature covers the payload's bytes and type, so
//! nothing has to be brought into a canonical form, neither to sign nor to verify.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use vitrine_keys::{Refused, Signer};

use crate::{
    keys::Keys,
    statement::{PREDICATE_TYPE, STATEMENT_TYPE, Statement},
};

/// Media type of an envelope in JSON (DSSE, `envelope.md`).
pub const MEDIA_TYPE: &str = "application/vnd.dsse.envelope.v1+json";
/// Media type of what is in it (in-toto, `envelope.md`).
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A signed receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// [`PAYLOAD_TYPE`].
    pub payload_type: String,
    /// The statement's bytes, base64.
    pub payload: String,
    /// One signature, or several after a change of keys.
    pub signatures: Vec<Signature>,
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The id of the key.
    pub keyid: String,
    /// The signature's bytes, base64.
    pub sig: String,
}

/// Why a receipt proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReceipt {
    /// Not an envelope, or not with a receipt in it.
    #[error("this is no receipt of a preview: {0}")]
    Malformed(String),
    /// None of its signatures is by a key that is known.
    #[error("none of the keys that signed this receipt is known ({0}): is it of another installation?")]
    UnknownKey(String),
    /// A known key's signature does not match.
    #[error("this receipt was changed after key {0} signed it")]
    BadSignature(String),
}

impl Envelope {
    /// Signs a statement.
    ///
    /// # Errors
    /// If the signer refuses.
    pub fn sign(statement: &Statement, signer: &dyn Signer) -> Result<Self, Refused> {
        let payload = serde_json::to_vec(statement).map_err(|error| Refused(error.to_string()))?;
        let sig = signer.sign(&encoded(PAYLOAD_TYPE, &payload))?;
        Ok(Self {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature {
                keyid: signer.key_id().to_owned(),
                sig: STANDARD.encode(sig),
            }],
        })
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// If the text is none.
    pub fn read(text: &str) -> Result<Self, BadReceipt> {
        serde_json::from_str(text).map_err(|error| BadReceipt::Malformed(error.to_string()))
    }

    /// What it states, if a known key has signed it.
    ///
    /// # Errors
    /// Why it proves nothing. Nothing of the payload is looked at before a signature of it holds.
    pub fn verify(&self, keys: &Keys) -> Result<Statement, BadReceipt> {
        let malformed = |what: &str| BadReceipt::Malformed(what.to_owned());
        let payload = STANDARD
            .decode(&self.payload)
            .map_err(|_| malformed("its payload is not base64"))?;
        let signed = encoded(&self.payload_type, &payload);
        let known: Vec<_> = self.signatures.iter().filter(|s| keys.knows(&s.keyid)).collect();
        if known.is_empty() {
            let ids: Vec<_> = self.signatures.iter().map(|s| s.keyid.as_str()).collect();
            return Err(BadReceipt::UnknownKey(ids.join(", ")));
        }
        let holds = |signature: &&&Signature| {
            let bytes = STANDARD.decode(&signature.sig).unwrap_or_default();
            keys.verify(&signature.keyid, &signed, &bytes)
        };
        if !known.iter().any(|signature| holds(&signature)) {
            return Err(BadReceipt::BadSignature(known[0].keyid.clone()));
        }
        if self.payload_type != PAYLOAD_TYPE {
            return Err(malformed(&format!("it carries {:?}", self.payload_type)));
        }
        let statement: Statement =
            serde_json::from_slice(&payload).map_err(|error| BadReceipt::Malformed(error.to_string()))?;
        // The same key may come to sign other statements: they are no receipts.
        if statement.type_ != STATEMENT_TYPE || statement.predicate_type != PREDICATE_TYPE {
            return Err(malformed(&format!("it states {:?}", statement.predicate_type)));
        }
        Ok(statement)
    }
}

/// DSSE's pre-authentication encoding: what is signed.
fn encoded(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use vitrine_crds::{
        StatusReason,
        preview_sandbox::{EndResult, Receipt},
    };
    use vitrine_keys::SoftwareSigner;

    use super::*;
    use crate::statement::Predicate;

    fn a_statement() -> Statement {
        Statement {
            type_: STATEMENT_TYPE.into(),
            subject: vec![],
            predicate_type: PREDICATE_TYPE.into(),
            predicate: Predicate {
                name: "shop/one".into(),
                subject_sha256: String::new(),
                seller: "acme".into(),
                listing: "uid/1".into(),
                receipt: Receipt {
                    preview: "p-1".into(),
                    image: "repo@sha256:00".into(),
                    cell: "pvw-1".into(),
                    pod: None,
                    isolated_at: None,
                    started_at: None,
                    ended_at: Time(jiff::Timestamp::UNIX_EPOCH),
                    cause: StatusReason::TimeOver,
                    result: EndResult::Verified,
                    cost: None,
                    signed: None,
                    delivered_at: None,
                },
                isolation: None,
            },
        }
    }

    fn keys(signer: &SoftwareSigner) -> Keys {
        Keys::from_iter([signer.public_key()])
    }

    #[test]
    fn the_encoding_is_that_of_the_standard() {
        // The example of DSSE's protocol.md.
        assert_eq!(
            encoded("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn a_receipt_is_verified_by_the_key_that_signed_it() {
        let signer = SoftwareSigner::generate();
        let envelope = Envelope::sign(&a_statement(), &signer).unwrap();
        let text = serde_json::to_string(&envelope).unwrap();
        let read = Envelope::read(&text).unwrap();
        assert_eq!(read.verify(&keys(&signer)).unwrap(), a_statement());
    }

    #[test]
    fn a_changed_or_foreign_receipt_proves_nothing() {
        let (signer, other) = (SoftwareSigner::generate(), SoftwareSigner::generate());
        let envelope = Envelope::sign(&a_statement(), &signer).unwrap();
        assert!(matches!(
            envelope.verify(&keys(&other)),
            Err(BadReceipt::UnknownKey(_))
        ));

        let mut changed = a_statement();
        changed.predicate.receipt.result = EndResult::ReportedGone;
        let mut forged = envelope.clone();
        forged.payload = STANDARD.encode(serde_json::to_vec(&changed).unwrap());
        assert!(matches!(
            forged.verify(&keys(&signer)),
            Err(BadReceipt::BadSignature(_))
        ));

        let mut retyped = envelope.clone();
        retyped.payload_type = "application/json".into();
        assert!(matches!(
            retyped.verify(&keys(&signer)),
            Err(BadReceipt::BadSignature(_))
        ));

        let mut unsigned = envelope.clone();
        unsigned.signatures.clear();
        assert!(matches!(
            unsigned.verify(&keys(&signer)),
            Err(BadReceipt::UnknownKey(_))
        ));

        // Another's signature under the id of a known key.
        let mut passed_off = Envelope::sign(&a_statement(), &other).unwrap();
        signer.key_id().clone_into(&mut passed_off.signatures[0].keyid);
        assert!(matches!(
            passed_off.verify(&keys(&signer)),
            Err(BadReceipt::BadSignature(_))
        ));
    }

    #[test]
    fn another_statement_of_the_same_key_is_no_receipt() {
        let signer = SoftwareSigner::generate();
        let mut other = a_statement();
        other.predicate_type = "https://example.com/other".into();
        let envelope = Envelope::sign(&other, &signer).unwrap();
        assert!(matches!(
            envelope.verify(&keys(&signer)),
            Err(BadReceipt::Malformed(_))
        ));
    }

    #[test]
    fn a_second_signature_of_an_unknown_key_does_no_harm() {
        let (signer, next) = (SoftwareSigner::generate(), SoftwareSigner::generate());
        let mut envelope = Envelope::sign(&a_statement(), &next).unwrap();
        envelope
            .signatures
            .extend(Envelope::sign(&a_statement(), &signer).unwrap().signatures);
        assert!(envelope.verify(&keys(&signer)).is_ok());
    }
}
