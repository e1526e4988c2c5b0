//! People of the OpenID provider in `tests/oidc`: they sign in as they would in a browser, with PKCE. Sends requests to the provider.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Client, ClientBuilder, Method, Response, Url, header, redirect};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::PartError;

/// Where the storefront has people come back to (`tests/oidc/provider.mjs`).
const BACK: &str = "http://127.0.0.1/signed-in";
/// What a person's storefront keeps until they are back (RFC 7636, section 4.1).
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters-as-it-has-to-be";
const FORM: &str = "application/x-www-form-urlencoded";
/// Pages and redirects until somebody is signed in; there are about six.
const STEPS: usize = 20;

/// The provider, as people and the storefront reach it.
pub struct People {
    issuer: String,
    client: Client,
}

/// A browser, as far as this needs one: it keeps cookies.
struct Browser<'a> {
    client: &'a Client,
    cookies: BTreeMap<String, String>,
}

fn failed(what: &str, said: impl std::fmt::Display) -> PartError {
    PartError::Failed {
        what: what.to_owned(),
        said: said.to_string(),
    }
}

fn unanswered(error: reqwest::Error) -> PartError {
    failed("the identity provider", error)
}

fn encoded(form: &[(&str, &str)]) -> String {
    let mut encoder = form_urlencoded::Serializer::new(String::new());
    encoder.extend_pairs(form).finish()
}

impl Browser<'_> {
    async fn asks(
        &mut self,
        method: Method,
        address: &Url,
        form: &[(&str, &str)],
    ) -> Result<Response, PartError> {
        let cookies = self.cookies.iter().map(|(name, value)| format!("{name}={value}"));
        let cookies: Vec<_> = cookies.collect();
        let mut request = self
            .client
            .request(method.clone(), address.clone())
            .header(header::COOKIE, cookies.join("; "));
        if method == Method::POST {
            request = request.header(header::CONTENT_TYPE, FORM).body(encoded(form));
        }
        let answer = request.send().await.map_err(unanswered)?;
        for cookie in answer.headers().get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().ok().and_then(|text| text.split(';').next());
            if let Some((name, value)) = pair.and_then(|pair| pair.split_once('=')) {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(answer)
    }
}

impl People {
    /// People of a provider, who reach it as this client does.
    ///
    /// # Errors
    /// If there is no such client.
    pub fn of(issuer: &str, client: ClientBuilder) -> Result<Self, PartError> {
        // Nothing here is encrypted; a client is not made without.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client.redirect(redirect::Policy::none()).build();
        Ok(Self {
            issuer: issuer.to_owned(),
            client: client.map_err(unanswered)?,
        })
    }

    /// Has somebody sign in, by any name; what the storefront gets by the code that they bring back: `access_token`, `id_token`, `refresh_token`.
    ///
    /// # Errors
    /// If the provider does not answer, or not as it should.
    pub async fn sign_in(&self, name: &str) -> Result<Value, PartError> {
        let mut browser = Browser {
            client: &self.client,
            cookies: BTreeMap::new(),
        };
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let query = [
            ("client_id", "storefront"),
            ("response_type", "code"),
            ("redirect_uri", BACK),
            ("scope", "openid offline_access"),
            ("prompt", "consent"),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ];
        let begin = Url::parse_with_params(&format!("{}/auth", self.issuer), query);
        let mut address = begin.map_err(|error| failed("the identity provider's address", error))?;
        let (mut method, mut form): (_, Vec<(&str, &str)>) = (Method::GET, vec![]);
        for _ in 0..STEPS {
            let answer = browser.asks(method, &address, &form).await?;
            if answer.status().is_redirection() {
                let to = answer.headers().get(header::LOCATION);
                let to = to.and_then(|to| to.to_str().ok()).unwrap_or_default();
                address = address.join(to).map_err(|error| failed(to, error))?;
                if address.as_str().starts_with(BACK) {
                    let code = address.query_pairs().find(|(name, _)| name == "code");
                    let code = code.ok_or_else(|| failed("signing in", &address))?.1;
                    return self
                        .token(&[
                            ("grant_type", "authorization_code"),
                            ("code", &code),
                            ("redirect_uri", BACK),
                            ("code_verifier", VERIFIER),
                        ])
                        .await;
                }
                (method, form) = (Method::GET, vec![]);
                continue;
            }
            let page = answer.text().await.map_err(unanswered)?;
            (method, form) = if page.contains("name=\"login\"") {
                let filled = vec![("prompt", "login"), ("login", name), ("password", "any")];
                (Method::POST, filled)
            } else if page.contains("value=\"consent\"") {
                (Method::POST, vec![("prompt", "consent")])
            } else {
                return Err(failed(address.as_str(), page));
            };
        }
        Err(failed(
            "signing in",
            format!("it goes round in circles, last at {address}"),
        ))
    }

    /// What the provider gives for a grant.
    ///
    /// # Errors
    /// If it does not answer in JSON.
    pub async fn token(&self, grant: &[(&str, &str)]) -> Result<Value, PartError> {
        let form = [grant, &[("client_id", "storefront")]].concat();
        let answer = self
            .client
            .post(format!("{}/token", self.issuer))
            .header(header::CONTENT_TYPE, FORM)
            .body(encoded(&form))
            .send()
            .await
            .map_err(unanswered)?;
        let body = answer.bytes().await.map_err(unanswered)?;
        serde_json::from_slice(&body).map_err(|error| failed("the identity provider's answer", error))
    }
}
