//! An order's life by its edges, without a store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ed25519_dalek::SigningKey;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, DisputeState, Funds, OrderStatus, PaymentState, RefundState, UnitId, UnitStatus},
    finance::{EntryKind, EntryRequest, FIRST_ROOT, Receipt},
    licence::Grant,
    money::{Currency, Money},
    note::{self, NamedKey},
    price::Tax,
};
use vitrine_keys::SoftwareSigner;
use vitrine_service::Seal;

use super::{
    attempt::Begun,
    observe::{Observed, SeenPayment, SeenRefund},
    place::{Offer, Want},
    *,
};
use crate::order::{Buyer, Session, Task};

const ORDER: Uuid = Uuid::from_u128(0x0dde);

fn eur() -> Currency {
    "EUR".parse().unwrap()
}

/// A key under a name, one of so many.
fn seal(name: &str, seed: u8) -> Seal {
    let signer = SoftwareSigner::new(SigningKey::from_bytes(&[seed; 32])).unwrap();
    Seal::new(Arc::new(signer), name).unwrap()
}

/// A shop, and the moment at which things happen.
struct Shop {
    house: House,
    finance: Seal,
    licences: Seal,
    entries: u64,
    now: Timestamp,
}

impl Shop {
    fn new() -> Self {
        let (finance, licences) = (seal("shop.example/finance", 1), seal("shop.example/licence", 2));
        Self {
            house: House {
                storefront: "https://shop.example".to_owned(),
                licence_key: licences.key().clone(),
                finance_keys: vec![finance.key().clone()],
                revocations: "https://shop.example/revocations".to_owned(),
                staleness_seconds: 604_800,
                grace_seconds: 259_200,
            },
            finance,
            licences,
            entries: 0,
            now: "2026-11-30T12:00:00.5Z".parse().unwrap(),
        }
    }

