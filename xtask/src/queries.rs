//! `cargo xtask queries`: asks a real Postgres what the queries of the shop's services are, for whoever compiles them without one. Writes their
//! folders `.sqlx/` only.

use std::{
    fs::{self, File},
    process::ExitCode,
    time::SystemTime,
};

use vitrine_devcluster::cargo;
use vitrine_kit::images;
use vitrine_parts::Server;

use crate::error::Error;

/// Services, by their folders, and whose schema they work with.
const SERVICES: [(&str, &str); 3] = [("api", "api"), ("signer", "api"), ("finance", "finance")];
/// Where a service's queries are kept.
const KEPT: &str = ".sqlx";

/// Writes the files.
///
/// # Errors
/// If one cannot be written, or a query is none.
pub fn run() -> Result<ExitCode, Error> {
    let (root, server) = (images::workspace(), Server::start()?);
    for schema in ["api", "finance"] {
        server.psql("postgres", &["--command", &format!("CREATE DATABASE {schema}")])?;
        let folder = root.join(schema).join("migrations");
        let read = fs::read_dir(&folder).map_err(Error::file("read", &folder))?;
        let mut steps: Vec<_> = read.flatten().map(|entry| entry.path()).collect();
        steps.sort();
        for step in steps {
            server.psql(schema, &["--file", &step.display().to_string()])?;
        }
    }
    for (service, schema) in SERVICES {
        let (folder, library) = (
            root.join(service).join(KEPT),
            root.join(service).join("src/lib.rs"),
        );
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
        // Macros are expanded anew.
        let touched = File::options()
            .append(true)
            .open(&library)
            .and_then(|file| file.set_modified(SystemTime::now()));
        touched.map_err(Error::file("touch", &library))?;
        let checked = cargo::command()
            .args(["check", "--quiet", "--package", &format!("vitrine-{service}")])
            .current_dir(&root)
            .env("DATABASE_URL", server.url(schema))
            .env("SQLX_OFFLINE_DIR", &folder)
            .status()
            .map_err(Error::file("run cargo in", &root))?;
        if !checked.success() {
            return Ok(ExitCode::FAILURE);
        }
        println!("wrote {}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}
