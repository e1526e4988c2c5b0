//! `crdgen DIR`: writes the CRD files of the chart into a folder. Touches that folder only.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: crdgen DIR (the folder of the chart's templates)");
        return ExitCode::from(2);
    };
    match write(&folder) {
        Ok(count) => {
            println!("wrote {count} CRDs to {}", folder.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failed to write the CRDs to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &std::path::Path) -> Result<usize, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let files = vitrine_crds::generate::files()?;
    for (name, text) in &files {
        std::fs::write(folder.join(name), text)?;
    }
    Ok(files.len())
}