    fn take<T>(
        &self,
        order: &mut Order,
        edge: impl FnOnce(&mut Order, &At<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let at = At {
            house: &self.house,
            now: self.now,
            actor: "test",
            random: 7,
        };
        take(order, &at, edge)
    }

    /// Two notes and a chart, for 37 EUR; the customer is there already.
    fn order(&self, minor: i64) -> Order {
        let offer = |sku: &str, minor| Offer {
            sku: sku.to_owned(),
            title: sku.to_owned(),
            seller: "acme".to_owned(),
            versions: ">=1, <2".to_owned(),
            grant: Grant::default(),
            price: Uuid::from_u128(9),
            amount: Money::new(minor, eur()),
            tax: Tax {
                rate_ppm: 190_000,
                included: true,
            },
        };
        let offers = BTreeMap::from(
            [("notes", minor), ("chart", minor * 17 / 10)]
                .map(|(sku, minor)| (sku.to_owned(), offer(sku, minor))),
        );
        let want = |sku: &str, quantity| Want {
            sku: sku.to_owned(),
            quantity,
        };
        let buyer = Buyer {
            account: Uuid::from_u128(1),
            issuer: "https://id.example".to_owned(),
            subject: "alice".to_owned(),
            customer: Some("cus_1".to_owned()),
        };
        let mut order = place::place(
            ORDER,
            buyer,
            eur(),
            &[want("notes", 2), want("chart", 1)],
            &offers,
        )
        .unwrap();
        self.take(&mut order, place::placed).unwrap();
        order
    }

    fn begin(&self, order: &mut Order) -> Begun {
        self.take(order, attempt::begin).unwrap()
    }

    /// An attempt with a session.
    fn session(&self, order: &mut Order) -> Session {
        let Begun::Send { n, .. } = self.begin(order) else {
            panic!("no attempt is to be made");
        };
        let session = Session {
            id: format!("cs_{n}"),
            url: format!("https://pay.example/{n}"),
            expires_at: self.now + SignedDuration::from_mins(65),
        };
        self.take(order, |order, _| attempt::made(order, n, &session))
            .unwrap();
        session
    }

    fn see(&self, order: &mut Order, seen: &Observed) {
        self.take(order, |order, at| observe::apply(order, seen, at))
            .unwrap();
    }

    fn finance_writes(&mut self, order: &mut Order, key: &str) -> Result<(), Refusal> {
        let request = finance::asked(order, key)?.expect("it is acknowledged already");
        let note = self.receipt(&request, |_| {});
        self.take(order, |order, at| finance::acknowledge(order, key, &note, at))
    }

    fn receipt(&mut self, request: &[u8], change: impl FnOnce(&mut Receipt)) -> Vec<u8> {
        self.entries += 1;
        let asked: EntryRequest = serde_json::from_slice(request).unwrap();
        let mut receipt = Receipt {
            epoch: Uuid::from_u128(3),
            sequence: self.entries,
            previous_root: FIRST_ROOT.to_owned(),
            key: asked.key,
            request_sha256: vitrine_commerce::sha256(request),
            kind: asked.kind,
            order: asked.order,
            amount: asked.amount,
            at: self.now,
        };
        change(&mut receipt);
        let (_, note) = self
            .finance
            .note(vitrine_commerce::finance::KIND, &receipt)
            .unwrap();
        note
    }

    fn books_all(&mut self, order: &mut Order) {
        while let Some(Task::Book(key)) = order
            .tasks
            .iter()
            .find(|task| matches!(task, Task::Book(_)))
            .cloned()
        {
            self.finance_writes(order, &key).unwrap();
        }
    }

    fn licenses_all(&mut self, order: &mut Order) {
        while let Some(Task::License(unit)) = order
            .tasks
            .iter()
            .find(|task| matches!(task, Task::License(_)))
            .cloned()
        {
            let id = self
                .take(order, |order, at| licence::freeze(order, unit, at))
                .unwrap();
            assert_eq!(id, Some(order.licences[&unit].id));
            let signature = self.licences.sign(&order.licences[&unit].text).unwrap();
            self.take(order, |order, _| licence::signed(order, unit, &signature))
                .unwrap();
        }
    }

    /// Paid, acknowledged and licensed.
    fn completed(&mut self) -> Order {
        let mut order = self.order(1000);
        let session = self.session(&mut order);
        self.see(&mut order, &paid(&session, 1, "pi_1", 3700));
        self.books_all(&mut order);
        self.licenses_all(&mut order);
        self.books_all(&mut order);
        order
    }
}

fn unit(line: u32, unit: u32) -> UnitId {
    UnitId { line, unit }
}

fn paid(session: &Session, attempt: u32, payment: &str, minor: i64) -> Observed {
    Observed {
        sessions: vec![(
            attempt,
            session.clone(),
            facts::Attempt {
                session: facts::Session::Complete,
                funds: Funds::Paid,
            },
        )],
        payments: vec![SeenPayment {
            id: payment.to_owned(),
            attempt: Some(attempt),
            state: PaymentState::Succeeded,
            received: Some(Money::new(minor, eur())),
            paid_at: Some(Timestamp::UNIX_EPOCH),
            method: Some("card".to_owned()),
        }],
        ..Observed::default()
    }
}

fn refund(id: &str, ours: Option<Uuid>, payment: &str, minor: i64, state: RefundState) -> Observed {
    Observed {
        refunds: vec![SeenRefund {
            id: id.to_owned(),
            ours,
            payment: payment.to_owned(),
            amount: Money::new(minor, eur()),
            state,
            reason: None,
        }],
        ..Observed::default()
    }
}

fn status(order: &Order) -> OrderStatus {
    facts::status(&order.facts())
}

fn kinds(order: &Order) -> Vec<EntryKind> {
    let mut kinds: Vec<_> = order.bookings.values().map(|booking| booking.kind).collect();
    kinds.sort();
    kinds
}

#[test]
fn an_order_is_paid_acknowledged_and_licensed() {
    let mut shop = Shop::new();
    let mut order = shop.order(1000);
    assert_eq!(
        (status(&order), order.sum.total),
        (OrderStatus::Pending, Money::new(3700, eur()))
    );
    assert_eq!(order.tasks, BTreeSet::from([Task::GiveUp]));
    let session = shop.session(&mut order);
    assert_eq!(order.tasks, BTreeSet::from([Task::Look("cs_1".to_owned())]));
    assert_eq!(shop.begin(&mut order), Begun::Open(session.clone()));
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3700));
    assert_eq!(
        (status(&order), order.accepted.as_deref()),
        (OrderStatus::AwaitingFinance, Some("pi_1"))
    );
    let expected = ["deposit:pi_1".to_owned(), format!("reserve:{ORDER}")].map(Task::Book);
    assert_eq!(order.tasks, BTreeSet::from(expected));
    shop.books_all(&mut order);
    assert_eq!(status(&order), OrderStatus::Licensing);
    assert_eq!(
        order.tasks,
        [unit(0, 0), unit(0, 1), unit(1, 0)].map(Task::License).into()
    );
    shop.licenses_all(&mut order);
    assert_eq!(status(&order), OrderStatus::Completed);
    shop.books_all(&mut order);
    assert_eq!(order.tasks, BTreeSet::new());
    assert_eq!(
        kinds(&order),
        [
            EntryKind::Deposit,
            EntryKind::Reserve,
            EntryKind::Post,
            EntryKind::Post,
            EntryKind::Post
        ]
    );
    let told: Vec<_> = order
        .news
        .iter()
        .filter(|news| news.kind == "order.status")
        .map(|news| news.body["to"].clone())
        .collect();
    assert_eq!(told, ["awaiting_finance", "licensing", "completed"]);
    // What is shipped is what any verifier of notes takes.
    let known = &order.licences[&unit(0, 1)];
    let key = NamedKey::read(&known.key).unwrap();
    let shipped = note::signed(&known.text, &key, &known.signature.unwrap());
    let opened: vitrine_commerce::licence::Licence =
        note::open(vitrine_commerce::licence::KIND, &shipped, &[key]).unwrap();
    let line = &order.lines[0];
    assert_eq!(
        (opened.id, opened.sku.id),
        (vitrine_commerce::licence::id(line.item, 1), "notes".to_owned())
    );
    assert_eq!(opened.issued_at, "2026-11-30T12:00:00Z".parse().unwrap());
}

