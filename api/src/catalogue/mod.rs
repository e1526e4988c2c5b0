//! The cluster's listings as the shop sells them. `offer` is pure, `watch` reads the cluster and writes the store: a process of its own, so that
//! the one that buyers talk to has no way into the cluster.

pub mod offer;
pub mod watch;
