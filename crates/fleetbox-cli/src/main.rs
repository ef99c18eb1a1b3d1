//! The `fleetbox` command: parses, runs one command, turns its outcome into an exit code. It must
//! not do a command's work itself.
//!
//! Exit codes: 0 done; 1 it did not work; 2 the request itself was wrong; 3 this host lacks
//! something (`fleetbox doctor` tells); 4 the guest failed; 70 a defect of fleetbox. `run`, `ssh`
//! and `exec` end with the guest's command's own code, or 255 if it could not be run.
#![expect(clippy::print_stderr, reason = "a command line prints")]

mod args;
mod commands;
mod complete;
mod progress;
mod render;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use fleetbox::{Error, ErrorKind, Fault};

use crate::args::Args;

/// What a command ends with: the process's exit code, or an error to report.
type Outcome = Result<u8, Error>;

fn main() -> ExitCode {
    // Answers the shell's question for completions and ends, if it is asked.
    clap_complete::CompleteEnv::with_factory(Args::command).complete();
    let args = Args::parse();
    start_log(args.verbose);
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => {
                eprintln!("fleetbox: start a runtime: {e}");
                return ExitCode::from(70);
            }
        };
    let has_guest_code = args.command.has_guest_code();
    let takes_signals = has_guest_code || args.command.ends_by_interrupt();
    let outcome = runtime.block_on(async {
        if takes_signals {
            // Passes signals on to the guest's command, or ends by them, itself.
            return commands::run(args.command).await;
        }
        tokio::select! {
            // Listens before any work is done that would have to be undone.
            biased;
            () = interrupted() => Ok(130),
            outcome = commands::run(args.command) => outcome,
        }
    });
    let code = match outcome {
        Ok(code) => code,
        Err(error) => {
            render::complain(&error);
            if has_guest_code { 255 } else { code_of(&error) }
        }
    };
    // Tasks get a moment to let go of a machine and to remove what is half made, which takes as
    // long as the step they are in. A thread that reads standard input would never end.
    let moment = if has_guest_code { 100 } else { 2000 };
    runtime.shutdown_timeout(std::time::Duration::from_millis(moment));
    ExitCode::from(code)
}

fn code_of(error: &Error) -> u8 {
    match (error.kind(), error.kind().fault()) {
        (ErrorKind::NotFound | ErrorKind::NotRunning | ErrorKind::Conflict, _) => 1,
        (_, Fault::Request) => 2,
        (_, Fault::Host) => 3,
        (_, Fault::Guest) => 4,
        (_, Fault::Internal) => 70,
        _ => 1,
    }
}

/// Ends the command on Ctrl-C or SIGTERM by dropping what it does, which undoes what is half done.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => log::LevelFilter::Info,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    env_logger::Builder::new()
        .filter_module("fleetbox", level)
        .format(|out, record| {
            use std::io::Write;
            let time = humantime::format_rfc3339_micros(std::time::SystemTime::now());
            let (level, target) = (record.level(), record.target());
            writeln!(out, "{time} {level:>5} {target}: {}", record.args())
        })
        .init();
}