#[test]
fn what_is_seen_twice_or_late_changes_nothing() {
    let shop = Shop::new();
    let mut order = shop.order(1000);
    let session = shop.session(&mut order);
    let (seen, before) = (paid(&session, 1, "pi_1", 3700), order.clone());
    shop.see(&mut order, &seen);
    let once = order.clone();
    shop.see(&mut order, &seen);
    let open = Observed {
        sessions: vec![(1, session, facts::Attempt::default())],
        ..Observed::default()
    };
    shop.see(&mut order, &open);
    assert_eq!(order, once);
    assert_ne!(order, before);
}

#[test]
fn a_session_that_ends_soon_is_expired_before_there_is_another() {
    let mut shop = Shop::new();
    let mut order = shop.order(1000);
    let first = shop.session(&mut order);
    shop.now += SignedDuration::from_mins(61);
    assert_eq!(shop.begin(&mut order), Begun::Expire(first.id.clone()));
    let expired = facts::Attempt {
        session: facts::Session::Expired,
        funds: Funds::Unpaid,
    };
    let seen = Observed {
        sessions: vec![(1, first.clone(), expired)],
        ..Observed::default()
    };
    shop.see(&mut order, &seen);
    let second = shop.session(&mut order);
    assert_eq!(second.id, "cs_2");
    // The first was paid all the same, in the last second, and then the second too: the later attempt's goes back.
    shop.see(&mut order, &paid(&second, 2, "pi_2", 3700));
    shop.see(&mut order, &paid(&first, 1, "pi_1", 3700));
    assert_eq!(order.accepted.as_deref(), Some("pi_2"));
    let surplus: Vec<_> = order
        .refunds
        .iter()
        .filter(|(_, refund)| refund.reason == "surplus")
        .collect();
    let [(id, surplus)] = surplus[..] else {
        panic!("{surplus:?}");
    };
    assert!(order.tasks.contains(&Task::Send(*id)));
    let call = surplus.call.as_ref().unwrap();
    assert!(
        call.body.contains("payment_intent=pi_1&amount=3700&"),
        "{}",
        call.body
    );
    assert_eq!(status(&order), OrderStatus::AwaitingFinance);
}

