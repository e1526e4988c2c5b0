//! Stripe's objects, as far as a shop sees them, and how they are written as JSON (API version [`VERSION`]). Pure.
//!
//! What each field means: <https://docs.stripe.com/api>. Fields that a shop of ours never reads are there where Stripe's own schema requires them.

#![allow(
    missing_docs,
    reason = "fields and variants are Stripe's own, and documented there"
)]

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The version of the API: that of the schema that answers are judged by.
pub const VERSION: &str = "2026-08-26.dahlia";

/// What others say of an object: text by name.
pub type Metadata = BTreeMap<String, String>;

/// A customer.
#[derive(Clone, Debug)]
pub struct Customer {
    pub id: String,
    pub created: i64,
    pub email: Option<String>,
    pub metadata: Metadata,
}

/// A Checkout Session of mode `payment`.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    pub created: i64,
    pub expires_at: i64,
    pub status: SessionStatus,
    pub payment_status: PaymentStatus,
    pub amount: i64,
    pub currency: String,
    pub customer: Option<String>,
    pub client_reference_id: Option<String>,
    pub payment_intent: Option<String>,
    pub metadata: Metadata,
    /// What its payment intent is made with.
    pub intent_metadata: Metadata,
    pub success_url: String,
    pub cancel_url: Option<String>,
    pub url: String,
}

/// <https://docs.stripe.com/api/checkout/sessions/object#checkout_session_object-status>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    Open,
    Complete,
    Expired,
}

/// <https://docs.stripe.com/api/checkout/sessions/object#checkout_session_object-payment_status>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentStatus {
    Unpaid,
    Paid,
}

/// A payment intent with its charges.
#[derive(Clone, Debug)]
pub struct Intent {
    pub id: String,
    pub created: i64,
    pub status: IntentStatus,
    pub amount: i64,
    pub received: i64,
    pub currency: String,
    pub customer: Option<String>,
    pub latest_charge: Option<String>,
    /// Whether the last try to pay it has failed.
    pub has_failed: bool,
    pub metadata: Metadata,
}

/// <https://docs.stripe.com/payments/paymentintents/lifecycle>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntentStatus {
    RequiresPaymentMethod,
    Processing,
    Succeeded,
    Canceled,
}

/// A charge.
#[derive(Clone, Debug)]
pub struct Charge {
    pub id: String,
    pub created: i64,
    pub intent: String,
    pub amount: i64,
    pub currency: String,
    pub is_paid: bool,
    pub refunded: i64,
    pub is_disputed: bool,
    pub balance_transaction: Option<String>,
    pub metadata: Metadata,
}

/// A refund.
#[derive(Clone, Debug)]
pub struct Refund {
    pub id: String,
    pub created: i64,
    pub status: RefundStatus,
    pub amount: i64,
    pub currency: String,
    pub charge: String,
    pub intent: String,
    pub reason: Option<String>,
    pub balance_transaction: Option<String>,
    pub metadata: Metadata,
}

/// <https://docs.stripe.com/refunds>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundStatus {
    Pending,
    RequiresAction,
    Succeeded,
    Failed,
    Canceled,
}

/// A dispute.
#[derive(Clone, Debug)]
pub struct Dispute {
    pub id: String,
    pub created: i64,
    pub status: DisputeStatus,
    pub amount: i64,
    pub currency: String,
    pub charge: String,
    pub intent: String,
}

/// <https://docs.stripe.com/api/disputes/object#dispute_object-status>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisputeStatus {
    WarningNeedsResponse,
    WarningClosed,
    NeedsResponse,
    UnderReview,
    Won,
    Lost,
}

/// Money that came to the balance, or left it.
#[derive(Clone, Debug)]
pub struct BalanceTransaction {
    pub id: String,
    pub created: i64,
    pub kind: &'static str,
    pub category: &'static str,
    pub amount: i64,
    pub fee: i64,
    pub currency: String,
    pub source: String,
}

impl SessionStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Complete => "complete",
            Self::Expired => "expired",
        }
    }
}

impl PaymentStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unpaid => "unpaid",
            Self::Paid => "paid",
        }
    }
}

impl IntentStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequiresPaymentMethod => "requires_payment_method",
            Self::Processing => "processing",
            Self::Succeeded => "succeeded",
            Self::Canceled => "canceled",
        }
    }
}

impl RefundStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::RequiresAction => "requires_action",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}

impl DisputeStatus {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WarningNeedsResponse => "warning_needs_response",
            Self::WarningClosed => "warning_closed",
            Self::NeedsResponse => "needs_response",
            Self::UnderReview => "under_review",
            Self::Won => "won",
            Self::Lost => "lost",
        }
    }
}

