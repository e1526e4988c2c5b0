//! A buyer wants to pay: there is one session at which they can, whoever asks, and however often.

use tracing::Instrument;
use uuid::Uuid;

use crate::{
    edges::{
        At, Refusal,
        attempt::{self, Begun},
        observe,
    },
    order::{Order, Session},
    seams::{By, Outside, Placing, Store, StoreError, Stripe},
};

/// A customer is made, an old session expired, and a new one made: at most so many steps, unless others do the same at the same time.
const STEPS: u32 = 6;

/// Where the buyer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To Stripe's page.
    Pay(Session),
    /// Nowhere: they have paid, or have done all there is to do.
    Paid,
    /// Nowhere: the order was given up.
    Closed,
}

/// Why a buyer cannot be sent to pay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckoutError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stripe.
    #[error(transparent)]
    Stripe(#[from] Outside),
    /// Others did the same all the time.
    #[error("others begin to pay for order {0} at the same time; ask again")]
    Busy(Uuid),
}

/// Makes an order, and sends its buyer to pay. The same request again is the same order.
///
/// # Errors
/// If there is nowhere to send them now. It may be asked for again, and what was made is made then.
pub async fn place<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    placing: &Placing,
    actor: &str,
) -> Result<Destination, CheckoutError> {
    let placed = async {
        match store.place(placing).await? {
            Some(begun) => go_on(store, stripe, placing.id, actor, begun).await,
            None => begin(store, stripe, placing.id, actor).await,
        }
    };
    placed
        .instrument(tracing::info_span!("place", order = %placing.id))
        .await
}

/// The session at which an order is paid.
///
/// # Errors
/// If there is none now. It may be asked for again.
pub async fn begin<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    order: Uuid,
    actor: &str,
) -> Result<Destination, CheckoutError> {
    let begun = store.change(order, By::Somebody(actor), attempt::begin).await?;
    go_on(store, stripe, order, actor, begun).await
}

/// Does what has still to be done. What comes of each step is written in the transaction that decides the next one.
async fn go_on<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    order: Uuid,
    actor: &str,
    mut begun: Begun,
) -> Result<Destination, CheckoutError> {
    let by = By::Somebody(actor);
    for _ in 0..STEPS {
        begun = match begun {
            Begun::Open(session) => return Ok(Destination::Pay(session)),
            Begun::Paid => return Ok(Destination::Paid),
            Begun::Closed => return Ok(Destination::Closed),
            Begun::Customer(call) => {
                let customer = stripe.make_customer(&call).await?;
                let known = |order: &mut Order, at: &At<'_>| {
                    overtaken(attempt::customer(order, &customer))?;
                    attempt::begin(order, at)
                };
                store.change(order, by, known).await?
            }
            Begun::Send { n, call } => {
                let session = stripe.make_session(&call).await?;
                // Written down before anybody is sent there: whoever has given up this attempt meanwhile knew that nobody was.
                let made = |order: &mut Order, at: &At<'_>| {
                    overtaken(attempt::made(order, n, &session))?;
                    attempt::begin(order, at)
                };
                store.change(order, by, made).await?
            }
            Begun::Expire(session) => {
                stripe.expire_session(&session).await?;
                let observed = stripe.read(&session).await?.unwrap_or_default().1;
                let over = |order: &mut Order, at: &At<'_>| {
                    observe::apply(order, &observed, at)?;
                    attempt::begin(order, at)
                };
                store.change(order, by, over).await?
            }
        }
    }
    Err(CheckoutError::Busy(order))
}

/// What somebody else has done first is as good.
fn overtaken(changed: Result<(), Refusal>) -> Result<(), Refusal> {
    match changed {
        Err(Refusal::Overtaken(why)) => {
            tracing::info!(why, "an attempt to pay was overtaken");
            Ok(())
        }
        changed => changed,
    }
}

/// The buyer comes back, and says that they have paid: that grants nothing, and only has Stripe asked (CHK-33).
///
/// # Errors
/// If Stripe or the store does not answer: a webhook or the janitor finds it out.
pub async fn confirm<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    order: Uuid,
    actor: &str,
) -> Result<(), CheckoutError> {
    let known = store.order(order).await?;
    for attempt in known.attempts.values() {
        if let Some(session) = &attempt.session {
            look(store, stripe, order, &session.id, actor).await?;
        }
    }
    Ok(())
}

async fn look<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    order: Uuid,
    session: &str,
    actor: &str,
) -> Result<(), CheckoutError> {
    if let Some((_, observed)) = stripe.read(session).await? {
        let by = By::Somebody(actor);
        store
            .change(order, by, |order, at| observe::apply(order, &observed, at))
            .await?;
    }
    Ok(())
}
