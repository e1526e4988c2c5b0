//! The certificates of one cluster, made in process. Pure but for randomness and the clock: writes no file.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::error::{Error, Result};

/// A development cluster that lives longer than this has outlived its purpose.
const VALIDITY: Duration = Duration::days(365);
/// Clocks of containers and of this machine are the same, but a certificate from "now" is a classic trap.
const BACKDATED: Duration = Duration::hours(1);

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A certificate authority that signs [`Pair`]s.
pub(crate) struct Authority {
    cert: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Debug, Default)]
pub(crate) struct Subject<'a> {
    /// The user, for client certificates.
    pub(crate) name: &'a str,
    /// The groups, for client certificates.
    pub(crate) groups: &'a [&'a str],
    /// Names a server is called by.
    pub(crate) dns: &'a [&'a str],
    /// Addresses a server is called by.
    pub(crate) addresses: &'a [IpAddr],
}

impl Authority {
    /// A new authority with a key of its own.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let fail = |source| Error::Pki {
            name: name.to_owned(),
            source,
        };
        let mut params = base(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate().map_err(fail)?;
        let cert = params.self_signed(&key).map_err(fail)?.pem();
        Ok(Self {
            cert,
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate, PEM.
    pub(crate) fn cert(&self) -> &str {
        &self.cert
    }

    /// Its own key, PEM: the controller-manager signs certificate requests with it.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for a client, a server or both.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<Pair> {
        let fail = |source| Error::Pki {
            name: subject.name.to_owned(),
            source,
        };
        let mut params = base(subject.name);
        for group in subject.groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        for name in subject.dns {
            let name = (*name).try_into().map_err(fail)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().map_err(fail)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(fail)?.pem();
        Ok(Pair {
            cert,
            key: key.serialize_pem(),
        })
    }
}

/// A bare key pair, PEM: `cert` is the public key. For service account tokens.
pub(crate) fn signing_pair() -> Result<Pair> {
    let key = KeyPair::generate().map_err(|source| Error::Pki {
        name: "service accounts".to_owned(),
        source,
    })?;
    Ok(Pair {
        cert: key.public_key_pem(),
        key: key.serialize_pem(),
    })
}

fn base(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + VALIDITY;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A kubeconfig with everything inside it, as JSON (which is YAML), so that it can be copied anywhere.
pub(crate) fn kubeconfig(cluster: &str, server: &str, ca: &str, client: &Pair) -> String {
    use base64::Engine as _;
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": cluster, "cluster": { "server": server, "certificate-authority-data": encode(ca) } }],
        "users": [{
            "name": cluster,
            "user": { "client-certificate-data": encode(&client.cert), "client-key-data": encode(&client.key) },
        }],
        "contexts": [{ "name": cluster, "context": { "cluster": cluster, "user": cluster } }],
        "current-context": cluster,
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_two_groups_keeps_both() {
        let ca = Authority::new("ca").unwrap();
        let pair = ca
            .issue(&Subject {
                name: "u",
                groups: &["a", "b"],
                ..Subject::default()
            })
            .unwrap();
        assert!(pair.cert.contains("BEGIN CERTIFICATE") && pair.key.contains("BEGIN PRIVATE KEY"));
    }

    #[test]
    fn a_kubeconfig_is_self_contained_json() {
        let pair = Pair {
            cert: "c".to_owned(),
            key: "k".to_owned(),
        };
        let text = kubeconfig("n", "https://127.0.0.1:1", "ca", &pair);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value["clusters"][0]["cluster"]["certificate-authority-data"],
            "Y2E="
        );
        assert_eq!(value["current-context"], "n");
    }
}
