//! The shop: orders, their payment, Finance's acknowledgement and their licences.
//!
//! Inside out: [`order`] is what is known of one, [`edges`] what may happen to it (both pure); [`flows`] are the steps between a store and the
//! world, generic over [`seams`]; [`store`] keeps orders in Postgres and [`outside`] is the world over HTTP. [`http`] is what buyers ask,
//! [`work`] has the steps taken; [`books`] and [`lists`] are what is done beside orders.

pub mod books;
pub mod bucket;
pub mod catalogue;
pub mod edges;
pub mod flows;
pub mod http;
pub mod idempotency;
pub mod identity;
pub mod lists;
pub mod metrics;
pub mod order;
pub mod outside;
pub mod seams;
pub mod store;
pub mod stripe_signature;
pub mod work;
