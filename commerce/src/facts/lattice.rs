//! How facts that are learnt late, twice or out of order come together: joins, which are commutative, associative and idempotent. Pure.

use std::collections::BTreeMap;

/// Something of which more comes to be known, and nothing is ever unlearnt.
pub trait Join {
    /// What both know together.
    fn join(&mut self, other: Self);
}

/// Steps of which a later one is never followed by an earlier one: what is further on is what is known.
macro_rules! steps {
    ($($kind:ty),* $(,)?) => {
        $(impl $crate::facts::lattice::Join for $kind {
            fn join(&mut self, other: Self) {
                *self = (*self).max(other);
            }
        })*
    };
}
pub(super) use steps;

steps!(bool);

/// Something that is said once. Whoever says something else later contradicts it, which is kept too.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Once<T> {
    /// Not said yet.
    #[default]
    Unknown,
    /// This.
    Known(T),
    /// Two different things were said.
    Contradicted,
}

impl<T> Once<T> {
    /// What is known, if it was not contradicted.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown | Self::Contradicted => None,
        }
    }

    /// Whether nothing was said.
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    /// Whether two different things were said.
    pub const fn is_contradicted(&self) -> bool {
        matches!(self, Self::Contradicted)
    }
}

impl<T: PartialEq> Join for Once<T> {
    fn join(&mut self, other: Self) {
        match (&*self, other) {
            (_, Self::Unknown) => {}
            (Self::Unknown, other) => *self = other,
            (Self::Known(one), Self::Known(other)) if *one == other => {}
            _ => *self = Self::Contradicted,
        }
    }
}

impl<K: Ord, V: Join> Join for BTreeMap<K, V> {
    fn join(&mut self, other: Self) {
        for (key, value) in other {
            match self.entry(key) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().join(value),
            }
        }
    }
}