impl Customer {
    pub fn json(&self, livemode: bool) -> Value {
        json!({
            "id": self.id, "object": "customer", "created": self.created, "livemode": livemode, "email": self.email,
            "metadata": self.metadata, "name": null, "address": null, "description": null, "phone": null, "shipping": null
        })
    }
}

impl Session {
    pub fn json(&self, livemode: bool) -> Value {
        json!({
            "id": self.id, "object": "checkout.session", "created": self.created, "expires_at": self.expires_at,
            "livemode": livemode, "mode": "payment", "status": self.status.as_str(), "payment_status": self.payment_status.as_str(),
            "amount_subtotal": self.amount, "amount_total": self.amount, "currency": self.currency, "customer": self.customer,
            "client_reference_id": self.client_reference_id, "payment_intent": self.payment_intent, "metadata": self.metadata,
            "success_url": self.success_url, "cancel_url": self.cancel_url,
            "url": (self.status == SessionStatus::Open).then_some(&self.url),
            "automatic_tax": {"enabled": false, "liability": null, "provider": null, "status": null}, "custom_fields": [],
            "custom_text": {"after_submit": null, "shipping_address": null, "submit": null, "terms_of_service_acceptance": null},
            "payment_method_types": ["card"], "shipping_options": []
        })
    }
}

impl Intent {
    pub fn json(&self, livemode: bool) -> Value {
        json!({
            "id": self.id, "object": "payment_intent", "created": self.created, "livemode": livemode, "status": self.status.as_str(),
            "amount": self.amount, "amount_received": self.received, "currency": self.currency, "customer": self.customer,
            "latest_charge": self.latest_charge, "metadata": self.metadata, "capture_method": "automatic", "confirmation_method": "automatic",
            "payment_method_types": ["card"],
            "last_payment_error": if self.has_failed {
                json!({"type": "card_error", "code": "card_declined", "message": "Your card was declined."})
            } else {
                Value::Null
            }
        })
    }
}

impl Charge {
    pub fn json(&self, livemode: bool) -> Value {
        json!({
            "id": self.id, "object": "charge", "created": self.created, "livemode": livemode, "amount": self.amount,
            "amount_captured": if self.is_paid { self.amount } else { 0 }, "amount_refunded": self.refunded,
            "billing_details": {"address": null, "email": null, "name": null, "phone": null, "tax_id": null}, "captured": self.is_paid,
            "currency": self.currency, "disputed": self.is_disputed, "metadata": self.metadata, "paid": self.is_paid,
            "refunded": self.is_paid && self.refunded == self.amount, "status": if self.is_paid { "succeeded" } else { "failed" },
            "payment_intent": self.intent, "balance_transaction": self.balance_transaction, "payment_method_details": {"type": "card"}
        })
    }
}

impl Refund {
    pub fn json(&self) -> Value {
        json!({
            "id": self.id, "object": "refund", "created": self.created, "status": self.status.as_str(), "amount": self.amount,
            "currency": self.currency, "charge": self.charge, "payment_intent": self.intent, "reason": self.reason,
            "balance_transaction": self.balance_transaction, "metadata": self.metadata, "receipt_number": null,
            "source_transfer_reversal": null, "transfer_reversal": null
        })
    }
}

impl Dispute {
    pub fn json(&self, livemode: bool, balance_transactions: &[Value]) -> Value {
        let is_inquiry = matches!(
            self.status,
            DisputeStatus::WarningNeedsResponse | DisputeStatus::WarningClosed
        );
        json!({
            "id": self.id, "object": "dispute", "created": self.created, "livemode": livemode, "status": self.status.as_str(),
            "amount": self.amount, "currency": self.currency, "charge": self.charge, "payment_intent": self.intent, "reason": "fraudulent",
            "balance_transactions": balance_transactions, "enhanced_eligibility_types": [], "evidence": {"enhanced_evidence": {}},
            "evidence_details": {"due_by": null, "enhanced_eligibility": {}, "has_evidence": false, "past_due": false, "submission_count": 0},
            "is_charge_refundable": is_inquiry, "metadata": {}
        })
    }
}

impl BalanceTransaction {
    pub fn json(&self) -> Value {
        json!({
            "id": self.id, "object": "balance_transaction", "created": self.created, "available_on": self.created, "amount": self.amount,
            "fee": self.fee, "net": self.amount - self.fee, "currency": self.currency, "type": self.kind,
            "reporting_category": self.category, "source": self.source, "status": "available", "balance_type": "payments",
            "description": null, "exchange_rate": null,
            "fee_details": if self.fee == 0 { json!([]) } else {
                json!([{"amount": self.fee, "application": null, "currency": self.currency, "description": "Stripe processing fees", "type": "stripe_fee"}])
            }
        })
    }
}
