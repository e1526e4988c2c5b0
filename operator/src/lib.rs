//! The controllers of Vitrine and the small servers of its data plane, one binary: run, gateway, responder, decoy, probe, drain.

pub mod admission;
pub mod drain;
pub mod error;
pub mod gateway;
pub mod health;
pub mod kubelet;
pub mod leader;
pub mod link;
pub mod link_keys;
pub mod metrics;
pub mod preview;
pub mod probe;
pub mod prober;
pub mod responder;
pub mod run;
pub mod targets;
