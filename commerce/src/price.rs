//! What an order costs: its lines, their discount and tax, and their totals. Pure.
//!
//! Of every line and of every order `total = subtotal − discount + tax` (CHK-14).

use serde::{Deserialize, Serialize};

use crate::{
    money::{Currency, Money, MoneyError},
    split::split,
};

/// Millionths in a whole: tax rates are told in them, 8.875 % as 88,750.
const MILLION: i128 = 1_000_000;
/// Of one line at most, so that its units stay few enough to be fulfilled one by one.
pub const MOST_UNITS: u32 = 1_000;

/// How much tax there is on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tax {
    /// Millionths of the taxed amount, at most a whole: 190,000 is 19 %.
    pub rate_ppm: u32,
    /// Whether the price has it in it, as consumers are told prices in the EU (Directive 98/6/EC, article 2).
    pub included: bool,
}

/// So many of one product at one price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What one costs.
    pub price: Money,
    /// How many, 1 to [`MOST_UNITS`].
    pub quantity: u32,
    /// The tax on it.
    pub tax: Tax,
}

/// What a line or an order comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amounts {
    /// Without tax and before the discount. Where the price includes the tax, without the tax on what is paid.
    pub subtotal: Money,
    /// What is taken off, not negative.
    pub discount: Money,
    /// Not negative.
    pub tax: Money,
    /// What is paid.
    pub total: Money,
}

/// An order's lines, in the order in which they were asked for, and all together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priced {
    /// Of each line.
    pub lines: Vec<Amounts>,
    /// Of all.
    pub sum: Amounts,
}

/// Why something has no price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// None, or too many.
    #[error("line {line} is for {quantity} units; ask for 1 to {MOST_UNITS}")]
    Quantity {
        /// Which line, from 0.
        line: usize,
        /// How many.
        quantity: u32,
    },
    /// Less than nothing.
    #[error("{what} is negative: {amount}")]
    Negative {
        /// The price of a line, or the discount.
        what: &'static str,
        /// How much.
        amount: Money,
    },
    /// More than everything.
    #[error("line {line} is taxed at {rate_ppm} millionths, more than all of it")]
    Rate {
        /// Which line, from 0.
        line: usize,
        /// How much.
        rate_ppm: u32,
    },
    /// No lines.
    #[error("an order has at least one line")]
    Empty,
    /// It cannot be reckoned.
    #[error(transparent)]
    Money(#[from] MoneyError),
}

/// What these lines come to in a currency, with a discount on all of them: at most what they cost, shared out by what each costs.
///
/// Tax is reckoned line by line on what is paid for the line, and rounded half to even there.
///
/// # Errors
/// If a line cannot be sold so.
pub fn price(currency: Currency, wanted: &[Wanted], discount: Money) -> Result<Priced, PriceError> {
    if wanted.is_empty() {
        return Err(PriceError::Empty);
    }
    not_negative("the discount", discount)?;
    let mut gross = vec![];
    for (line, one) in wanted.iter().enumerate() {
        if !(1..=MOST_UNITS).contains(&one.quantity) {
            let quantity = one.quantity;
            return Err(PriceError::Quantity { line, quantity });
        }
        if i128::from(one.tax.rate_ppm) > MILLION {
            let rate_ppm = one.tax.rate_ppm;
            return Err(PriceError::Rate { line, rate_ppm });
        }
        not_negative("a price", one.price)?;
        gross.push(one.price.times(one.quantity)?);
    }
    let all = Money::sum(currency, gross.iter().copied())?;
    let taken_off = discount.minus(Money::zero(currency))?.minor.min(all.minor);
    let weights: Vec<_> = gross
        .iter()
        .map(|money| money.minor.unsigned_abs())
        .enumerate()
        .collect();
    let discounts =
        split(taken_off, &weights).unwrap_or_else(|| weights.iter().map(|(line, _)| (*line, 0)).collect());
    let lines = wanted.iter().zip(&gross).zip(&discounts);
    let lines: Result<Vec<_>, _> = lines
        .map(|((one, gross), (_, discount))| amounts(one.tax, *gross, Money::new(*discount, currency)))
        .collect();
    let lines = lines?;
    let sum = |of: fn(&Amounts) -> Money| Money::sum(currency, lines.iter().map(of));
    let sum = Amounts {
        subtotal: sum(|line| line.subtotal)?,
        discount: sum(|line| line.discount)?,
        tax: sum(|line| line.tax)?,
        total: sum(|line| line.total)?,
    };
    Ok(Priced { lines, sum })
}

fn not_negative(what: &'static str, amount: Money) -> Result<(), PriceError> {
    if amount.minor < 0 {
        return Err(PriceError::Negative { what, amount });
    }
    Ok(())
}

fn amounts(tax: Tax, gross: Money, discount: Money) -> Result<Amounts, MoneyError> {
    let taxed = gross.minus(discount)?;
    let rate = i128::from(tax.rate_ppm);
    let of = if tax.included { MILLION + rate } else { MILLION };
    // At most 2^63 times a million, and no more than what is taxed.
    let part = half_to_even(i128::from(taxed.minor) * rate, of);
    let part = i64::try_from(part).map_err(|_| MoneyError::OutOfRange(gross.currency))?;
    let part = Money::new(part, gross.currency);
    let (subtotal, total) = if tax.included {
        (gross.minus(part)?, taxed)
    } else {
        (gross, taxed.plus(part)?)
    };
    Ok(Amounts {
        subtotal,
        discount,
        tax: part,
        total,
    })
}

