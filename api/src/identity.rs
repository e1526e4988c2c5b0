//! Who people are: OpenID Connect bearer tokens (OpenID Connect Core 1.0; RFC 9068 for what an access token is checked for). Reads the provider's
//! keys.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, header::AUTHORIZATION, request::Parts},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde::Deserialize;
use tokio::sync::Mutex;
use uuid::Uuid;
use vitrine_service::Problem;

use crate::{
    http::{Counter, problems},
    seams::Store,
    store::postgres::{Numbered, Shop},
};

/// Keys are fetched anew so seldom, …
const KEPT: Duration = Duration::from_secs(600);
/// … and for a token with a key that is not among them no more often than this: anybody can send one.
const AT_MOST: Duration = Duration::from_secs(10);
/// Clocks may differ by so much, in seconds.
const LEEWAY: u64 = 30;
/// What tokens may be signed by. None that a public key could be mistaken for a secret of (RFC 8725, section 3.1).
const ALGORITHMS: [Algorithm; 4] = [
    Algorithm::RS256,
    Algorithm::PS256,
    Algorithm::ES256,
    Algorithm::EdDSA,
];

/// Of whom tokens are taken.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Its issuer, exactly as tokens say it.
    pub issuer: String,
    /// Whom tokens must be for.
    pub audience: String,
    /// The group of those who run the shop.
    pub admins: String,
    /// What `acr` says of who used a second factor; `amr` with `mfa` is as good.
    pub second_factor: String,
}

/// What is known of the provider.
pub struct Identity {
    provider: Provider,
    client: reqwest::Client,
    keys: Mutex<Option<Keys>>,
}

#[derive(Clone)]
struct Keys {
    set: Arc<JwkSet>,
    fetched: Instant,
}

/// What a token says, as far as it is asked.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    acr: Option<String>,
    #[serde(default)]
    amr: Vec<String>,
}

/// Somebody who is known to the identity provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The provider.
    pub issuer: String,
    /// Its name for them.
    pub subject: String,
    is_admin: bool,
}

/// Somebody who runs the shop, and has used a second factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin(pub Person);

