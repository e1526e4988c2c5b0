//! Single cases, and the laws of joins.

use proptest::prelude::*;

use super::*;
use crate::money::tests::eur;

const UNIT: UnitId = UnitId { line: 0, unit: 0 };
const OTHER: UnitId = UnitId { line: 1, unit: 0 };

fn order(due: i64) -> Facts {
    Facts::new(Terms {
        due: eur(due),
        units: BTreeSet::from([UNIT, OTHER]),
    })
}

fn payment(received: i64) -> Payment {
    Payment {
        attempt: Once::Known(1),
        state: PaymentState::Succeeded,
        received: Once::Known(eur(received)),
    }
}

fn paid() -> Facts {
    let mut facts = order(1000);
    facts.payments.insert("pi".to_owned(), payment(1000));
    facts.accepted = Once::Known("pi".to_owned());
    facts.reserved = Once::Known("receipt".to_owned());
    facts
}

fn refund(amount: i64, state: RefundState, units: Option<&[UnitId]>) -> Refund {
    Refund {
        of: Once::Known(("pi".to_owned(), eur(amount))),
        state,
        units: units.map_or(Once::Unknown, |units| {
            Once::Known(units.iter().copied().collect())
        }),
    }
}

#[test]
fn a_payment_of_another_amount_waits_for_a_person() {
    let mut facts = order(1000);
    facts.payments.insert("pi".to_owned(), payment(999));
    assert_eq!(
        holds(&facts),
        BTreeSet::from([Hold::AmountDiffers("pi".to_owned())])
    );
    assert_eq!((status(&facts), duties(&facts)), (OrderStatus::Held, vec![]));
    let mut yen = order(1000);
    let received = Once::Known(Money::new(1000, "JPY".parse().unwrap()));
    yen.payments.insert(
        "pi".to_owned(),
        Payment {
            received,
            ..payment(0)
        },
    );
    assert_eq!(status(&yen), OrderStatus::Held);
}

#[test]
fn what_costs_nothing_is_paid_as_it_is_made_and_acknowledged_all_the_same() {
    let mut facts = order(0);
    assert_eq!(
        (status(&facts), duties(&facts)),
        (OrderStatus::AwaitingFinance, vec![Duty::Reserve])
    );
    facts.reserved = Once::Known("memo".to_owned());
    assert_eq!(duties(&facts), [Duty::License(UNIT), Duty::License(OTHER)]);
}

#[test]
fn a_partial_refund_of_nobody_knows_what_waits_for_a_person() {
    let mut facts = paid();
    facts
        .refunds
        .insert("re".to_owned(), refund(400, RefundState::Succeeded, None));
    assert_eq!(
        holds(&facts),
        BTreeSet::from([Hold::RefundOfWhat("re".to_owned())])
    );
    assert_eq!(may_license(&facts, UNIT), Err(Refusal::Held));
    // Somebody says of what.
    facts
        .refunds
        .get_mut("re")
        .unwrap()
        .units
        .join(Once::Known(BTreeSet::from([OTHER])));
    assert_eq!(
        (may_license(&facts, UNIT), may_license(&facts, OTHER)),
        (Ok(()), Err(Refusal::Gone))
    );
    // The rest of it goes back too: then all of it did.
    facts
        .refunds
        .insert("rest".to_owned(), refund(600, RefundState::Pending, None));
    assert_eq!(may_license(&facts, UNIT), Err(Refusal::Suspended));
    facts.refunds.get_mut("rest").unwrap().state = RefundState::Succeeded;
    assert_eq!(
        (status(&facts), projection(&facts)),
        (OrderStatus::Refunded, Projection::Refunded)
    );
}

#[test]
fn a_refund_that_fails_after_it_has_succeeded_gives_back() {
    let mut facts = paid();
    facts.units.insert(
        UNIT,
        Fulfilment {
            licence: LicenceState::Signed,
            delivery: DeliveryState::Delivered,
        },
    );
    for (state, expected) in [
        (RefundState::Pending, UnitStatus::Suspended),
        (RefundState::RequiresAction, UnitStatus::Suspended),
        (RefundState::Succeeded, UnitStatus::Revoked),
        (RefundState::Failed, UnitStatus::Delivered),
    ] {
        facts
            .refunds
            .entry("re".to_owned())
            .or_default()
            .join(refund(500, state, Some(&[UNIT])));
        assert_eq!(
            (unit_status(&facts, UNIT), unit_status(&facts, OTHER)),
            (expected, UnitStatus::Waiting)
        );
    }
}

#[test]
fn a_dispute_of_a_surplus_payment_takes_nothing() {
    let mut facts = paid();
    let dispute = Dispute {
        of: Once::Known("other".to_owned()),
        state: DisputeState::Lost,
    };
    facts.disputes.insert("dp".to_owned(), dispute);
    assert_eq!(may_license(&facts, UNIT), Ok(()));
    facts.disputes.get_mut("dp").unwrap().of = Once::Known("pi".to_owned());
    assert_eq!(may_license(&facts, UNIT), Err(Refusal::Gone));
}

