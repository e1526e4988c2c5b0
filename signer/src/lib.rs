//! The signer: a process of its own with the keys of licences and revocation lists. It believes nobody who asks; it reads the rows itself, by a
//! role that writes nothing, and signs what Finance has acknowledged.
//!
//! [`judge`] says whether it may (pure); [`rows`] reads what there is; [`http`] is what it is asked by.

pub mod http;
pub mod judge;
pub mod rows;
