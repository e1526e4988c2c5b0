//! Attacks that were tried against the design (docs/threat-model.md), one file each, on a real node: the attack is made, and it
//! fails. Those that belong to a behaviour, as *drift* or *end*, are files of that behaviour.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a01_ipv6;
mod a02_foreign_policy;
mod a07_quota_reads_empty;
mod a08_stalled_operator;
mod a09_browser;
mod a11_all_ports;
mod a13_sandbox_killed;
mod a16_node_port;
mod a19_image_from_anywhere;
mod a20_image_of_another_seller;
mod a21_image_volume;
mod a22_node_rights;
mod a25_framing;
