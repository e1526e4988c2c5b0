//! Pools: cells whose pod runs and is proven before anybody asks. `decide` is pure, `table` and `confinement` are what this process
//! knows; `cell` looks after one cell, `keep` after how many a pool has and what its status says; `controller` wires them.

pub mod cell;
pub mod confinement;
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
    kind_of(&template, &record::lot(envelope, level, &settings.house))
}

/// The same of a pod of this template in a cell of this lot.
fn kind_of(template: &str, lot: &str) -> String {
    format!("{template}/{lot}")
}
