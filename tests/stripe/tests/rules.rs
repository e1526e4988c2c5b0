//! The rules that the simulator keeps, each with the page of Stripe's documentation that it is from.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use serde_json::Value;
use vitrine_stripe::{
    form,
    object::{DisputeStatus, RefundStatus},
    sim::{Account, Act, Limits, Request, Response, Stripe},
};

const KEY: &str = "sk_test_key";
const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

struct Shop {
    stripe: Stripe,
    now: i64,
}

impl Shop {
    fn new() -> Self {
        let account = Account {
            key: KEY.to_owned(),
            livemode: false,
            refunds_wait: false,
            pages: "http://stripe.test".to_owned(),
        };
        Self {
            stripe: Stripe::new(account),
            now: NOW,
        }
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        parameters: &[(&str, &str)],
        idempotency_key: Option<&str>,
    ) -> Response {
        let text = form::write(parameters.iter().copied());
        let (query, body) = if method == "GET" {
            (text, String::new())
        } else {
            (String::new(), text)
        };
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query,
            body,
            key: Some(KEY.to_owned()),
            idempotency_key: idempotency_key.map(str::to_owned),
        };
        self.stripe.step(&request, self.now)
    }

    fn get(&mut self, path: &str) -> Value {
        let answer = self.send("GET", path, &[], None);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    fn post(&mut self, path: &str, parameters: &[(&str, &str)]) -> Response {
        self.send("POST", path, parameters, None)
    }

    fn made(&mut self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let answer = self.post(path, parameters);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    fn session(&mut self) -> String {
        id(&self.made("/v1/checkout/sessions", &SESSION))
    }

    fn act(&mut self, act: Act) {
        self.stripe.act(&act, self.now).unwrap();
    }

    /// A session that is paid, and its payment intent.
    fn paid(&mut self) -> (String, String) {
        let session = self.session();
        self.act(Act::Pay(session.clone()));
        let intent = self.get(&format!("/v1/checkout/sessions/{session}"))["payment_intent"]
            .as_str()
            .unwrap()
            .to_owned();
        (session, intent)
    }

    /// The kinds of events since there were so many.
    fn told(&self, since: usize) -> Vec<&str> {
        self.stripe.events()[since..]
            .iter()
            .map(|event| event.kind)
            .collect()
    }
}

const SESSION: [(&str, &str); 9] = [
    ("mode", "payment"),
    ("success_url", "https://shop.test/thanks"),
    ("client_reference_id", "order-1"),
    ("metadata[order]", "order-1"),
    ("payment_intent_data[metadata][order]", "order-1"),
    ("line_items[0][quantity]", "2"),
    ("line_items[0][price_data][currency]", "eur"),
    ("line_items[0][price_data][unit_amount]", "600"),
    ("line_items[0][price_data][product_data][name]", "Notes"),
];

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}

fn code(answer: &Response) -> (u16, &str) {
    (
        answer.status,
        answer.body["error"]["code"].as_str().unwrap_or_default(),
    )
}

fn kind(answer: &Response) -> &str {
    answer.body["error"]["type"].as_str().unwrap_or_default()
}

/// <https://docs.stripe.com/api/checkout/sessions/create>
#[test]
fn a_session_is_open_for_a_day_and_sums_its_lines() {
    let mut shop = Shop::new();
    let session = shop.made("/v1/checkout/sessions", &SESSION);
    assert_eq!(
        (session["amount_total"].as_i64(), session["currency"].as_str()),
        (Some(1200), Some("eur"))
    );
    assert_eq!(
        (session["status"].as_str(), session["payment_status"].as_str()),
        (Some("open"), Some("unpaid"))
    );
    assert_eq!(session["expires_at"].as_i64(), Some(NOW + DAY));
    // <https://docs.stripe.com/changelog/2022-08-01>: no payment intent before the buyer confirms.
    assert_eq!(session["payment_intent"], Value::Null);
    shop.now += DAY;
    let session = shop.get(&format!("/v1/checkout/sessions/{}", id(&session)));
    assert_eq!(
        (session["status"].as_str(), &session["url"]),
        (Some("expired"), &Value::Null)
    );
    assert_eq!(shop.told(0), ["checkout.session.expired"]);
}

