//! The queries of the shop's services are checked as they are compiled, against what the database said of them once (`.sqlx/`). Here it is asked again.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{fs, path::Path};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Column, Either, Executor, PgConnection, SqlSafeStr, TypeInfo, migrate::Migrator};
use vitrine_shop_tests::postgres::{database, server};

const ANEW: &str = "run `cargo xtask queries` and commit what it writes";

/// What a file in `.sqlx/` says is what the database says.
async fn is_true(connection: &mut PgConnection, file: &Path) -> Result<(), String> {
    let saved: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let query = saved["query"].as_str().unwrap().to_owned();
    let told = connection
        .describe(AssertSqlSafe(query.clone()).into_sql_str())
        .await
        .map_err(|error| format!("{query}: {error}"))?;
    let columns: Vec<_> = told
        .columns()
        .iter()
        .map(|column| format!("{} {}", column.name(), column.type_info().name()))
        .collect();
    let known = saved["describe"]["columns"].as_array().unwrap();
    let known: Vec<_> = known
        .iter()
        .map(|column| {
            format!(
                "{} {}",
                column["name"].as_str().unwrap(),
                name(&column["type_info"])
            )
        })
        .collect();
    if columns != known {
        return Err(format!("{query}: {known:?} is {columns:?} now"));
    }
    // Of outer joins that is told by the plan, which may be another today; queries with some say it themselves.
    let is_said = |column: &&usize| told.columns()[**column].name().ends_with(['!', '?']);
    let told_of: Vec<_> = (0..columns.len()).filter(|column| !is_said(&column)).collect();
    let nullable: Vec<_> = told_of.iter().map(|column| told.nullable(*column)).collect();
    let saved_nullable = saved["describe"]["nullable"].as_array().unwrap();
    let was: Vec<_> = told_of
        .iter()
        .map(|column| saved_nullable[*column].as_bool())
        .collect();
    if nullable != was {
        return Err(format!(
            "{query}: whether columns are null was {was:?}, and is {nullable:?}"
        ));
    }
    let parameters = match told.parameters() {
        Some(Either::Left(types)) => types.len(),
        Some(Either::Right(count)) => count,
        None => 0,
    };
    let known = saved["describe"]["parameters"]["Left"]
        .as_array()
        .map_or(0, Vec::len);
    (parameters == known)
        .then_some(())
        .ok_or_else(|| format!("{query}: {known} parameters are {parameters} now"))
}

fn name(kind: &Value) -> String {
    match kind {
        Value::String(name) => match name.strip_suffix("Array") {
            Some(of) => format!("{}[]", of.to_uppercase()),
            None => name.to_uppercase(),
        },
        other => other.to_string(),
    }
}

async fn all_are_true(crates: &[&str], schema: &Migrator) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut connection = database(server(), schema).await.connect().await;
    let (mut wrong, mut count) = (vec![], 0);
    for name in crates {
        for entry in fs::read_dir(root.join(name).join(".sqlx")).unwrap() {
            count += 1;
            wrong.extend(is_true(&mut connection, &entry.unwrap().path()).await.err());
        }
    }
    assert!(count > 0 && wrong.is_empty(), "{ANEW}:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_is_known_of_the_shops_queries_is_still_true() {
    all_are_true(&["api", "signer"], &vitrine_api::store::postgres::MIGRATIONS).await;
}

#[tokio::test]
async fn what_is_known_of_finances_queries_is_still_true() {
    all_are_true(&["finance"], &vitrine_finance::ledger::MIGRATIONS).await;
}
