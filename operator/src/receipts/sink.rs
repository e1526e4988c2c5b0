//! Where receipts go: a file, or an HTTP server that answers for them from then on. Writes there, nothing else.
//!
//! At least once, with the preview's uid as the stable id: whoever reads drops what they have.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::error::{Error, Result};

/// A sink that takes longer is down.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a refusal, as much as a reader needs.
const WORDS_BYTES: usize = 2048;

/// Where receipts go.
#[derive(Debug)]
pub enum Sink {
    /// Lines of JSON appended to a file.
    File(PathBuf),
    /// One POST for each.
    Http(Box<HttpSink>),
}

/// An HTTP sink.
#[derive(Debug)]
pub struct HttpSink {
    address: Uri,
    token: Option<PathBuf>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Why a receipt was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// The sink takes none at the moment.
    #[error("{0}")]
    Unavailable(String),
    /// The sink does not take this one.
    #[error("{0}")]
    Refused(String),
}

impl Undelivered {
    /// The bounded word for metrics.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Refused(_) => "refused",
        }
    }
}

impl Sink {
    /// Understands an address.
    ///
    /// # Errors
    /// If it is none, or the certificate authorities cannot be read.
    pub fn open(address: &str, token: Option<PathBuf>, ca: Option<&Path>) -> Result<Self> {
        if let Some(path) = address.strip_prefix("file://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::File(path))
            } else {
                Err(unusable(
                    address,
                    "a file is named by its absolute path, file:///path",
                ))
            };
        }
        // Credentials in an address end up in logs and in the pod's arguments.
        if address.contains(['@', '?']) {
            let advice = "it is scheme, host and path; credentials go into --receipt-sink-token";
            return Err(unusable("…", advice));
        }
        let uri: Uri = address.parse().map_err(|e| unusable(address, &format!("{e}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(unusable(
                address,
                "it is none of https://…, http://… and file:///…",
            ));
        }
        if token.is_some() && uri.scheme_str() == Some("http") {
            return Err(unusable(address, "a token is sent over https only"));
        }
        let builder = HttpsConnectorBuilder::new();
        let builder = match ca {
            Some(path) => builder.with_tls_config(trusting(path)?),
            None => match builder.with_native_roots() {
                Ok(builder) => builder,
                // Needed only by whoever verifies somebody.
                Err(_) if uri.scheme_str() == Some("http") => {
                    HttpsConnectorBuilder::new().with_tls_config(nobody_trusted())
                }
                Err(error) => {
                    return Err(unusable(
                        address,
                        &format!(
                            "this system has no certificate authorities ({error}); pass --receipt-sink-ca"
                        ),
                    ));
                }
            },
        };
        let connector = builder.https_or_http().enable_http1().build();
        Ok(Self::Http(Box::new(HttpSink {
            address: uri,
            token,
            client: Client::builder(TokioExecutor::new()).build(connector),
        })))
    }

    /// Delivers one receipt; returns once the sink answers for it.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn deliver(&self, id: &str, envelope: &str) -> Result<(), Undelivered> {
        match self {
            Self::File(path) => {
                let (path, line) = (path.clone(), format!("{envelope}\n"));
                let appended = tokio::task::spawn_blocking(move || {
                    append(&path, line.as_bytes()).map_err(|error| format!("{}: {error}", path.display()))
                });
                let appended = appended.await.unwrap_or_else(|error| Err(error.to_string()));
                appended.map_err(Undelivered::Unavailable)
            }
            Self::Http(sink) => match tokio::time::timeout(PATIENCE, sink.post(id, envelope)).await {
                Ok(answer) => answer,
                Err(_) => Err(Undelivered::Unavailable(format!(
                    "{}: no answer within {} s",
                    sink.address,
                    PATIENCE.as_secs()
                ))),
            },
        }
    }
}

/// On the disk when it returns.
fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .open(path)?;
    // Whoever was killed in the middle of a line has left half of one: it stays by itself, and is sent again whole.
    let line = if ends_a_line(&mut file)? {
        line.to_vec()
    } else {
        [b"\n", line].concat()
    };
    file.write_all(&line)?;
    file.sync_data()
}

fn ends_a_line(file: &mut File) -> std::io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == [b'\n'])
}

