//! Finance's HTTP contract (docs/finance.md). Turns requests into the ledger's, and its errors into problems.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use vitrine_service::{Json, Path, Problem, Query, Token, known};

use crate::{
    ledger::{Ledger, LedgerError},
    statement::statement,
};

/// Receipts in one answer, if nothing else is asked, and at most.
const PAGE: i64 = 100;
const LARGEST_PAGE: i64 = 1_000;
/// What a signed note is: text, whatever its lines say.
const NOTE: &str = "text/plain; charset=utf-8";
/// By it an entry is found again; it is the entry's own key.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What the routes work with.
#[derive(Clone)]
pub struct Finance {
    /// The ledger.
    pub ledger: Ledger,
    /// Its database, for what is only read.
    pub pool: PgPool,
    /// Whoever has it may ask.
    pub token: Arc<Token>,
}

/// The routes.
pub fn routes(finance: Finance) -> Router {
    Router::new()
        .route("/ledger/entries", post(write).get(list))
        .route("/ledger/entries/{key}", get(find))
        .route("/ledger/head", get(head))
        .route("/statements/{seller}", get(of_seller))
        .route_layer(middleware::from_fn_with_state(finance.token.clone(), known))
        .with_state(finance)
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        let of = |status, code, title| Self::new(status, code, title).detail(&error);
        match &error {
            LedgerError::Malformed(_) => of(StatusCode::BAD_REQUEST, "entry-malformed", "this is no entry"),
            LedgerError::Bad(_) => of(
                StatusCode::UNPROCESSABLE_ENTITY,
                "entry-unsound",
                "an entry cannot be so",
            ),
            LedgerError::Differs(_) => of(
                StatusCode::CONFLICT,
                "entry-differs",
                "another entry has this key",
            ),
            LedgerError::NoEntry(_) => of(
                StatusCode::CONFLICT,
                "entry-unknown",
                "what it follows is not in the ledger",
            ),
            LedgerError::Busy | LedgerError::Unknown(_) => Self::unavailable(&error),
        }
    }
}

fn note(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, NOTE)], bytes).into_response()
}

/// Writes an entry, or answers the receipt of the one that is there.
async fn write(
    State(finance): State<Finance>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    #[derive(Deserialize)]
    struct Keyed {
        key: String,
    }
    let body = body?;
    let said = headers.get(IDEMPOTENCY_KEY).and_then(|value| value.to_str().ok());
    let malformed = |error| Problem::from(LedgerError::Malformed(format!("{error}")));
    let Keyed { key } = serde_json::from_slice(&body).map_err(malformed)?;
    if said != Some(&key) {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "key-differs",
            "the header Idempotency-Key is the entry's key",
        )
        .detail(format!("the header says {said:?}, and the entry {key:?}")));
    }
    Ok(note(finance.ledger.post(body.into()).await?))
}

async fn find(State(finance): State<Finance>, Path(key): Path<String>) -> Result<Response, Problem> {
    match finance.ledger.find(&key).await? {
        Some(receipt) => Ok(note(receipt)),
        None => {
            Err(Problem::new(StatusCode::NOT_FOUND, "entry-unknown", "there is no such entry").detail(key))
        }
    }
}

/// Which receipts.
#[derive(Deserialize)]
struct Page {
    /// Those after this one.
    #[serde(default)]
    after: u64,
    /// So many.
    limit: Option<i64>,
}

/// Receipts, in the ledger's order.
#[derive(Serialize)]
struct Receipts {
    receipts: Vec<String>,
}

async fn list(State(finance): State<Finance>, Query(page): Query<Page>) -> Result<Json<Receipts>, Problem> {
    let most = page.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let notes = finance.ledger.after(page.after, most).await?;
    // Notes are text (C2SP signed-note).
    let receipts = notes
        .iter()
        .map(|note| String::from_utf8_lossy(note).into_owned())
        .collect();
    Ok(Json(Receipts { receipts }))
}

async fn head(State(finance): State<Finance>) -> Result<Response, Problem> {
    Ok(note(finance.ledger.head().await?))
}

/// Of which time.
#[derive(Deserialize)]
struct Period {
    from: Timestamp,
    until: Timestamp,
}

async fn of_seller(
    State(finance): State<Finance>,
    Path(seller): Path<String>,
    Query(period): Query<Period>,
) -> Result<Response, Problem> {
    if period.until > Timestamp::now() {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "period-open",
            "the period is not over",
        )
        .detail("a statement is of a time in which nothing can happen any more"));
    }
    let told = statement(&finance.pool, &seller, period.from, period.until).await;
    let told = told.map_err(Problem::unavailable)?;
    let bytes = serde_json_canonicalizer::to_vec(&told).map_err(|error| {
        tracing::error!(%error, seller, "a statement cannot be written");
        Problem::internal()
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
