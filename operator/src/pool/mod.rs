//! Pools: cells whose pod runs and is proven before anybody asks. `decide` is pure, `table` is what this process knows; `cell` looks after
//! one cell, `keep` after how many a pool has and what its status says; `controller` wires them.

pub mod cell;
pub mod controller;
pub mod decide;
pub mod keep;
pub mod table;

use vitrine_crds::preview_sandbox::TrustLevel;
use vitrine_policies::{
    Envelope,
    cell::{pod, record},
};

use crate::preview::Settings;

/// What a preview and a waiting cell must have in common: what the pod is made from, and what may use the cell.
pub fn kind(settings: &Settings, envelope: &Envelope, level: TrustLevel) -> String {
    let template = pod::template(envelope, &settings.probe);
    format!("{template}/{}", record::lot(envelope, level, &settings.house))
}
