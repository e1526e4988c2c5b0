//! Shares of an amount that add up to it, by largest remainder. Pure.

/// What each gets of a total: as near to its weight's share as whole minor units allow, all together exactly the total.
///
/// The units that are left after rounding down go to the largest remainders, of equal ones to the smallest id. A negative total
/// is split as the positive one would be. `None` if the weights are all zero, or there are none: then nobody is to have it.
pub fn split<Id: Ord + Clone>(total: i64, weights: &[(Id, u64)]) -> Option<Vec<(Id, i64)>> {
    let all: u128 = weights.iter().map(|(_, weight)| u128::from(*weight)).sum();
    if all == 0 {
        return None;
    }
    let amount = u128::from(total.unsigned_abs());
    // At most 2^63 times 2^64, which a u128 holds; and a share is at most the amount.
    let share = |weight: u64| {
        (
            amount * u128::from(weight) / all,
            amount * u128::from(weight) % all,
        )
    };
    let mut shares: Vec<_> = weights
        .iter()
        .map(|(id, weight)| (id.clone(), share(*weight)))
        .collect();
    let given: u128 = shares.iter().map(|(_, (whole, _))| whole).sum();
    let mut order: Vec<_> = (0..shares.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (&shares[*a], &shares[*b]);
        b.1.1.cmp(&a.1.1).then_with(|| a.0.cmp(&b.0))
    });
    // Less than there are shares: each remainder is less than one unit.
    let left = usize::try_from(amount - given).unwrap_or(usize::MAX);
    for one in order.into_iter().take(left) {
        shares[one].1.0 += 1;
    }
    let signed = |share: u128| {
        let minor = i128::try_from(share).unwrap_or(i128::MAX);
        i64::try_from(if total < 0 { -minor } else { minor }).unwrap_or(total)
    };
    Some(
        shares
            .into_iter()
            .map(|(id, (whole, _))| (id, signed(whole)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_left_goes_to_the_largest_remainders() {
        assert_eq!(
            split(100, &[("a", 1), ("b", 1), ("c", 1)]),
            Some(vec![("a", 34), ("b", 33), ("c", 33)])
        );
        assert_eq!(
            split(10, &[("a", 1), ("b", 5), ("c", 1)]),
            Some(vec![("a", 2), ("b", 7), ("c", 1)])
        );
        assert_eq!(
            split(-100, &[("c", 1), ("b", 1), ("a", 1)]),
            Some(vec![("c", -33), ("b", -33), ("a", -34)])
        );
        assert_eq!(split(5, &[("a", 0), ("b", 3)]), Some(vec![("a", 0), ("b", 5)]));
        assert_eq!(split::<&str>(5, &[]), None);
        assert_eq!(split(5, &[("a", 0)]), None);
        assert_eq!(
            split(i64::MIN, &[("a", u64::MAX), ("b", u64::MAX)]).unwrap()[0].1,
            i64::MIN / 2
        );
    }

    proptest! {
        #[test]
        fn shares_add_up_and_are_within_a_unit_of_what_is_fair(
            total in prop_oneof![any::<i64>(), -1000_i64..1000],
            weights in prop::collection::vec(prop_oneof![0_u64..10, any::<u64>()], 1..40),
        ) {
            let named: Vec<_> = weights.iter().copied().enumerate().collect();
            let all: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            let Some(shares) = split(total, &named) else {
                prop_assert_eq!(all, 0);
                return Ok(());
            };
            prop_assert_eq!(shares.iter().map(|(_, share)| i128::from(*share)).sum::<i128>(), i128::from(total));
            for ((_, share), weight) in shares.iter().zip(&weights) {
                let fair = u128::from(total.unsigned_abs()) * u128::from(*weight) / all;
                let had = u128::from(share.unsigned_abs());
                prop_assert!(had == fair || had == fair + 1 && *weight > 0, "{had} for {fair}");
            }
        }

        #[test]
        fn who_comes_first_makes_no_difference(
            total: i64,
            weights in prop::collection::vec(0_u64..5, 1..20),
        ) {
            let named: Vec<_> = weights.into_iter().enumerate().collect();
            let turned: Vec<_> = named.iter().rev().copied().collect();
            let sorted = |shares: Option<Vec<(usize, i64)>>| shares.map(|mut shares| { shares.sort_unstable(); shares });
            prop_assert_eq!(sorted(split(total, &named)), sorted(split(total, &turned)));
        }
    }
}
