//! Stripe tells of something: checked, written down, and only then answered.

use jiff::Timestamp;
use serde::Deserialize;
use vitrine_commerce::pan;

use crate::{
    seams::{Event, Store, StoreError},
    stripe_signature::{self, BadSignature, Secrets},
};

/// Of whom events are taken.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What Stripe signs with. None: there is no endpoint.
    pub secrets: Option<Secrets>,
    /// Whether money is real here.
    pub livemode: bool,
    /// Our account, where events of connected ones may come too.
    pub account: Option<String>,
}

/// Why an event is not taken. What is said of it to whoever sent it is less.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Nobody is expected to send any.
    #[error("there is no secret for webhooks")]
    NoEndpoint,
    /// It is not Stripe's.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// It is Stripe's, and cannot be read.
    #[error("the event cannot be read: {0}")]
    Shape(String),
    /// It is of the other mode.
    #[error("the event's livemode is {0}")]
    Mode(bool),
    /// It is of another account.
    #[error("the event is of account {0}")]
    Account(String),
    /// It cannot be written down: Stripe sends it again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What of an event is looked at; all else is read anew.
#[derive(Deserialize)]
struct Told {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    livemode: bool,
    account: Option<String>,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    /// The object's own; of what has none, that of the event is as good: nothing is read by it.
    id: Option<String>,
}

/// Takes an event; whether it was new. It is there when this returns.
///
/// # Errors
/// If it is not taken.
pub async fn receive<S: Store>(
    store: &S,
    endpoint: &Endpoint,
    header: Option<&str>,
    body: &[u8],
    now: Timestamp,
) -> Result<bool, Rejected> {
    let secrets = endpoint.secrets.as_ref().ok_or(Rejected::NoEndpoint)?;
    stripe_signature::verify(secrets, header, body, now.as_second())?;
    let told: Told = serde_json::from_slice(body).map_err(|error| Rejected::Shape(error.to_string()))?;
    if told.livemode != endpoint.livemode {
        return Err(Rejected::Mode(told.livemode));
    }
    if let Some(account) = told
        .account
        .filter(|account| endpoint.account.as_ref() != Some(account))
    {
        return Err(Rejected::Account(account));
    }
    let created = Timestamp::from_second(told.created).map_err(|error| Rejected::Shape(error.to_string()))?;
    // Ids of Stripe's are no card numbers. What is one nevertheless is not kept, and names nothing then.
    let text = |text: &str| pan::masked(text).into_owned();
    let event = Event {
        object: text(told.data.object.id.as_ref().unwrap_or(&told.id)),
        id: text(&told.id),
        kind: text(&told.kind),
        created,
    };
    let event = event
        .sound()
        .map_err(|error| Rejected::Shape(error.to_string()))?;
    let told = [(event, vitrine_commerce::sha256(body))];
    Ok(store.receive(&told).await? > 0)
}
