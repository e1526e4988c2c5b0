//! The cargo that runs us, for building what is ours. Builds a command line and runs nothing.

use std::ffi::OsString;
use std::process::Command;

/// Cargo's program, so that a toolchain chosen with `cargo +X xtask` stays chosen.
pub fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Cargo, as if nothing had started us.
pub fn command() -> Command {
    let mut command = Command::new(program());
    forget_package(&mut command);
    command
}

/// Takes away what cargo tells a program that it runs about that program's package. Build scripts ask for such variables
/// (`ring`'s does), so that with them everything that needs TLS would be compiled anew, and once more when a person calls cargo.
pub fn forget_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_does_not_learn_whose_program_calls_it() {
        // Set for every test by whoever runs it as cargo would.
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
        let command = command();
        let forgotten = |name: &str| {
            command
                .get_envs()
                .any(|(seen, value)| seen == name && value.is_none())
        };
        assert!(forgotten("CARGO_PKG_NAME") && forgotten("CARGO_MANIFEST_DIR"));
        assert!(!forgotten("PATH"));
    }
}