/// <https://docs.stripe.com/api/errors>
#[test]
fn what_is_missing_or_unknown_is_told() {
    let mut shop = Shop::new();
    for (missing, (name, _)) in SESSION.iter().enumerate() {
        // These may be missing.
        if name.contains("metadata") || *name == "client_reference_id" {
            continue;
        }
        let some: Vec<_> = [&SESSION[..missing], &SESSION[missing + 1..]].concat();
        let answer = shop.post("/v1/checkout/sessions", &some);
        assert_eq!(
            code(&answer),
            (400, "parameter_missing"),
            "{name}: {}",
            answer.body
        );
    }
    let more = [&SESSION[..], &[("colour", "red")]].concat();
    assert_eq!(
        code(&shop.post("/v1/checkout/sessions", &more)),
        (400, "parameter_unknown")
    );
    let mut short = SESSION.to_vec();
    let soon = (NOW + 60).to_string();
    short.push(("expires_at", &soon));
    assert_eq!(shop.post("/v1/checkout/sessions", &short).status, 400);
    assert_eq!(
        code(&shop.send("GET", "/v1/refunds/re_none", &[], None)),
        (404, "resource_missing")
    );
    let request = Request {
        method: "GET".into(),
        path: "/v1/events".into(),
        query: String::new(),
        body: String::new(),
        key: None,
        idempotency_key: None,
    };
    assert_eq!(shop.stripe.step(&request, NOW).status, 401);
    assert!(shop.stripe.events().is_empty());
}

/// <https://docs.stripe.com/checkout/fulfillment>, <https://docs.stripe.com/payments/paymentintents/lifecycle>
#[test]
fn a_paid_session_is_complete_and_its_intent_has_succeeded() {
    let mut shop = Shop::new();
    let (session, intent) = shop.paid();
    let read = shop.get(&format!("/v1/checkout/sessions/{session}"));
    assert_eq!(
        (read["status"].as_str(), read["payment_status"].as_str()),
        (Some("complete"), Some("paid"))
    );
    let read = shop.get(&format!("/v1/payment_intents/{intent}"));
    assert_eq!(
        (read["status"].as_str(), read["amount_received"].as_i64()),
        (Some("succeeded"), Some(1200))
    );
    assert_eq!(read["metadata"]["order"].as_str(), Some("order-1"));
    assert_eq!(
        shop.told(0),
        [
            "payment_intent.created",
            "charge.succeeded",
            "payment_intent.succeeded",
            "checkout.session.completed"
        ]
    );
    // <https://docs.stripe.com/api/checkout/sessions/expire>: only open ones.
    assert_eq!(
        shop.post(&format!("/v1/checkout/sessions/{session}/expire"), &[])
            .status,
        400
    );
    assert!(shop.stripe.act(&Act::Pay(session), NOW).is_err());
    assert_eq!(shop.stripe.balance()[0].amount, 1200);
}

/// <https://docs.stripe.com/payments/paymentintents/lifecycle>: a declined card leaves the intent waiting for another.
#[test]
fn a_declined_card_leaves_the_session_open() {
    let mut shop = Shop::new();
    let session = shop.session();
    shop.act(Act::Decline(session.clone()));
    assert_eq!(
        shop.told(0),
        [
            "payment_intent.created",
            "charge.failed",
            "payment_intent.payment_failed"
        ]
    );
    shop.act(Act::Pay(session.clone()));
    let read = shop.get(&format!("/v1/checkout/sessions/{session}"));
    assert_eq!(read["payment_status"].as_str(), Some("paid"));
    assert_eq!(
        shop.told(3),
        [
            "charge.succeeded",
            "payment_intent.succeeded",
            "checkout.session.completed"
        ]
    );
}

/// <https://docs.stripe.com/checkout/fulfillment#delayed-notification>
#[test]
fn money_that_takes_days_comes_or_does_not() {
    for (arrives, last, status) in [
        (true, "checkout.session.async_payment_succeeded", "paid"),
        (false, "checkout.session.async_payment_failed", "unpaid"),
    ] {
        let mut shop = Shop::new();
        let session = shop.session();
        shop.act(Act::PayLater(session.clone()));
        let path = format!("/v1/checkout/sessions/{session}");
        let read = shop.get(&path);
        assert_eq!(
            (read["status"].as_str(), read["payment_status"].as_str()),
            (Some("complete"), Some("unpaid"))
        );
        assert_eq!(
            shop.told(0),
            [
                "payment_intent.created",
                "payment_intent.processing",
                "checkout.session.completed"
            ]
        );
        shop.now += 3 * DAY;
        shop.act(if arrives {
            Act::Arrive(session)
        } else {
            Act::Bounce(session)
        });
        assert_eq!(
            (shop.get(&path)["payment_status"].as_str(), shop.told(3).last()),
            (Some(status), Some(&last))
        );
    }
}

