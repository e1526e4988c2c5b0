//! `cargo xtask crdgen`: writes the CRD files of the chart from the types in `crds/src`. Writes that folder only.

use std::process::ExitCode;

use vitrine_kit::images;

use crate::error::Error;

/// Writes the files.
///
/// # Errors
/// If one cannot be written.
pub fn run() -> Result<ExitCode, Error> {
    let folder = images::workspace().join("charts/vitrine-crds/templates");
    let files =
        vitrine_crds::generate::files().map_err(|error| Error::shape("the custom resources", error))?;
    for (name, text) in &files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(Error::file("write", &path))?;
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
