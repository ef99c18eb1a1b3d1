//! Owns the dispatch from a parsed command to the file that does it, one file a command.

mod cp;
mod down;
mod fault;
mod image;
mod logs;
mod ls;
mod machine;
mod net;
mod port;
mod prune;
mod rm;
mod run;
mod runner;
mod shell;
mod snapshot;
mod ssh;
mod up;

use std::future::Future;
use std::io::Write;

use clap::CommandFactory;
use fleetbox::{Error, Vm};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::args::{Args, Command, CompletionShell, Exec, Format, Names, Output, Ssh};
use crate::{Outcome, render};

pub(crate) async fn run(command: Command) -> Outcome {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Down(args) => down::run(args).await,
        Command::Ls(args) => ls::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Runner(args) => runner::run(args).await,
        Command::Ssh(args) => ssh::run(args).await,
        Command::Exec(Exec { name, tty, command }) => ssh::run(Ssh { name, tty, command }).await,
        Command::Cp(args) => cp::run(args).await,
        Command::SshConfig(args) => ssh_config(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Port(args) => port::run(args).await,
        Command::Net(args) => net::run(args).await,
        Command::Fault(args) => fault::run(args).await,
        Command::Rm(args) => rm::run(args).await,
        Command::Prune(args) => prune::run(&args).await,
        Command::Snapshot(args) => snapshot::run(args.command).await,
        Command::Image(args) => image::run(args.command).await,
        Command::Doctor(args) => doctor(&args).await,
        Command::Version(args) => version(&args),
        Command::Completion { shell } => shell::completion(shell),
        Command::Man { directory } => shell::man(&directory),
        Command::Proxy { name, port } => ssh::proxy(&name, port).await,
    }
}

/// The VMs that names stand for, each once, in order.
fn resolve_all(names: &[String]) -> Result<Vec<Vm>, Error> {
    let mut vms: Vec<Vm> = Vec::new();
    for name in names {
        for vm in fleetbox::resolve(name)? {
            if vms.iter().all(|known| known.name() != vm.name()) {
                vms.push(vm);
            }
        }
    }
    Ok(vms)
}

/// The same to all of them at once; each failure is told, and the worst is the exit code.
async fn each<F>(names: &[String], act: impl Fn(Vm) -> F) -> Outcome
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut acts = JoinSet::new();
    for vm in resolve_all(names)? {
        acts.spawn(act(vm));
    }
    let mut worst = 0;
    while let Some(joined) = acts.join_next().await {
        match joined {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                render::complain(&error);
                worst = worst.max(crate::code_of(&error));
            }
            Err(_) => worst = 70,
        }
    }
    Ok(worst)
}

/// Turns the outcome of writing to standard output into a command's; a reader that went away, as
/// `head` does, is no failure.
fn printed(written: std::io::Result<()>) -> Outcome {
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("fleetbox: write to standard output: {e}");
            Ok(1)
        }
        _ => Ok(0),
    }
}

async fn ssh_config(args: Names) -> Outcome {
    let vms = if args.names.is_empty() {
        let mut vms = Vec::new();
        for info in fleetbox::list().await? {
            vms.push(Vm::find(&info?.name)?);
        }
        vms
    } else {
        resolve_all(&args.names)?
    };
    let own = std::env::current_exe().unwrap_or_else(|_| "fleetbox".into());
    let mut text = String::new();
    for vm in &vms {
        text.push_str(&vm.ssh_config(&own)?);
    }
    printed(std::io::stdout().write_all(text.as_bytes()))
}

async fn doctor(args: &Output) -> Outcome {
    let checks = fleetbox::host::check().await;
    let missing = checks.iter().any(|c| c.verdict == fleetbox::host::Verdict::Missing);
    printed(match args.output {
        Format::Text => render::checks_table(&checks),
        Format::Json => render::checks_json(&checks),
    })?;
    Ok(if missing { 3 } else { 0 })
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
    protocol: u32,
}

fn version(args: &Output) -> Outcome {
    let version = Version { version: env!("CARGO_PKG_VERSION"), protocol: fleetbox::PROTOCOL };
    printed(match args.output {
        Format::Text => writeln!(std::io::stdout(), "fleetbox {}", version.version),
        Format::Json => render::json(&version),
    })
}
