//! The operator's errors: what failed, on which object, and what the reader can do. One enum; categories are bounded.

/// Everything that can go wrong in the operator's programs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("failed to {verb} {kind} {name}: {}", words(source))]
    Kube {
        /// What was tried.
        verb: &'static str,
        /// On which kind.
        kind: &'static str,
        /// On which object, `namespace/name` where it has one.
        name: String,
        /// The API server's words.
        source: Box<kube::Error>,
    },
    /// An object stands where one of ours belongs, and is not ours.
    #[error("{kind} {name} exists and is not this preview's: remove it or the preview")]
    Foreign {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A stored object cannot be read.
    #[error("{name} cannot be read: {message}; compare it with `kubectl explain previewsandbox`")]
    Malformed {
        /// Its name.
        name: String,
        /// Why.
        message: String,
    },
    /// Something of Vitrine's own installation is missing.
    #[error("the installation is incomplete: {0}")]
    Installation(String),
    /// A port cannot be taken.
    #[error(transparent)]
    Listen(#[from] vitrine_program::NotServed),
    /// A setting cannot be used.
    #[error("{0}")]
    Setting(String),
    /// A receipt was not acknowledged.
    #[error("the sink did not acknowledge the receipt of preview {uid}: {message}")]
    Receipt {
        /// The preview's uid.
        uid: String,
        /// Why.
        message: String,
        /// Whether it is about this receipt, and not about the sink.
        lasting: bool,
    },
    /// A receipt was not signed.
    #[error("{0}")]
    Unsigned(#[from] vitrine_receipts::Refused),
    /// Previews remain after a drain.
    #[error("{0}")]
    Remains(String),
}

impl Error {
    /// Wraps an error of the API server.
    pub fn kube(
        verb: &'static str,
        kind: &'static str,
        name: impl Into<String>,
    ) -> impl FnOnce(kube::Error) -> Self {
        let name = name.into();
        move |source| Self::Kube {
            verb,
            kind,
            name,
            source: Box::new(source),
        }
    }

    /// The bounded word for metrics.
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Kube { .. } => "api",
            Self::Foreign { .. } => "foreign",
            Self::Malformed { .. } => "malformed",
            Self::Installation(_) => "installation",
            Self::Listen(_) => "listen",
            Self::Setting(_) => "setting",
            Self::Receipt { .. } => "receipt",
            Self::Unsigned(_) => "signer",
            Self::Remains(_) => "remains",
        }
    }

    /// Whether somebody else wrote first: not a failure, look again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube { source, .. } if status(source).is_some_and(|s| s.is_conflict() || s.is_already_exists()))
    }
}

/// The API server's own message: kube's text repeats the whole answer in its Rust form.
fn words(error: &kube::Error) -> String {
    match status(error) {
        Some(status) => format!("{} ({})", status.message, status.reason),
        None => error.to_string(),
    }
}

/// The API server's answer, if it was one.
pub fn status(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// What a call came to when "not there" is a good answer.
pub fn found<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if status(&error).is_some_and(kube::core::Status::is_not_found) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The result of the operator's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
