//! Receipts once they are written: the key that signs them, the spool in which they outlive their previews, and their way to the
//! audit sink. Writes the spool's namespace, one ConfigMap of keys, and `deliveredAt` in previews.

pub mod exporter;
pub mod key;
pub mod post;
pub mod sink;
pub mod spool;

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use vitrine_receipts::Signer;

use self::{post::Post, sink::Sink, spool::Spool};
use crate::error::Result;

/// Settings of receipts.
#[derive(Args, Clone, Debug)]
// By its type's name it would be the group that it is flattened into.
#[group(id = "receipts")]
pub struct Arguments {
    /// What may be used to sign: in production no key that is gone with this process.
    #[arg(long, value_enum, default_value = "production")]
    profile: key::Profile,
    /// The file of the key that signs receipts: Ed25519, PKCS #8 PEM.
    #[arg(long)]
    receipt_key: Option<PathBuf>,
    /// The namespace in which receipts outlive their previews.
    #[arg(long, default_value = "vitrine-receipts")]
    receipts_namespace: String,
    /// How many receipts are kept there at most.
    #[arg(long, default_value_t = 5000)]
    receipts_kept: usize,
    /// Where receipts are sent: `https://…`, `http://…` or `file:///…`. Nowhere if there is none.
    #[arg(long)]
    receipt_sink: Option<String>,
    /// The file with the bearer token for the sink.
    #[arg(long)]
    receipt_sink_token: Option<PathBuf>,
    /// The file with the certificate authorities of the sink, PEM; those of the system if there is none.
    #[arg(long)]
    receipt_sink_ca: Option<PathBuf>,
}

/// What is set up once a process.
#[derive(Clone)]
pub struct Office {
    /// Signs.
    pub signer: Arc<dyn Signer>,
    /// Where receipts go, if anywhere.
    pub sink: Option<Arc<Sink>>,
    /// Whether the key is gone with this process.
    pub passing_key: bool,
    /// The namespace of the spool.
    pub namespace: String,
    /// How many receipts it holds at most.
    pub kept: usize,
}

impl Office {
    /// Reads the key and the sink's settings.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn open(arguments: &Arguments) -> Result<Self> {
        let sink = arguments
            .receipt_sink
            .as_deref()
            .map(|address| {
                let (token, ca) = (&arguments.receipt_sink_token, &arguments.receipt_sink_ca);
                Sink::open(address, token.clone(), ca.as_deref()).map(Arc::new)
            })
            .transpose()?;
        Ok(Self {
            signer: key::signer(arguments.profile, arguments.receipt_key.as_deref())?,
            sink,
            passing_key: arguments.receipt_key.is_none(),
            namespace: arguments.receipts_namespace.clone(),
            kept: arguments.receipts_kept,
        })
    }
}

/// What a leader works with.
pub struct Receipts {
    /// Key and sink.
    pub office: Office,
    /// Receipts without a preview.
    pub spool: Spool,
    /// Those on their way.
    pub post: Post,
}