/// <https://docs.stripe.com/api/idempotent_requests>
#[test]
fn a_key_is_answered_the_same_for_a_day() {
    let mut shop = Shop::new();
    let first = shop.send("POST", "/v1/checkout/sessions", &SESSION, Some("order-1:1"));
    let again = shop.send("POST", "/v1/checkout/sessions", &SESSION, Some("order-1:1"));
    assert_eq!((first.replayed, again.replayed), (false, true));
    assert_eq!(first.body, again.body);
    let mut other = SESSION.to_vec();
    other[5].1 = "3";
    let refused = shop.send("POST", "/v1/checkout/sessions", &other, Some("order-1:1"));
    assert_eq!((refused.status, kind(&refused)), (400, "idempotency_error"));
    // What was refused before it began may be sent anew with the key.
    assert_eq!(
        shop.send("POST", "/v1/checkout/sessions", &SESSION[1..], Some("order-2:1"))
            .status,
        400
    );
    assert_eq!(
        shop.send("POST", "/v1/checkout/sessions", &SESSION, Some("order-2:1"))
            .status,
        200
    );
    shop.now += DAY;
    let later = shop.send("POST", "/v1/checkout/sessions", &SESSION, Some("order-1:1"));
    assert!(!later.replayed && later.body["id"] != first.body["id"]);
}

/// <https://docs.stripe.com/refunds>, <https://docs.stripe.com/api/refunds/create>
#[test]
fn no_more_goes_back_than_was_paid() {
    let mut shop = Shop::new();
    let (_, intent) = shop.paid();
    let before = shop.stripe.events().len();
    let refund = shop.made(
        "/v1/refunds",
        &[
            ("payment_intent", &intent),
            ("amount", "500"),
            ("metadata[refund]", "r1"),
        ],
    );
    assert_eq!(
        (refund["status"].as_str(), refund["amount"].as_i64()),
        (Some("succeeded"), Some(500))
    );
    assert_eq!(shop.told(before), ["refund.created", "charge.refunded"]);
    assert_eq!(
        shop.post("/v1/refunds", &[("payment_intent", &intent), ("amount", "701")])
            .status,
        400
    );
    assert_eq!(
        shop.post("/v1/refunds", &[("payment_intent", &intent), ("amount", "0")])
            .status,
        400
    );
    shop.act(Act::RefundInDashboard(intent.clone(), None));
    let refused = shop.post("/v1/refunds", &[("payment_intent", &intent)]);
    assert_eq!(code(&refused), (400, "charge_already_refunded"));
    assert_eq!(shop.stripe.balance().iter().map(|one| one.amount).sum::<i64>(), 0);
}

/// <https://docs.stripe.com/refunds#failed-refunds>
#[test]
fn a_refund_that_fails_brings_the_money_back_and_can_be_made_again() {
    let mut shop = Shop::new();
    let (_, intent) = shop.paid();
    let refund = id(&shop.made("/v1/refunds", &[("payment_intent", &intent)]));
    let before = shop.stripe.events().len();
    shop.act(Act::Refund(refund.clone(), RefundStatus::Failed));
    assert_eq!(shop.told(before), ["charge.updated", "refund.failed"]);
    assert!(
        shop.stripe
            .act(&Act::Refund(refund, RefundStatus::Succeeded), NOW)
            .is_err()
    );
    shop.made("/v1/refunds", &[("payment_intent", &intent)]);
    let moved: Vec<_> = shop
        .stripe
        .balance()
        .iter()
        .map(|one| (one.kind, one.amount))
        .collect();
    assert_eq!(
        moved,
        [
            ("charge", 1200),
            ("refund", -1200),
            ("refund_failure", 1200),
            ("refund", -1200)
        ]
    );
}