/// Why nobody knows who asks.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("send Authorization: Bearer with a token of {0}")]
    NoToken(String),
    #[error("the token is not taken: {0}")]
    BadToken(String),
    #[error("the identity provider does not answer: {0}")]
    Provider(String),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Identity {
    /// A provider, of which nothing was asked yet.
    pub fn new(provider: Provider, client: reqwest::Client) -> Self {
        Self {
            provider,
            client,
            keys: Mutex::new(None),
        }
    }

    async fn fetch(&self) -> Result<JwkSet, Unknown> {
        let unreachable = |error: reqwest::Error| Unknown::Provider(error.to_string());
        let get = async |url: &str| {
            self.client
                .get(url)
                .send()
                .await?
                .error_for_status()?
                .bytes()
                .await
        };
        let issuer = &self.provider.issuer;
        // OpenID Connect Discovery 1.0, section 4.
        let address = format!(
            "{}/.well-known/openid-configuration",
            issuer.trim_end_matches('/')
        );
        let unreadable = |error: serde_json::Error| Unknown::Provider(error.to_string());
        let discovery: Discovery =
            serde_json::from_slice(&get(&address).await.map_err(unreachable)?).map_err(unreadable)?;
        if discovery.issuer != *issuer {
            return Err(Unknown::Provider(format!(
                "it says that it is {}",
                discovery.issuer
            )));
        }
        serde_json::from_slice(&get(&discovery.jwks_uri).await.map_err(unreachable)?).map_err(unreadable)
    }

    /// Keys that have this one, if there are any: fetched once for all who wait for them.
    async fn keys(&self, id: &str) -> Result<Arc<JwkSet>, Unknown> {
        let mut known = self.keys.lock().await;
        if let Some(keys) = known.as_ref() {
            let (age, has_it) = (keys.fetched.elapsed(), keys.set.find(id).is_some());
            if (has_it && age < KEPT) || age < AT_MOST {
                return Ok(keys.set.clone());
            }
        }
        match self.fetch().await {
            Ok(set) => {
                let set = Arc::new(set);
                *known = Some(Keys {
                    set: set.clone(),
                    fetched: Instant::now(),
                });
                Ok(set)
            }
            // What was good a while ago is better than nobody.
            Err(error) => match known.as_ref().filter(|keys| keys.set.find(id).is_some()) {
                Some(keys) => {
                    tracing::warn!(%error, "the identity provider's keys are old");
                    Ok(keys.set.clone())
                }
                None => Err(error),
            },
        }
    }

    async fn person(&self, token: &str) -> Result<Person, Unknown> {
        let bad = |why: &dyn std::fmt::Display| Unknown::BadToken(why.to_string());
        let header = decode_header(token).map_err(|error| bad(&error))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(bad(&format!("it is signed by {:?}", header.alg)));
        }
        let id = header.kid.ok_or_else(|| bad(&"it does not name its key"))?;
        let keys = self.keys(&id).await?;
        let key = keys
            .find(&id)
            .ok_or_else(|| bad(&"its key is not the provider's"))?;
        // The algorithm is the key's: a token that says another one is not taken.
        let key = DecodingKey::from_jwk(key).map_err(|error| bad(&error))?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.provider.audience]);
        validation.set_issuer(&[&self.provider.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        let claims = decode::<Claims>(token, &key, &validation)
            .map_err(|error| bad(&error))?
            .claims;
        let has_second_factor = claims.acr.as_ref() == Some(&self.provider.second_factor)
            || claims.amr.iter().any(|by| by == "mfa");
        Ok(Person {
            is_admin: has_second_factor && claims.groups.contains(&self.provider.admins),
            issuer: claims.iss,
            subject: claims.sub,
        })
    }
}

impl Person {
    /// Their account, made when they are first seen.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn account(&self, shop: &Shop) -> Result<Uuid, Problem> {
        shop.account(&self.issuer, &self.subject)
            .await
            .map_err(|error| problems::store(&error))
    }

    /// An order of theirs. Of another's it is not told that there is one.
    ///
    /// # Errors
    /// If there is none.
    pub async fn order(&self, shop: &Shop, id: Uuid) -> Result<Numbered, Problem> {
        let no_such =
            || Problem::new(StatusCode::NOT_FOUND, "order-unknown", "there is no such order").detail(id);
        let found = shop.numbered(id).await;
        let is_theirs = |found: &Numbered| {
            let buyer = &found.order.buyer;
            buyer.issuer == self.issuer && buyer.subject == self.subject
        };
        found
            .map_err(|error| problems::store(&error))?
            .filter(is_theirs)
            .ok_or_else(no_such)
    }
}

impl FromRequestParts<Counter> for Person {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, counter: &Counter) -> Result<Self, Problem> {
        let said = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = said.and_then(|said| said.strip_prefix("Bearer "));
        let known = match token {
            Some(token) => counter.identity.person(token).await,
            None => Err(Unknown::NoToken(counter.identity.provider.issuer.clone())),
        };
        known.map_err(|unknown| match &unknown {
            Unknown::Provider(_) => {
                tracing::warn!(%unknown, "nobody can come in");
                Problem::unavailable("the identity provider does not answer")
            }
            Unknown::NoToken(_) | Unknown::BadToken(_) => {
                Problem::new(StatusCode::UNAUTHORIZED, "unknown-caller", "who is asking?").detail(&unknown)
            }
        })
    }
}

impl FromRequestParts<Counter> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, counter: &Counter) -> Result<Self, Problem> {
        let person = Person::from_request_parts(parts, counter).await?;
        if person.is_admin {
            Ok(Self(person))
        } else {
            Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not-admin",
                "this is for who runs the shop",
            )
            .detail("be in the group of admins, and come in with a second factor"))
        }
    }
}