impl HttpSink {
    async fn post(&self, id: &str, envelope: &str) -> Result<(), Undelivered> {
        let unavailable = |why: String| Undelivered::Unavailable(format!("{}: {why}", self.address));
        let mut request = Request::post(self.address.clone())
            .header(CONTENT_TYPE, vitrine_receipts::MEDIA_TYPE)
            .header("idempotency-key", id);
        if let Some(path) = &self.token {
            // Read each time: tokens are rotated.
            let token = tokio::fs::read_to_string(path).await;
            let token =
                token.map_err(|error| unavailable(format!("the token {}: {error}", path.display())))?;
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        let request = request.body(Full::from(envelope.to_owned()));
        let request = request.map_err(|error| unavailable(error.to_string()))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| unavailable(words(&error)))?;
        let status = answer.status();
        // A conflict is how many say that they have something of this id already.
        if status.is_success() || status == StatusCode::CONFLICT {
            return Ok(());
        }
        let said = first_words(answer.into_body()).await;
        let why = format!("{}: it answered {status} {said}", self.address);
        Err(if is_about_this_one(status) {
            Undelivered::Refused(why)
        } else {
            Undelivered::Unavailable(why)
        })
    }
}

/// What a body begins with.
async fn first_words(mut body: Incoming) -> String {
    let mut words = vec![];
    while words.len() < WORDS_BYTES {
        match body.frame().await {
            Some(Ok(frame)) => words.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            _ => break,
        }
    }
    words.truncate(WORDS_BYTES);
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// Whether an answer speaks of what was sent, and not of who sent it, or where to, or when.
fn is_about_this_one(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::GONE
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// What went wrong at the bottom: the client's own words are "client error (Connect)".
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn trusting(path: &Path) -> Result<ClientConfig> {
    let because = |why: String| {
        Error::Setting(format!(
            "the certificate authorities of the receipt sink, {}: {why}",
            path.display()
        ))
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| because(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| because(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| because(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(because("there is none in it".to_owned()));
    }
    Ok(ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn nobody_trusted() -> ClientConfig {
    ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

fn unusable(address: &str, why: &str) -> Error {
    Error::Setting(format!("the receipt sink {address:?} cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_says_which_are() {
        for address in [
            "",
            "receipts",
            "ftp://x/",
            "file://relative",
            "https:///nowhere",
            "http://user:secret@sink/",
            "http://sink/?key=secret",
        ] {
            let error = Sink::open(address, None, None).unwrap_err().to_string();
            assert!(
                error.contains("cannot be used") && !error.contains("secret"),
                "{address}: {error}"
            );
        }
        let token = Some(PathBuf::from("/token"));
        let error = Sink::open("http://sink/", token, None).unwrap_err().to_string();
        assert!(error.contains("over https only"), "{error}");
    }

    #[tokio::test]
    async fn a_file_gets_whole_lines_even_after_half_a_one() {
        let path = std::env::temp_dir().join(format!("vitrine-receipts-{}", std::process::id()));
        let sink = Sink::open(&format!("file://{}", path.display()), None, None).unwrap();
        sink.deliver("1", "{\"n\":1}").await.unwrap();
        let half = OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"n\":");
        half.unwrap();
        sink.deliver("2", "{\"n\":2}").await.unwrap();
        sink.deliver("3", "{\"n\":3}").await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, "{\"n\":1}\n{\"n\":\n{\"n\":2}\n{\"n\":3}\n");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_a_sink_that_is_down() {
        let sink = Sink::open("file:///proc/nowhere/receipts", None, None).unwrap();
        let error = sink.deliver("1", "{}").await.unwrap_err();
        assert!(matches!(error, Undelivered::Unavailable(_)), "{error}");
    }

    #[test]
    fn only_what_speaks_of_the_receipt_sets_it_aside() {
        for status in [400, 413, 422] {
            assert!(
                is_about_this_one(StatusCode::from_u16(status).unwrap()),
                "{status}"
            );
        }
        for status in [301, 401, 403, 404, 408, 429, 500, 503] {
            assert!(
                !is_about_this_one(StatusCode::from_u16(status).unwrap()),
                "{status}"
            );
        }
    }
}