/// Both not negative, the divisor not zero.
fn half_to_even(dividend: i128, divisor: i128) -> i128 {
    let (whole, rest) = (dividend / divisor, dividend % divisor);
    match (rest * 2).cmp(&divisor) {
        std::cmp::Ordering::Less => whole,
        std::cmp::Ordering::Greater => whole + 1,
        std::cmp::Ordering::Equal => whole + whole % 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::money::tests::{currency, eur};

    fn wanted(price: i64, quantity: u32, rate_ppm: u32, included: bool) -> Wanted {
        Wanted {
            price: eur(price),
            quantity,
            tax: Tax { rate_ppm, included },
        }
    }

    fn minors(amounts: &Amounts) -> [i64; 4] {
        [amounts.subtotal, amounts.discount, amounts.tax, amounts.total].map(|money| money.minor)
    }

    #[test]
    fn tax_is_added_to_a_price_or_is_in_it() {
        let lines = [wanted(1000, 2, 190_000, false), wanted(1190, 1, 190_000, true)];
        let priced = price(currency("EUR"), &lines, eur(0)).unwrap();
        assert_eq!(minors(&priced.lines[0]), [2000, 0, 380, 2380]);
        assert_eq!(minors(&priced.lines[1]), [1000, 0, 190, 1190]);
        assert_eq!(minors(&priced.sum), [3000, 0, 570, 3570]);
    }

    #[test]
    fn a_discount_is_shared_out_and_lowers_the_tax() {
        let lines = [wanted(1000, 1, 100_000, false), wanted(500, 1, 0, false)];
        let priced = price(currency("EUR"), &lines, eur(100)).unwrap();
        assert_eq!(minors(&priced.lines[0]), [1000, 67, 93, 1026]);
        assert_eq!(minors(&priced.lines[1]), [500, 33, 0, 467]);
        let free = price(currency("EUR"), &lines, eur(9999)).unwrap();
        assert_eq!(minors(&free.sum), [1500, 1500, 0, 0]);
        let nothing = price(currency("EUR"), &[wanted(0, 1, 0, false)], eur(5)).unwrap();
        assert_eq!(minors(&nothing.sum), [0, 0, 0, 0]);
    }

    #[test]
    fn halves_go_to_even() {
        for (minor, rate_ppm, tax) in [
            (50, 10_000, 0),
            (150, 10_000, 2),
            (250, 10_000, 2),
            (51, 10_000, 1),
        ] {
            let priced = price(currency("EUR"), &[wanted(minor, 1, rate_ppm, false)], eur(0)).unwrap();
            assert_eq!(priced.sum.tax, eur(tax), "{minor}");
        }
    }

    #[test]
    fn what_cannot_be_sold_so_is_told() {
        let of = |lines: &[Wanted]| price(currency("EUR"), lines, eur(0)).unwrap_err();
        assert_eq!(of(&[]), PriceError::Empty);
        assert!(matches!(
            of(&[wanted(1, 0, 0, false)]),
            PriceError::Quantity { line: 0, quantity: 0 }
        ));
        assert!(matches!(
            of(&[wanted(1, MOST_UNITS + 1, 0, false)]),
            PriceError::Quantity { .. }
        ));
        assert!(matches!(
            of(&[wanted(-1, 1, 0, false)]),
            PriceError::Negative { .. }
        ));
        assert!(matches!(
            of(&[wanted(1, 1, 1_000_001, false)]),
            PriceError::Rate { .. }
        ));
        assert!(matches!(
            of(&[wanted(i64::MAX, 2, 0, false)]),
            PriceError::Money(MoneyError::OutOfRange(_))
        ));
        let mut yen = wanted(1, 1, 0, false);
        yen.price = Money::new(1, currency("JPY"));
        assert!(matches!(
            of(&[yen]),
            PriceError::Money(MoneyError::Currencies(..))
        ));
        let discount = price(currency("EUR"), &[wanted(1, 1, 0, false)], eur(-1)).unwrap_err();
        assert!(matches!(discount, PriceError::Negative { .. }));
    }

    fn any_wanted() -> impl Strategy<Value = Wanted> {
        (
            0_i64..10_000_000,
            1..=MOST_UNITS,
            0_u32..=1_000_000,
            any::<bool>(),
        )
            .prop_map(|(price, quantity, rate_ppm, included)| wanted(price, quantity, rate_ppm, included))
    }

    proptest! {
        /// Requirement CHK-14.
        #[test]
        fn every_total_is_subtotal_without_discount_with_tax(
            lines in prop::collection::vec(any_wanted(), 1..8),
            discount in 0_i64..20_000_000,
        ) {
            let priced = price(currency("EUR"), &lines, eur(discount)).unwrap();
            for amounts in priced.lines.iter().chain([&priced.sum]) {
                let [subtotal, discount, tax, total] = minors(amounts);
                prop_assert_eq!(total, subtotal - discount + tax);
                prop_assert!(discount >= 0 && tax >= 0 && total >= 0);
            }
            let gross: i64 = lines.iter().map(|line| line.price.minor * i64::from(line.quantity)).sum();
            prop_assert_eq!(priced.sum.discount.minor, discount.min(gross));
        }
    }
}
