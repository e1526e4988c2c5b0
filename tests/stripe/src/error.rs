//! Stripe's errors (<https://docs.stripe.com/api/errors>). Pure.

use serde_json::{Value, json};

/// An error as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// HTTP status.
    pub status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl Error {
    /// Something is wrong with a request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            kind: "invalid_request_error",
            code: None,
            param: None,
            message: message.into(),
        }
    }

    /// The same, with one of Stripe's codes.
    pub const fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The same, of this parameter.
    pub fn of(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// A parameter is missing.
    pub fn missing(param: &str) -> Self {
        Self::invalid(format!("Missing required param: {param}."))
            .with_code("parameter_missing")
            .of(param)
    }

    /// A parameter is not known.
    pub fn unknown(param: &str) -> Self {
        Self::invalid(format!("Received unknown parameter: {param}"))
            .with_code("parameter_unknown")
            .of(param)
    }

    /// There is no such object.
    pub fn no_such(object: &str, id: &str) -> Self {
        let error = Self::invalid(format!("No such {object}: '{id}'"))
            .with_code("resource_missing")
            .of("id");
        Self { status: 404, ..error }
    }

    /// There is no such place.
    pub fn no_such_place(message: String) -> Self {
        Self {
            status: 404,
            ..Self::invalid(message)
        }
    }

    /// No key, or a wrong one.
    pub fn unauthorized() -> Self {
        Self {
            status: 401,
            ..Self::invalid("Invalid API Key provided.")
        }
    }

    /// Too many requests (<https://docs.stripe.com/rate-limits>).
    pub fn too_often() -> Self {
        let error = Self::invalid("Request rate limit exceeded.").with_code("rate_limit");
        Self { status: 429, ..error }
    }

    /// The same idempotency key for another request (<https://docs.stripe.com/api/idempotent_requests>).
    pub fn other_request(key: &str) -> Self {
        let message = format!(
            "Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '{key}' if you meant to execute a different request."
        );
        Self {
            kind: "idempotency_error",
            ..Self::invalid(message)
        }
    }

    /// As it is answered.
    pub fn json(&self) -> Value {
        json!({"error": {"type": self.kind, "code": self.code, "param": self.param, "message": self.message}})
    }
}
