//! Attempts to pay: which session a buyer pays at. Pure.

use jiff::{SignedDuration, Timestamp};
use vitrine_commerce::{
    facts::{self, Funds},
    money::Money,
};

use super::{At, Refusal};
use crate::order::{Attempt, Call, Order, Session};

/// A session can be paid for so long: Stripe allows no less than half an hour
/// (<https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-expires_at>), and a call may be sent again for as much.
const OPEN: SignedDuration = SignedDuration::from_mins(65);
/// A call is sent again for so long: later Stripe would refuse its time of expiry.
const SENT_AGAIN: SignedDuration = SignedDuration::from_mins(30);
/// Nobody is sent to a session that is over so soon.
const TOO_SOON: SignedDuration = SignedDuration::from_mins(5);

/// Where an order's payment stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// The buyer can pay there.
    Open(Session),
    /// The buyer needs a customer of Stripe's first: this makes one.
    Customer(Call),
    /// This has to be sent, and the answer told by [`made`].
    Send {
        /// Which attempt.
        n: u32,
        /// What.
        call: Call,
    },
    /// This session has to be expired before there is another one, and what Stripe says of it then be told.
    Expire(String),
    /// The buyer has paid, or has done all there is to do.
    Paid,
    /// It was given up.
    Closed,
}

/// The session at which the order is paid: the one that is open, or what has to be done to have another one.
///
/// # Errors
/// If none can be asked for.
pub fn begin(order: &mut Order, at: &At<'_>) -> Result<Begun, Refusal> {
    let facts = order.facts();
    // One whose money is on its way is not to be paid twice.
    let is_complete = |attempt: &Attempt| {
        attempt.said.session == facts::Session::Complete && attempt.said.funds != Funds::Failed
    };
    if facts.is_paid() || order.attempts.values().any(is_complete) {
        return Ok(Begun::Paid);
    }
    if order.closed {
        return Ok(Begun::Closed);
    }
    let Some(customer) = order.buyer.customer.clone() else {
        return Ok(Begun::Customer(customer_call(order)));
    };
    if let Some((n, attempt)) = order
        .attempts
        .last_key_value()
        .filter(|(_, attempt)| attempt.said.session == facts::Session::Open)
    {
        let n = *n;
        match &attempt.session {
            Some(session) if at.now < later(session.expires_at, -TOO_SOON) => {
                return Ok(Begun::Open(session.clone()));
            }
            Some(session) => return Ok(Begun::Expire(session.id.clone())),
            None if at.now < later(attempt.begun_at, SENT_AGAIN) => {
                let call = attempt.call.clone();
                return Ok(Begun::Send { n, call });
            }
            // Whether it made a session nobody knows. Nobody has its address either: it is told once it is written down only.
            None => give_up(order, n),
        }
    }
    let n = order.attempts.last_key_value().map_or(1, |(n, _)| n + 1);
    let call = session_call(order, n, &customer, later(at.now, OPEN), &at.house.storefront);
    let attempt = Attempt {
        call: call.clone(),
        begun_at: at.now,
        session: None,
        said: facts::Attempt::default(),
    };
    order.attempts.insert(n, attempt);
    Ok(Begun::Send { n, call })
}

fn give_up(order: &mut Order, n: u32) {
    if let Some(attempt) = order.attempts.get_mut(&n) {
        attempt.said.session = facts::Session::Expired;
    }
}

/// A session was made for an attempt.
///
/// # Errors
/// If the attempt is over, or has another one: the buyer must not be sent there.
pub fn made(order: &mut Order, n: u32, session: &Session) -> Result<(), Refusal> {
    let attempt = order
        .attempts
        .get_mut(&n)
        .ok_or_else(|| Refusal::Unknown(format!("attempt {n}")))?;
    match &attempt.session {
        Some(known) if known.id != session.id => Err(Refusal::Overtaken(format!(
            "attempt {n} has session {} already",
            known.id
        ))),
        None if attempt.said.session != facts::Session::Open => {
            Err(Refusal::Overtaken(format!("attempt {n} is over")))
        }
        _ => {
            attempt.session = Some(session.clone());
            Ok(())
        }
    }
}

/// The order's buyer is this customer of Stripe's.
///
/// # Errors
/// If they are another one.
pub fn customer(order: &mut Order, customer: &str) -> Result<(), Refusal> {
    match &order.buyer.customer {
        Some(known) if known != customer => Err(Refusal::Overtaken(format!(
            "the buyer is customer {known} already"
        ))),
        _ => {
            order.buyer.customer = Some(customer.to_owned());
            Ok(())
        }
    }
}

/// An order that nobody paid for is given up.
///
/// # Errors
/// If somebody pays for it after all.
pub fn close(order: &mut Order) -> Result<(), Refusal> {
    if order.facts().is_paid() {
        return Err(Refusal::Overtaken("the order is paid".to_owned()));
    }
    order.closed = true;
    Ok(())
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn call(path: &str, parameters: &[(String, String)], key: String) -> Call {
    Call {
        path: path.to_owned(),
        body: form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish(),
        key,
    }
}

fn customer_call(order: &Order) -> Call {
    let account = order.buyer.account;
    let parameters = [("metadata[account]".to_owned(), account.to_string())];
    call("/v1/customers", &parameters, format!("customer:{account}"))
}

fn session_call(order: &Order, n: u32, customer: &str, expires_at: Timestamp, storefront: &str) -> Call {
    let (id, pages) = (order.id, format!("orders/{}", order.id));
    let mut parameters = vec![
        ("mode".to_owned(), "payment".to_owned()),
        ("customer".to_owned(), customer.to_owned()),
        ("client_reference_id".to_owned(), id.to_string()),
        ("expires_at".to_owned(), expires_at.as_second().to_string()),
        ("payment_method_types[0]".to_owned(), "card".to_owned()),
    ];
    for (name, page) in [("success_url", "paid"), ("cancel_url", "cancelled")] {
        parameters.push((name.to_owned(), format!("{storefront}/{pages}/{page}")));
    }
    // What is told of a payment says whose it is, whoever tells it.
    for of in ["metadata", "payment_intent_data[metadata]"] {
        parameters.push((format!("{of}[order]"), id.to_string()));
        parameters.push((format!("{of}[attempt]"), n.to_string()));
    }
    for (line, bought) in order.lines.iter().enumerate() {
        // The line's total and not its price: what Stripe reckons itself may differ by what was rounded.
        let of = |name: &str| format!("line_items[{line}]{name}");
        let Money { minor, currency } = bought.amounts.total;
        parameters.extend([
            (of("[quantity]"), "1".to_owned()),
            (of("[price_data][currency]"), currency.code().to_ascii_lowercase()),
            (of("[price_data][unit_amount]"), minor.to_string()),
            (
                of("[price_data][product_data][name]"),
                format!("{} × {}", bought.quantity, bought.title),
            ),
        ]);
    }
    call("/v1/checkout/sessions", &parameters, format!("{id}:{n}"))
}
