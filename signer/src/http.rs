//! What the signer is asked by: an id, and nothing that could be believed.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, middleware, routing::post};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;
use vitrine_commerce::{
    licence::Revocations,
    note::{self, NamedKey},
};
use vitrine_service::{Json, Path, Problem, Seal, Token, known};

use crate::{judge::judge, rows};

/// What the routes work with.
#[derive(Clone)]
pub struct Desk {
    /// The shop's database.
    pub pool: PgPool,
    /// For licences.
    pub licences: Seal,
    /// For revocation lists.
    pub revocations: Seal,
    /// What Finance signs with.
    pub finance_keys: Vec<NamedKey>,
    /// Whoever has it may ask.
    pub token: Arc<Token>,
}

/// The routes.
pub fn routes(desk: Desk) -> Router {
    Router::new()
        .route("/licences/{id}/signature", post(licence))
        .route("/revocations/{sequence}/signature", post(list))
        .route_layer(middleware::from_fn_with_state(desk.token.clone(), known))
        .with_state(desk)
}

/// A signature.
#[derive(Serialize)]
struct Signed {
    /// 64 bytes in hex digits.
    signature: String,
}

async fn licence(State(desk): State<Desk>, Path(id): Path<Uuid>) -> Result<Json<Signed>, Problem> {
    let row = rows::licence(&desk.pool, id)
        .await
        .map_err(Problem::unavailable)?;
    let row = row.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "licence-unknown",
            "there is no such licence",
        )
        .detail(id)
    })?;
    judge(&row, &desk.finance_keys, desk.licences.key()).map_err(|refused| {
        // Somebody wrote rows by hand, or the keys are not what they were: a person has to look.
        tracing::error!(%refused, "a licence is not signed");
        Problem::new(
            StatusCode::FORBIDDEN,
            "licence-refused",
            "this licence is not signed",
        )
        .detail(refused)
    })?;
    sign(&desk.licences, &row.text)
}

async fn list(State(desk): State<Desk>, Path(sequence): Path<i64>) -> Result<Json<Signed>, Problem> {
    let row = rows::revocations(&desk.pool, sequence)
        .await
        .map_err(Problem::unavailable)?;
    let no_such =
        || Problem::new(StatusCode::NOT_FOUND, "list-unknown", "there is no such list").detail(sequence);
    let (text, key) = row.ok_or_else(no_such)?;
    let refused = |why: String| {
        Problem::new(StatusCode::FORBIDDEN, "list-refused", "this list is not signed").detail(why)
    };
    if key != desk.revocations.key().to_string() {
        return Err(refused(format!("it is to be signed by {key}")));
    }
    let said: Revocations =
        note::unsigned(Revocations::KIND, &text).map_err(|bad| refused(bad.to_string()))?;
    if i64::try_from(said.sequence) != Ok(sequence) {
        return Err(refused(format!("it says that it is list {}", said.sequence)));
    }
    sign(&desk.revocations, &text)
}

fn sign(seal: &Seal, text: &[u8]) -> Result<Json<Signed>, Problem> {
    let signature = seal.sign(text).map_err(Problem::unavailable)?;
    let signature = hex::encode(signature);
    Ok(Json(Signed { signature }))
}
