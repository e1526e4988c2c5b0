//! What only a shop knows, made at random: keys, tokens, passwords. Runs the shop's own programs for the public halves of its keys.

use std::{fs::File, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use serde_json::{Value, json};

use super::{AROUND, NAME, NAMESPACE, around::POSTGRES_PORT};
use crate::{
    error::{Error, Result},
    images, program,
};

/// The logins of the databases, and which of them each is for.
pub(super) const LOGINS: [(&str, &str); 5] = [
    ("owner", "shop"),
    ("api", "shop"),
    ("catalogue", "shop"),
    ("signer", "shop"),
    ("finance", "finance"),
];

/// All of a shop's.
pub struct Secrets {
    /// The public halves of its keys, as the chart's value `keys` has them.
    pub public: Value,
    /// The same, as whoever verifies a licence pins them.
    pub pinned: String,
    /// Stripe's key, and the secret of its webhooks.
    pub(super) stripe: [String; 2],
    pub(super) passwords: [String; 5],
    tokens: [String; 2],
    keys: [String; 3],
    pub(super) tls: Tls,
}

/// Postgres' own certificate, and who says that it is.
pub(super) struct Tls {
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

/// Writes what only its owner may read.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let written = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn random() -> String {
    hex::encode(rand::random::<[u8; 24]>())
}

fn unmade(error: &rcgen::Error) -> Error {
    Error::Other(format!("failed to make a key or a certificate: {error}"))
}

impl Tls {
    fn make() -> Result<Self, rcgen::Error> {
        let mut params = rcgen::CertificateParams::new(vec![])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let authority_key = rcgen::KeyPair::generate()?;
        let authority = params.self_signed(&authority_key)?;
        let issuer = rcgen::Issuer::new(params, authority_key);
        let key = rcgen::KeyPair::generate()?;
        let names = vec![format!("postgres.{AROUND}.svc")];
        let certificate = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        Ok(Self {
            authority: authority.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl Secrets {
    /// Makes new ones. Keys are written to a folder for a moment.
    ///
    /// # Errors
    /// If the programs are not there, or the folder cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let ed25519 = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map(|key| key.serialize_pem());
        let mut keys = [String::new(), String::new(), String::new()];
        for key in &mut keys {
            *key = ed25519().map_err(|error| unmade(&error))?;
        }
        let [finance, licence, revocations] = &keys;
        let written = |name: &str, key: &str| {
            let path = folder.join(name);
            write(&path, key)?;
            Ok::<_, Error>(path.display().to_string())
        };
        let files = [
            written("finance.pem", finance)?,
            written("licence.pem", licence)?,
            written("revocations.pem", revocations)?,
        ];
        let said = Self::said(&files);
        for file in &files {
            std::fs::remove_file(file).map_err(|source| Error::File {
                path: file.into(),
                source,
            })?;
        }
        let (finance, pinned) = said?;
        let key = |role: &str| {
            let line = pinned
                .lines()
                .find_map(|line| line.strip_prefix(role)?.strip_prefix(' '));
            line.ok_or_else(|| Error::Other(format!("the signer has no {role} key: {pinned}")))
        };
        Ok(Self {
            public: json!({"licence": key("licence")?, "revocations": key("revocations")?, "finance": [finance.trim()]}),
            stripe: [format!("sk_test_{}", random()), format!("whsec_{}", random())],
            passwords: std::array::from_fn(|_| random()),
            tokens: std::array::from_fn(|_| random()),
            tls: Tls::make().map_err(|error| unmade(&error))?,
            pinned,
            keys,
        })
    }

    /// What Finance's program and the signer's say of these keys.
    fn said([finance, licence, revocations]: &[String; 3]) -> Result<(String, String)> {
        let name = format!("{NAME}/finance");
        let finance = program::run(
            &images::program_of("vitrine-finance"),
            &["key", "--key", finance, "--key-name", &name],
        )?;
        let pinned = program::run(
            &images::program_of("vitrine-signer"),
            &[
                "keys",
                "--licence-key",
                licence,
                "--revocations-key",
                revocations,
                "--shop",
                NAME,
            ],
        )?;
        Ok((finance, pinned))
    }

    /// What the shop's namespace has to hold, as the chart's README says it.
    pub(super) fn objects(&self) -> Value {
        let secret = |name: &str, data: Value| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": data,
            })
        };
        let [finance, licence, revocations] = &self.keys;
        let [finance_token, signer_token] = &self.tokens;
        let [stripe_key, webhook_secret] = &self.stripe;
        let mut items = vec![
            secret("finance-key", json!({"key.pem": finance})),
            secret(
                "signer-keys",
                json!({"licence.pem": licence, "revocations.pem": revocations}),
            ),
            secret("finance-token", json!({"token": finance_token})),
            secret("signer-token", json!({"token": signer_token})),
            secret(
                "stripe",
                json!({"key": stripe_key, "webhook-secrets": webhook_secret}),
            ),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authorities", "namespace": NAMESPACE},
                "data": {"ca.crt": self.tls.authority},
            }),
        ];
        for ((login, database), password) in LOGINS.iter().zip(&self.passwords) {
            let host = format!("postgres.{AROUND}.svc:{POSTGRES_PORT}");
            let url = format!("postgres://{login}:{password}@{host}/{database}?sslmode=verify-full");
            items.push(secret(&format!("database-{login}"), json!({ "url": url })));
        }
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }
}
