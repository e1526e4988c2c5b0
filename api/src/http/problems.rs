//! What goes wrong, as problems with stable codes. What a caller cannot help is in the log only.

use axum::http::StatusCode;
use vitrine_service::Problem;

use crate::{
    edges::Refusal,
    flows::checkout::CheckoutError,
    seams::{Outside, StoreError},
};

/// An edge that was refused.
pub(super) fn refused(refusal: &Refusal) -> Problem {
    let of = |status, code, title| Problem::new(status, code, title).detail(refusal);
    match refusal {
        Refusal::Unknown(_) => of(
            StatusCode::NOT_FOUND,
            "unit-unknown",
            "the order has no such thing",
        ),
        Refusal::Overtaken(_) => of(StatusCode::CONFLICT, "overtaken", "somebody was first"),
        Refusal::Unpaid => of(StatusCode::CONFLICT, "order-unpaid", "the order is not paid"),
        Refusal::Refunded(_) => of(
            StatusCode::CONFLICT,
            "unit-refunded",
            "its money went back, or is about to",
        ),
        Refusal::NothingToRefund => of(
            StatusCode::CONFLICT,
            "nothing-to-refund",
            "there is no money to give back",
        ),
        Refusal::NotSold(..) => of(StatusCode::UNPROCESSABLE_ENTITY, "not-sold", "this is not sold"),
        Refusal::PricedByListing(_) => of(
            StatusCode::CONFLICT,
            "priced-by-listing",
            "its listing says what it costs",
        ),
        Refusal::Price(_) | Refusal::Money(_) => {
            of(StatusCode::UNPROCESSABLE_ENTITY, "no-price", "this has no price")
        }
        Refusal::TooOld(_) | Refusal::Receipt(_) | Refusal::Signature(_) | Refusal::Json(..) => {
            internal(refusal)
        }
    }
}

/// Something that a store has not done.
pub(crate) fn store(error: &StoreError) -> Problem {
    match error {
        StoreError::Unknown(_) => {
            tracing::warn!(%error, "the database did not answer");
            Problem::unavailable("the database does not answer")
        }
        StoreError::Missing(what) => Problem::new(StatusCode::NOT_FOUND, "unknown", "there is no such thing")
            .detail(format!("there is no {what}")),
        StoreError::Reused(_) => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key-reused",
            "this idempotency key was used for another request",
        )
        .detail("use another key for another request"),
        StoreError::Refused(refusal) => refused(refusal),
        StoreError::Fenced(_) | StoreError::Broken(_) => internal(error),
    }
}

/// Somebody outside.
pub(super) fn outside(error: &Outside) -> Problem {
    tracing::warn!(%error, "somebody outside did not do what was asked");
    match error {
        Outside::Unknown { who, .. } | Outside::TooOften { who, .. } => {
            Problem::unavailable(format!("{who} does not answer; the order is kept, ask again"))
        }
        Outside::Refused { .. } => internal(error),
    }
}

/// A buyer who cannot be sent to pay.
pub(super) fn checkout(error: &CheckoutError) -> Problem {
    match error {
        CheckoutError::Store(error) => store(error),
        CheckoutError::Stripe(error) => outside(error),
        CheckoutError::Busy(_) => Problem::unavailable(error),
    }
}

/// A defect, or something that a person has to look at.
pub(super) fn internal(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "a request failed");
    Problem::internal()
}
