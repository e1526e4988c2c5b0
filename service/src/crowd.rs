//! How many requests are under way at once. More are turned away at once and told to come back: in a line that only grows, everybody is answered when
//! they are gone, and what waits takes the memory of who works. Touches nothing.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header::RETRY_AFTER},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::sync::Semaphore;

use crate::problem::Problem;

/// When whoever was turned away may come back, in seconds.
const COME_BACK: HeaderValue = HeaderValue::from_static("1");

/// So many at once.
#[derive(Clone)]
pub struct Crowd(Arc<Semaphore>);

impl Crowd {
    /// So many at once, at most.
    pub fn of(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }
}

/// Answers a request if there is room for it.
pub async fn with_room(State(crowd): State<Crowd>, request: Request, next: Next) -> Response {
    let Ok(_room) = crowd.0.try_acquire() else {
        let mut response = Problem::unavailable("too many ask at the same time").into_response();
        response.headers_mut().insert(RETRY_AFTER, COME_BACK);
        return response;
    };
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::StatusCode, middleware, routing::get};
    use tokio::sync::Barrier;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_is_told_to_come_back_and_finds_some_later() {
        let met = Arc::new(Barrier::new(2));
        let slow = met.clone();
        let routes = Router::new()
            .route(
                "/",
                get(async move || {
                    slow.wait().await;
                    slow.wait().await;
                }),
            )
            .layer(middleware::from_fn_with_state(Crowd::of(1), with_room));
        let ask = |routes: Router| async move {
            let request = Request::get("/").body(Body::empty()).unwrap_or_default();
            routes.oneshot(request).await.map(|answer| {
                let wait = answer.headers().get(RETRY_AFTER).cloned();
                (answer.status(), wait)
            })
        };
        let first = tokio::spawn(ask(routes.clone()));
        // It is inside now.
        met.wait().await;
        let turned_away = ask(routes.clone()).await;
        assert_eq!(
            turned_away,
            Ok((StatusCode::SERVICE_UNAVAILABLE, Some(COME_BACK)))
        );
        met.wait().await;
        assert_eq!(first.await.ok(), Some(Ok((StatusCode::OK, None))));
        let later = tokio::spawn(ask(routes));
        met.wait().await;
        met.wait().await;
        assert_eq!(later.await.ok(), Some(Ok((StatusCode::OK, None))));
    }
}