#[test]
fn a_call_without_an_answer_is_sent_again_and_then_given_up() {
    let mut shop = Shop::new();
    let mut order = shop.order(1000);
    let first = shop.begin(&mut order);
    shop.now += SignedDuration::from_mins(29);
    assert_eq!(shop.begin(&mut order), first);
    shop.now += SignedDuration::from_mins(2);
    let Begun::Send { n: 2, .. } = shop.begin(&mut order) else {
        panic!("the first call is sent for ever");
    };
    // Whoever has sent it comes back now: the buyer is not sent there.
    let session = Session {
        id: "cs_1".to_owned(),
        url: String::new(),
        expires_at: shop.now,
    };
    let late = shop.take(&mut order, |order, _| attempt::made(order, 1, &session));
    assert!(matches!(late, Err(Refusal::Overtaken(_))), "{late:?}");
}

#[test]
fn who_has_no_customer_gets_one_and_no_second() {
    let shop = Shop::new();
    let mut order = shop.order(1000);
    order.buyer.customer = None;
    let Begun::Customer(call) = shop.begin(&mut order) else {
        panic!("no customer is made");
    };
    assert_eq!(call.key, format!("customer:{}", order.buyer.account));
    shop.take(&mut order, |order, _| attempt::customer(order, "cus_7"))
        .unwrap();
    assert!(
        shop.take(&mut order, |order, _| attempt::customer(order, "cus_8"))
            .is_err()
    );
    assert!(matches!(shop.begin(&mut order), Begun::Send { n: 1, .. }));
}

#[test]
fn what_costs_nothing_is_licensed_by_a_memo() {
    let mut shop = Shop::new();
    let mut order = shop.order(0);
    assert_eq!(shop.begin(&mut order), Begun::Paid);
    assert_eq!(order.tasks, BTreeSet::from([Task::Book(format!("memo:{ORDER}"))]));
    shop.books_all(&mut order);
    shop.licenses_all(&mut order);
    assert_eq!(
        (status(&order), kinds(&order)),
        (OrderStatus::Completed, vec![EntryKind::Memo])
    );
    assert_eq!(order.tasks, BTreeSet::new());
}

#[test]
fn an_order_that_nobody_pays_for_is_given_up_and_paid_all_the_same() {
    let shop = Shop::new();
    let mut order = shop.order(1000);
    let session = shop.session(&mut order);
    shop.take(&mut order, |order, _| attempt::close(order)).unwrap();
    assert_eq!(shop.begin(&mut order), Begun::Closed);
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3700));
    assert_eq!(status(&order), OrderStatus::AwaitingFinance);
    assert!(shop.take(&mut order, |order, _| attempt::close(order)).is_err());
}

#[test]
fn only_finances_receipt_of_this_entry_acknowledges_it() {
    let mut shop = Shop::new();
    let mut order = shop.order(1000);
    let session = shop.session(&mut order);
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3700));
    let key = format!("reserve:{ORDER}");
    let request = finance::asked(&order, &key).unwrap().unwrap();
    let mut refused = |shop: &mut Shop, change: &dyn Fn(&mut Receipt)| {
        let note = shop.receipt(&request, change);
        let before = order.clone();
        let answer = shop.take(&mut order, |order, at| {
            finance::acknowledge(order, &key, &note, at)
        });
        assert!(matches!(answer, Err(Refusal::Receipt(_))), "{answer:?}");
        assert_eq!(order, before);
    };
    refused(&mut shop, &|receipt| receipt.order = Uuid::from_u128(8));
    refused(&mut shop, &|receipt| receipt.amount.minor -= 1);
    refused(&mut shop, &|receipt| receipt.kind = EntryKind::Memo);
    refused(&mut shop, &|receipt| receipt.key = "deposit:pi_1".to_owned());
    refused(&mut shop, &|receipt| receipt.request_sha256 = "0".repeat(64));
    let good = std::mem::replace(&mut shop.finance, seal("shop.example/finance", 9));
    refused(&mut shop, &|_| {});
    shop.finance = good;
    shop.finance_writes(&mut order, &key).unwrap();
    // Another entry by the same key: a ledger that forgot the first.
    let note = shop.receipt(&request, |_| {});
    let again = shop.take(&mut order, |order, at| {
        finance::acknowledge(order, &key, &note, at)
    });
    assert!(matches!(again, Err(Refusal::Overtaken(_))), "{again:?}");
}