#[test]
fn what_is_not_of_the_order_is_never_given() {
    let unit = UnitId { line: 7, unit: 0 };
    assert_eq!(may_license(&paid(), unit), Err(Refusal::NotOfThisOrder));
    assert_eq!(may_license(&order(1), UNIT), Err(Refusal::Unpaid));
    let unacknowledged = Facts {
        reserved: Once::Unknown,
        ..paid()
    };
    assert_eq!(may_license(&unacknowledged, UNIT), Err(Refusal::NotAcknowledged));
}

#[test]
fn two_receipts_of_one_order_hold_it() {
    let mut facts = paid();
    facts.reserved.join(Once::Known("another".to_owned()));
    assert_eq!(status(&facts), OrderStatus::Held);
    assert_eq!(may_license(&facts, UNIT), Err(Refusal::Held));
}

fn once<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Once<T>> {
    prop_oneof![
        Just(Once::Unknown),
        value.prop_map(Once::Known),
        Just(Once::Contradicted)
    ]
}

fn any_attempt() -> impl Strategy<Value = Attempt> {
    let session = prop::sample::select(vec![Session::Open, Session::Expired, Session::Complete]);
    let funds = prop::sample::select(vec![Funds::Unpaid, Funds::Failed, Funds::Paid]);
    (session, funds).prop_map(|(session, funds)| Attempt { session, funds })
}

fn any_payment() -> impl Strategy<Value = Payment> {
    let state = prop::sample::select(vec![
        PaymentState::Pending,
        PaymentState::Processing,
        PaymentState::Failed,
        PaymentState::Succeeded,
    ]);
    (once(0..2_u32), state, once((0..2_i64).prop_map(eur))).prop_map(|(attempt, state, received)| Payment {
        attempt,
        state,
        received,
    })
}

fn any_refund() -> impl Strategy<Value = Refund> {
    let state = prop::sample::select(vec![
        RefundState::Pending,
        RefundState::RequiresAction,
        RefundState::Succeeded,
        RefundState::Canceled,
        RefundState::Failed,
    ]);
    let units = prop::sample::select(vec![vec![], vec![UNIT], vec![UNIT, OTHER]]);
    let units = units.prop_map(BTreeSet::from_iter);
    let of = ("[ab]", (0..2_i64).prop_map(eur));
    (once(of), state, once(units)).prop_map(|(of, state, units)| Refund { of, state, units })
}

fn any_dispute() -> impl Strategy<Value = Dispute> {
    let state = prop::sample::select(vec![
        DisputeState::WarningNeedsResponse,
        DisputeState::WarningClosed,
        DisputeState::NeedsResponse,
        DisputeState::Won,
        DisputeState::Lost,
    ]);
    (once("[ab]"), state).prop_map(|(of, state)| Dispute { of, state })
}

fn any_fulfilment() -> impl Strategy<Value = Fulfilment> {
    let licence = prop::sample::select(vec![
        LicenceState::None,
        LicenceState::Frozen,
        LicenceState::Signed,
    ]);
    let delivery = prop::sample::select(vec![
        DeliveryState::None,
        DeliveryState::Delivering,
        DeliveryState::Delivered,
    ]);
    (licence, delivery).prop_map(|(licence, delivery)| Fulfilment { licence, delivery })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let units = prop::sample::select(vec![UNIT, OTHER]);
    (
        any::<bool>(),
        prop::collection::btree_map(0..3_u32, any_attempt(), 0..3),
        prop::collection::btree_map("[ab]", any_payment(), 0..3),
        prop::collection::btree_map("[ab]", any_refund(), 0..3),
        prop::collection::btree_map("[ab]", any_dispute(), 0..2),
        once("[ab]"),
        once("[ab]"),
        prop::collection::btree_map(units, any_fulfilment(), 0..2),
    )
        .prop_map(
            |(closed, attempts, payments, refunds, disputes, accepted, reserved, units)| Facts {
                closed,
                attempts,
                payments,
                refunds,
                disputes,
                accepted,
                reserved,
                units,
                ..order(1)
            },
        )
}

fn joined(facts: impl IntoIterator<Item = Facts>) -> Facts {
    let mut all = order(1);
    for one in facts {
        all.join(one);
    }
    all
}

proptest! {
    #[test]
    fn facts_come_together_in_any_order_and_more_than_once(a in any_facts(), b in any_facts(), c in any_facts()) {
        let all = joined([a.clone(), b.clone(), c.clone()]);
        prop_assert_eq!(&joined([c.clone(), a.clone(), b.clone()]), &all);
        prop_assert_eq!(&joined([joined([b.clone(), c.clone()]), a.clone(), c, b]), &all);
        prop_assert_eq!(joined([all.clone(), a]), all);
    }

    /// Whatever is known, something can be said of it, and nothing is given against a refusal.
    #[test]
    fn any_facts_amount_to_something(facts in any_facts()) {
        let (status, due) = (status(&facts), duties(&facts));
        prop_assert!(projection(&facts) != Projection::Completed || facts.is_paid(), "{status:?}");
        for duty in due {
            if let Duty::License(unit) | Duty::Deliver(unit) = duty {
                prop_assert_eq!(may_license(&facts, unit), Ok(()));
            }
        }
    }
}
