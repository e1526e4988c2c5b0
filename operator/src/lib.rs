//! The controllers of Vitrine and the small servers of its data plane, one binary: run, gateway, egress, responder, decoy, probe, drain.

pub mod activity;
pub mod admission;
pub mod api;
pub mod audit;
pub mod drain;
pub mod egress;
pub mod error;
pub mod fetch;
pub mod follow;
pub mod gateway;
pub mod health;
pub mod kubelet;
pub mod leader;
pub mod link;
pub mod link_keys;
pub mod meter;
pub mod metrics;
pub mod preview;
pub mod probe;
pub mod prober;
pub mod responder;
pub mod run;
pub mod targets;