#[test]
fn a_wrong_amount_is_held_and_nothing_is_given() {
    let shop = Shop::new();
    let mut order = shop.order(1000);
    let session = shop.session(&mut order);
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3699));
    assert_eq!((status(&order), &order.accepted), (OrderStatus::Held, &None));
    assert_eq!(
        order.tasks,
        BTreeSet::from([Task::Book("deposit:pi_1".to_owned())])
    );
    assert!(order.news.iter().any(|news| news.kind == "order.held"));
}

#[test]
fn who_contradicts_himself_is_held() {
    let mut shop = Shop::new();
    let mut order = shop.completed();
    let session = order.attempts[&1].session.clone().unwrap();
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3600));
    assert!(order.payments["pi_1"].said.attempt.is_contradicted());
    assert!(!facts::holds(&order.facts()).is_empty());
    shop.books_all(&mut order);
}

#[test]
fn a_refund_suspends_before_stripe_is_asked_and_revokes_after() {
    let mut shop = Shop::new();
    let mut order = shop.completed();
    let (id, units) = (Uuid::from_u128(0xf), BTreeSet::from([unit(0, 1)]));
    let amount = shop
        .take(&mut order, |order, at| {
            super::refund::ask(order, id, &units, "withdrawn", at)
        })
        .unwrap();
    assert_eq!(amount, Money::new(1000, eur()));
    let of = |order: &Order| facts::unit_status(&order.facts(), unit(0, 1));
    assert_eq!(
        (of(&order), status(&order)),
        (UnitStatus::Suspended, OrderStatus::Suspended)
    );
    assert_eq!(order.tasks, BTreeSet::from([Task::Send(id)]));
    // Asked again it is the same, and another for the same unit there is none.
    assert_eq!(
        shop.take(&mut order, |order, at| super::refund::ask(
            order,
            id,
            &units,
            "withdrawn",
            at
        )),
        Ok(amount)
    );
    let second = shop.take(&mut order, |order, at| {
        super::refund::ask(order, Uuid::from_u128(2), &units, "x", at)
    });
    assert_eq!(second, Err(Refusal::Refunded(unit(0, 1))));
    shop.see(
        &mut order,
        &refund("re_1", Some(id), "pi_1", 1000, RefundState::Pending),
    );
    assert_eq!(order.tasks, BTreeSet::from([Task::Look("re_1".to_owned())]));
    shop.see(
        &mut order,
        &refund("re_1", Some(id), "pi_1", 1000, RefundState::Succeeded),
    );
    assert_eq!(
        (of(&order), status(&order)),
        (UnitStatus::Revoked, OrderStatus::PartlyRefunded)
    );
    shop.books_all(&mut order);
    // It fails after it has succeeded: the unit is the buyer's again.
    shop.see(
        &mut order,
        &refund("re_1", Some(id), "pi_1", 1000, RefundState::Failed),
    );
    assert_eq!(
        (of(&order), status(&order)),
        (UnitStatus::Licensed, OrderStatus::Completed)
    );
    shop.books_all(&mut order);
    assert_eq!(kinds(&order)[5..], [EntryKind::Refund, EntryKind::Reinstate]);
}

#[test]
fn nothing_is_licensed_while_a_refund_is_on_its_way() {
    let mut shop = Shop::new();
    let mut order = shop.order(1000);
    let session = shop.session(&mut order);
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3700));
    shop.books_all(&mut order);
    let first = unit(0, 0);
    shop.take(&mut order, |order, at| licence::freeze(order, first, at))
        .unwrap();
    let signature = shop.licences.sign(&order.licences[&first].text).unwrap();
    // The refund comes in between.
    let units = BTreeSet::from([first]);
    shop.take(&mut order, |order, at| {
        super::refund::ask(order, Uuid::from_u128(0xf), &units, "withdrawn", at)
    })
    .unwrap();
    let late = shop.take(&mut order, |order, _| licence::signed(order, first, &signature));
    assert!(matches!(late, Err(Refusal::Overtaken(_))), "{late:?}");
    assert_eq!(order.licences[&first].signature, None);
    assert_eq!(
        shop.take(&mut order, |order, at| licence::freeze(order, first, at)),
        Ok(None)
    );
    assert!(!order.tasks.contains(&Task::License(first)));
}

