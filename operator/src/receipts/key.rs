//! The key that signs receipts, and its public half for whoever verifies them. Reads one file; writes one ConfigMap.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use clap::ValueEnum;
use jiff::Timestamp;
use kube::Client;
use vitrine_receipts::{Signer, SoftwareSigner, names};

use super::Office;
use crate::{
    error::{Error, Result},
    published,
};

/// How many keys that were gone with their process are remembered: a ConfigMap holds a megabyte, and an operator that is started
/// again and again must not fill it.
const PASSING_KEYS: usize = 100;
/// What the names of such keys begin with; the time follows, so that they stand in the order of their age.
const PASSING: &str = "development-";

/// What an installation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// To try and to develop: everything works, and nothing signed has to be believed tomorrow.
    Development,
    /// For real visitors.
    Production,
}

/// The signer of a profile.
///
/// # Errors
/// If the file holds no key, or there is none and the profile needs one.
pub fn signer(profile: Profile, file: Option<&Path>) -> Result<Arc<dyn Signer>> {
    match (file, profile) {
        (Some(path), _) => {
            let because = |why: String| Error::Setting(format!("the receipt key {}: {why}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| because(error.to_string()))?;
            let signer = SoftwareSigner::from_pem(&text).map_err(|error| because(error.to_string()))?;
            Ok(Arc::new(signer))
        }
        (None, Profile::Production) => Err(Error::Setting(
            "the production profile signs no receipts with a key that is gone with this process: make one with `openssl \
             genpkey -algorithm ed25519` and pass it by --receipt-key (chart: receipts.keySecret), or pass --profile=development \
             (chart: profile)"
                .to_owned(),
        )),
        (None, Profile::Development) => {
            tracing::warn!("receipts are signed with a key that is gone with this process: for development only");
            Ok(Arc::new(SoftwareSigner::generate()))
        }
    }
}

/// Publishes the public half.
///
/// # Errors
/// If the API server refuses; a conflict is tried again by the caller.
pub async fn publish(client: &Client, namespace: &str, office: &Office) -> Result<()> {
    let passing = office.passing_key.then(Timestamp::now);
    let signer = office.signer.as_ref();
    published::change(client, namespace, names::KEYS, |data| {
        with_key(data, signer, passing)
    })
    .await
}

fn with_key(
    mut data: BTreeMap<String, String>,
    signer: &dyn Signer,
    passing: Option<Timestamp>,
) -> BTreeMap<String, String> {
    let known = data.values().any(|pem| pem == signer.public_key());
    if known {
        return data;
    }
    let name = match passing {
        // What a lasting key has signed may be shown years later: those are never dropped.
        None => signer.key_id().to_owned(),
        Some(now) => {
            let oldest = |data: &BTreeMap<String, String>| {
                let passing: Vec<_> = data
                    .keys()
                    .filter(|name| name.starts_with(PASSING))
                    .cloned()
                    .collect();
                (passing.len() >= PASSING_KEYS).then(|| passing[0].clone())
            };
            while let Some(oldest) = oldest(&data) {
                data.remove(&oldest);
            }
            format!("{PASSING}{:012}-{}", now.as_second(), signer.key_id())
        }
    };
    data.insert(name, signer.public_key().to_owned());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn production_refuses_a_passing_key_and_says_how_to_make_one() {
        let error = signer(Profile::Production, None).err().unwrap().to_string();
        assert!(
            error.contains("openssl genpkey -algorithm ed25519") && error.contains("--receipt-key"),
            "{error}"
        );
        assert!(signer(Profile::Development, None).is_ok());
        let missing = signer(Profile::Development, Some(Path::new("/nowhere/key.pem")))
            .err()
            .unwrap();
        assert!(missing.to_string().contains("/nowhere/key.pem"), "{missing}");
    }

    #[test]
    fn lasting_keys_are_kept_for_good_and_passing_ones_within_a_bound() {
        let lasting = SoftwareSigner::generate();
        let mut data = with_key(BTreeMap::new(), &lasting, None);
        assert_eq!(data[lasting.key_id()], lasting.public_key());
        let passing: Vec<_> = (0..PASSING_KEYS + 10)
            .map(|_| SoftwareSigner::generate())
            .collect();
        for (second, signer) in (1_800_000_000..).zip(&passing) {
            data = with_key(data, signer, Some(Timestamp::from_second(second).unwrap()));
        }
        assert_eq!(data.len(), PASSING_KEYS + 1);
        let keys: Vec<_> = data.values().collect();
        let has = |signer: &SoftwareSigner| keys.iter().any(|pem| *pem == signer.public_key());
        assert!(
            has(&lasting) && !has(&passing[9]) && passing[10..].iter().all(has),
            "the oldest go"
        );
        let again = with_key(data.clone(), &passing[50], Some(Timestamp::now()));
        assert_eq!(again, data, "published once");
    }
}