/// <https://docs.stripe.com/disputes/how-disputes-work>
#[test]
fn a_dispute_takes_the_money_and_bars_refunds_an_inquiry_does_neither() {
    let mut shop = Shop::new();
    let (_, intent) = shop.paid();
    let before = shop.stripe.events().len();
    shop.act(Act::Dispute(intent.clone(), DisputeStatus::WarningNeedsResponse));
    assert_eq!(shop.told(before), ["charge.dispute.created"]);
    assert_eq!(shop.stripe.balance().len(), 1);
    let dispute = id(&shop.stripe.events().last().unwrap().json["data"]["object"]);
    shop.act(Act::Settle(dispute.clone(), DisputeStatus::NeedsResponse));
    assert_eq!(
        shop.told(before + 1),
        ["charge.dispute.updated", "charge.dispute.funds_withdrawn"]
    );
    assert_eq!(
        code(&shop.post("/v1/refunds", &[("payment_intent", &intent)])),
        (400, "charge_disputed")
    );
    shop.act(Act::Settle(dispute.clone(), DisputeStatus::Won));
    assert_eq!(
        shop.told(before + 3),
        ["charge.dispute.funds_reinstated", "charge.dispute.closed"]
    );
    assert_eq!(
        shop.stripe.balance().iter().map(|one| one.amount).sum::<i64>(),
        1200
    );
    assert!(
        shop.stripe
            .act(&Act::Settle(dispute, DisputeStatus::Lost), NOW)
            .is_err()
    );
}

/// <https://docs.stripe.com/api/pagination>, <https://docs.stripe.com/api/events>
#[test]
fn events_are_listed_newest_first_page_by_page_for_thirty_days() {
    let mut shop = Shop::new();
    for _ in 0..3 {
        shop.paid();
    }
    let all: Vec<_> = shop
        .stripe
        .events()
        .iter()
        .rev()
        .map(|event| event.id.clone())
        .collect();
    let (mut seen, mut after) = (vec![], None::<String>);
    loop {
        let mut parameters = vec![("limit", "5")];
        parameters.extend(after.as_deref().map(|after| ("starting_after", after)));
        let page = shop.send("GET", "/v1/events", &parameters, None).body;
        seen.extend(page["data"].as_array().unwrap().iter().map(id));
        after = seen.last().cloned();
        if page["has_more"] == Value::Bool(false) {
            break;
        }
    }
    assert_eq!(seen, all);
    shop.now += 31 * DAY;
    assert_eq!(shop.get("/v1/events")["data"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        shop.send("GET", "/v1/events", &[("limit", "101")], None).status,
        400
    );
}

/// The simulation replays by seed.
#[test]
fn two_accounts_to_which_the_same_happens_are_the_same() {
    let run = || {
        let mut shop = Shop::new();
        let (_, intent) = shop.paid();
        shop.act(Act::RefundInDashboard(intent, Some(1)));
        shop.stripe
            .events()
            .iter()
            .map(|event| event.json.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// <https://docs.stripe.com/rate-limits>
#[test]
fn who_asks_too_often_in_a_second_is_turned_away_until_the_next_one() {
    let mut shop = Shop::new();
    shop.stripe.limit(Limits {
        account: 2,
        endpoint: 2,
    });
    let statuses = |shop: &mut Shop| {
        let mut ask = || shop.send("GET", "/v1/events", &[], None);
        let answers = [ask(), ask(), ask()];
        assert_eq!(answers[2].body["error"]["code"], "rate_limit");
        answers.map(|answer| answer.status)
    };
    assert_eq!(statuses(&mut shop), [200, 200, 429]);
    shop.now += 1;
    assert_eq!(statuses(&mut shop), [200, 200, 429]);
    // An endpoint has less than all together, whichever object is asked for.
    shop.stripe.limit(Limits {
        account: 3,
        endpoint: 1,
    });
    shop.now += 1;
    let mut ask = |path: &str| shop.send("GET", path, &[], None).status;
    let asked = [
        "/v1/refunds/re_1",
        "/v1/refunds/re_2",
        "/v1/refunds",
        "/v1/events",
        "/v1/disputes",
    ];
    assert_eq!(asked.map(&mut ask), [404, 429, 200, 429, 429]);
}
