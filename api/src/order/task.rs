//! What a worker has to do for an order, and how it is written where a store keeps it. Pure.

use std::{fmt, str::FromStr, time::Duration};

use uuid::Uuid;
use vitrine_commerce::facts::UnitId;

/// Something that a worker does for an order: it asks somebody, and writes down the answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Asks Stripe what has become of something that is on its way: a session, or a refund.
    Look(String),
    /// Has Stripe make a refund.
    Send(Uuid),
    /// Has Finance write an entry, by its key.
    Book(String),
    /// Has a unit's licence signed.
    License(UnitId),
    /// Gives up the order, for which nobody has paid.
    GiveUp,
}

/// How long after something was begun it is asked for the first time: whoever pays takes a minute, and a webhook tells of it.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// For how long an order waits for another attempt to pay.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

impl Task {
    /// How long it waits after it has come to be.
    pub const fn waits(&self) -> Duration {
        match self {
            Self::Look(_) => FIRST_LOOK,
            Self::GiveUp => PATIENCE,
            Self::Send(_) | Self::Book(_) | Self::License(_) => Duration::ZERO,
        }
    }

    /// What is done, without for what: the first word of how it is written.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Look(_) => "look",
            Self::Send(_) => "send",
            Self::Book(_) => "book",
            Self::License(_) => "license",
            Self::GiveUp => "give-up",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb())?;
        match self {
            Self::Look(object) => write!(f, " {object}"),
            Self::Send(refund) => write!(f, " {refund}"),
            Self::Book(key) => write!(f, " {key}"),
            Self::License(UnitId { line, unit }) => write!(f, " {line}/{unit}"),
            Self::GiveUp => Ok(()),
        }
    }
}

/// Text that is no task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no task that this version knows")]
pub struct BadTask(String);

impl FromStr for Task {
    type Err = BadTask;

    fn from_str(text: &str) -> Result<Self, BadTask> {
        let bad = || BadTask(text.to_owned());
        if text == "give-up" {
            return Ok(Self::GiveUp);
        }
        let (what, of) = text.split_once(' ').ok_or_else(bad)?;
        match what {
            "look" => Ok(Self::Look(of.to_owned())),
            "send" => of.parse().map(Self::Send).map_err(|_| bad()),
            "book" => Ok(Self::Book(of.to_owned())),
            "license" => {
                let (line, unit) = of.split_once('/').ok_or_else(bad)?;
                let number = |text: &str| text.parse().map_err(|_| bad());
                let (line, unit) = (number(line)?, number(unit)?);
                Ok(Self::License(UnitId { line, unit }))
            }
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_read_as_it_is_written() {
        for task in [
            Task::Look("cs_1".to_owned()),
            Task::Send(Uuid::from_u128(7)),
            Task::Book("order:1:reserve".to_owned()),
            Task::License(UnitId { line: 3, unit: 12 }),
            Task::GiveUp,
        ] {
            assert_eq!(task.to_string().parse(), Ok(task));
        }
        for bad in ["", "look", "send x", "license 1", "license 1/", "dance 1"] {
            assert!(bad.parse::<Task>().is_err(), "{bad}");
        }
    }
}
