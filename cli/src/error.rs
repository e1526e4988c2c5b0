//! What can go wrong on the command line: what failed, on which object, and what the reader can do.

/// Everything that can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cluster.
    #[error("no Kubernetes cluster is configured ({0}); set KUBECONFIG or pass --kubeconfig")]
    Cluster(String),
    /// The API server refused or did not answer.
    #[error("failed to {verb} {kind} {name}: {source}")]
    Kube {
        /// What was tried.
        verb: &'static str,
        /// On which kind.
        kind: &'static str,
        /// On which object.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A receipt proves nothing.
    #[error(transparent)]
    Receipt(#[from] vitrine_receipts::BadReceipt),
    /// A file cannot be read.
    #[error("failed to read {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
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
}

/// The result of the commands.
pub type Result<T, E = Error> = std::result::Result<T, E>;
