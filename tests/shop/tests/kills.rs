//! An order's life, with the shop's process killed (SIGKILL) before and after each commit and each request: nothing is lost, doubled or half done.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use vitrine_parts::soak;
use vitrine_shop_tests::{
    around::{Around, program, spawn},
    town::{CHECKOUT, session_of, until, wants},
    wire::{Numbers, Side},
};
use vitrine_stripe::sim::Act;

/// A little more than a lease of a worker's (`vitrine_api::flows::worker::LEASE`).
const LEASE_SECONDS: i32 = 61;

/// The shop as a process, which is started again whenever it is found dead.
struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    child: Arc<Mutex<Child>>,
    killed: u32,
}

impl Process {
    /// Starts it again, if it is dead; whether it was.
    fn revive(&mut self) -> bool {
        let mut child = self.child.lock().unwrap();
        let is_dead = child.try_wait().unwrap().is_some();
        if is_dead {
            self.killed += 1;
            *child = spawn(&self.program, &self.arguments);
        }
        is_dead
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// What a life has come to.
#[derive(Debug, PartialEq, Eq)]
struct Life {
    stage: String,
    licences: i64,
    refunds: usize,
    entries: Vec<String>,
}

/// One order's life; how many numbers there were, what they were, and how often the process was killed.
async fn live(program: &Path, chosen: Option<(u64, Side)>) -> (Life, u64, Vec<String>, u32) {
    let slot: Arc<Mutex<Option<Arc<Mutex<Child>>>>> = Arc::default();
    let victim = slot.clone();
    let numbers = Numbers::new(chosen, move || {
        if let Some(child) = victim.lock().unwrap().as_ref() {
            // SIGKILL: nothing more is done.
            child.lock().unwrap().kill().unwrap();
        }
    });
    let around = Around::numbered(&numbers).await;
    let child = Arc::new(Mutex::new(spawn(program, &around.arguments)));
    *slot.lock().unwrap() = Some(child.clone());
    let process = Mutex::new(Process {
        program: program.to_path_buf(),
        arguments: around.arguments.clone(),
        child,
        killed: 0,
    });
    // What the dead one was at is another's when its lease is over.
    let revive = async || {
        let was_dead = process.lock().unwrap().revive();
        if was_dead {
            around.passes(LEASE_SECONDS).await;
        }
    };
    // Whoever asks, asks again: with the same key it is the same thing.
    let ask = async |method: &str, path: &str, key: Option<&str>, body: Option<Value>| {
        until(async || {
            revive().await;
            match around.ask("alice", method, path, key, body.clone()).await {
                Some((status, seen)) if status < 300 => Ok(seen),
                other => Err(format!("{method} {path}: {other:?}")),
            }
        })
        .await
    };
    let reaches = async |order: &str, stage: &str| {
        until(async || {
            let seen = ask("GET", &format!("/api/v1/marketplace/orders/{order}"), None, None).await;
            if seen["stage"] == stage {
                Ok(())
            } else {
                Err(format!("{} and not {stage}", seen["stage"]))
            }
        })
        .await;
    };
    let made = ask("POST", CHECKOUT, Some("k"), Some(wants("notes", 2))).await;
    let order = made["order"].as_str().unwrap().to_owned();
    let session = session_of(&made);
    around.stripe.act(&Act::Pay(session)).unwrap();
    reaches(&order, "completed").await;
    let refund = json!({"units": [{"line": 0, "unit": 1}], "reason": "withdrawn"});
    ask(
        "POST",
        &format!("/api/v1/marketplace/orders/{order}/refunds"),
        Some("r"),
        Some(refund),
    )
    .await;
    reaches(&order, "partly_refunded").await;
    // Until nothing is left to do.
    until(async || {
        revive().await;
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM shop.tasks")
            .fetch_one(&around.pool)
            .await
            .unwrap();
        if open == 0 {
            Ok(())
        } else {
            Err(format!("{open} tasks are open"))
        }
    })
    .await;
    let refunds = around.stripe.stripe().refunds().count();
    let life = Life {
        stage: "partly_refunded".to_owned(),
        licences: sqlx::query_scalar("SELECT count(*) FROM shop.licences WHERE signature IS NOT NULL")
            .fetch_one(&around.pool)
            .await
            .unwrap(),
        refunds,
        entries: sqlx::query_scalar("SELECT kind FROM ledger.entries ORDER BY kind")
            .fetch_all(&around.books)
            .await
            .unwrap(),
    };
    let killed = process.lock().unwrap().killed;
    let named = numbers.named.lock().unwrap().clone();
    (life, numbers.count(), named, killed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_survives_a_kill_before_and_after_each_commit_and_request() {
    let program = program(env!("CARGO_TARGET_TMPDIR"));
    let (right, count, named, killed) = live(&program, None).await;
    assert_eq!((right.licences, right.refunds, killed), (2, 1, 0), "{right:?}");
    eprintln!("{count} commits and requests: {named:?}");
    // Every so manieth here, each of them where evidence is wanted.
    let every = if soak() { 1 } else { 9 };
    let mut kills = 0;
    for number in (1..=count).step_by(every) {
        for side in [Side::Before, Side::After] {
            let (life, _, _, killed) = live(&program, Some((number, side))).await;
            let at = named.get(usize::try_from(number).unwrap() - 1);
            assert_eq!(life, right, "killed {side:?} {number} ({at:?})");
            kills += killed;
        }
    }
    assert!(kills > 0, "nothing was killed");
    eprintln!("{kills} kills");
}
