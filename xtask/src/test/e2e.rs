//! The stage of tests/e2e: gives each test binary the clusters that it needs. Starts clusters through `clusters`.

use std::time::Duration;

use vitrine_devcluster::Level;

use super::binaries::TestBinary;
use super::{E2E, Run};
use crate::clusters::{self, Clusters, Needs};

/// Crash tests go through every write of a preview's life; the slowest binary has this long.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Tells tests to run with the counts that evidence needs.
const SOAK: &str = "VITRINE_SOAK";

impl Run {
    pub(super) fn run_e2e(&mut self, built: &[TestBinary]) {
        let Some(needs) = self.workspace.member(E2E).map(Needs::of) else {
            return;
        };
        let needs = match needs {
            Ok(needs) => needs,
            Err(error) => return self.fail(None, E2E, "e2e", "(clusters)", error.to_string()),
        };
        let own = built.iter().filter(|binary| binary.package == E2E);
        let mut plan: Vec<(&TestBinary, Vec<String>, Vec<Level>)> = own
            .map(|binary| (binary, self.selected(binary), needs.levels(&binary.label)))
            .collect();
        plan.retain(|(_, selected, _)| !selected.is_empty());
        plan.sort_by_key(|(_, _, levels)| clusters::rank(levels));
        let mut clusters = Clusters::none(self.logs.clone());
        for (index, (binary, selected, levels)) in plan.iter().enumerate() {
            match clusters.ensure(levels) {
                Ok(mut env) => {
                    if self.soak {
                        env.push((SOAK.into(), "1".into()));
                    }
                    self.run_binary(binary, selected, &env, LIMIT);
                }
                Err(error) => {
                    for test in selected {
                        self.fail(
                            None,
                            E2E,
                            &binary.label,
                            test,
                            format!("it has no cluster: {error}"),
                        );
                    }
                }
            }
            let later: Vec<Level> = plan[index + 1..]
                .iter()
                .flat_map(|(_, _, levels)| levels)
                .copied()
                .collect();
            if let Err(error) = clusters.keep_only(&later) {
                self.fail(None, E2E, &binary.label, "(clusters go down)", error.to_string());
            }
        }
    }
}