#[test]
fn what_a_retired_key_has_not_signed_is_fixed_anew_and_what_it_has_signed_stays() {
    let mut shop = Shop::new();
    let mut order = shop.order(1000);
    let session = shop.session(&mut order);
    shop.see(&mut order, &paid(&session, 1, "pi_1", 3700));
    shop.books_all(&mut order);
    let (signed, fixed) = (unit(0, 0), unit(0, 1));
    for unit in [signed, fixed] {
        shop.take(&mut order, |order, at| licence::freeze(order, unit, at))
            .unwrap();
    }
    let signature = shop.licences.sign(&order.licences[&signed].text).unwrap();
    shop.take(&mut order, |order, _| licence::signed(order, signed, &signature))
        .unwrap();
    let before = order.licences.clone();
    // A key of the same name, as a shop changes it; and time has passed.
    shop.licences = seal("shop.example/licence", 9);
    shop.house.licence_key = shop.licences.key().clone();
    shop.now += jiff::SignedDuration::from_hours(1);
    let late = seal("shop.example/licence", 2)
        .sign(&before[&fixed].text)
        .unwrap();
    shop.licenses_all(&mut order);
    assert_eq!(order.licences[&signed], before[&signed]);
    let (old, new) = (&before[&fixed], &order.licences[&fixed]);
    assert_eq!((old.id, old.lookup, old.ack), (new.id, new.lookup, new.ack));
    assert!(old.text != new.text && new.key == shop.licences.key().to_string());
    let told = order.news.iter().filter(|news| news.kind == "licence.superseded");
    assert_eq!(told.count(), 1);
    // What the old key has signed after all is nobody's licence.
    let mut order = Order {
        licences: before,
        ..order
    };
    shop.take(&mut order, |order, at| licence::freeze(order, fixed, at))
        .unwrap();
    let refused = shop.take(&mut order, |order, _| licence::signed(order, fixed, &late));
    assert!(matches!(refused, Err(Refusal::Signature(_))), "{refused:?}");
}

#[test]
fn a_refund_from_the_dashboard_takes_all_or_waits_for_a_person() {
    let mut shop = Shop::new();
    let mut order = shop.completed();
    shop.see(
        &mut order,
        &refund("re_9", None, "pi_1", 1000, RefundState::Succeeded),
    );
    assert!(order.news.iter().any(|news| news.kind == "order.held"));
    let (id, _) = order
        .refunds
        .first_key_value()
        .map(|(id, refund)| (*id, refund.clone()))
        .unwrap();
    shop.take(&mut order, |order, _| {
        super::refund::name(order, id, &BTreeSet::from([unit(0, 0)]))
    })
    .unwrap();
    assert_eq!(status(&order), OrderStatus::PartlyRefunded);
    let mut whole = shop.completed();
    shop.see(
        &mut whole,
        &refund("re_8", None, "pi_1", 3700, RefundState::Succeeded),
    );
    assert_eq!(status(&whole), OrderStatus::Refunded);
}

#[test]
fn a_dispute_suspends_and_what_is_won_is_the_buyers_again() {
    let mut shop = Shop::new();
    let mut order = shop.completed();
    let dispute = |state| Observed {
        disputes: vec![(
            "dp_1".to_owned(),
            facts::Dispute {
                of: facts::Once::Known("pi_1".to_owned()),
                state,
            },
            Money::new(3700, eur()),
        )],
        ..Observed::default()
    };
    shop.see(&mut order, &dispute(DisputeState::NeedsResponse));
    assert_eq!(status(&order), OrderStatus::Suspended);
    shop.see(&mut order, &dispute(DisputeState::Won));
    assert_eq!(status(&order), OrderStatus::Completed);
}

#[test]
fn words_are_told_in_small_letters() {
    assert_eq!(json!(OrderStatus::AwaitingFinance), "awaiting_finance");
}
