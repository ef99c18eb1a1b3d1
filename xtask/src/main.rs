//! Owns the project's own chores: `tidy` checks what a program can check of the source, `bench`
//! measures the figures the project promises, `catalog` refreshes the images it pins, `nested` runs
//! the tests where KVM works. Nothing here is part of a release.

mod bench;
mod catalog;
mod failure;
mod nested;
mod process;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Outcome;

/// Chores of the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check the source for what the compiler does not: headers, lengths, names, places
    Tidy,
    /// Measure figures side by side with their peers; writes target/bench.json
    Bench(bench::Args),
    /// Pin the newest published images in crates/fleetbox/src/images/catalog.json
    Catalog(catalog::Args),
    /// Run fleetbox's own tests on a working KVM, inside a machine that fleetbox emulates
    Nested(nested::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().task {
        Task::Tidy => tidy::run(&root()),
        Task::Bench(args) => bench::run(&root(), &args),
        Task::Catalog(args) => catalog::run(&root(), &args),
        Task::Nested(args) => nested::run(&root(), &args),
    };
    conclude(outcome)
}

#[expect(clippy::print_stderr, reason = "a chore says why it failed")]
fn conclude(outcome: Outcome<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's directory; where there is none, as in a machine this program was copied to, the
/// current one.
fn root() -> PathBuf {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().unwrap_or(own);
    if root.is_dir() { root.to_owned() } else { PathBuf::from(".") }
}
