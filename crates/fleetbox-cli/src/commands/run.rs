//! `run`: a command in a VM of its own, which is gone when the command ends, whatever ends it.

use std::hash::{BuildHasher, RandomState};

use fleetbox::{Command, Error, Vm};

use super::ssh;
use crate::args::Run;
use crate::args::machine::Machine;
use crate::progress::Display;
use crate::{Outcome, render};

pub(super) async fn run(args: Run) -> Outcome {
    // Nobody else's, and no member of a cluster `run`.
    let name = format!("run-{:08x}x", RandomState::new().hash_one(0) as u32);
    let Some(vm) = start(&name, &args.machine, args.cold, args.quiet).await? else {
        return Ok(130);
    };
    let outcome = ssh::in_vm(&vm, args.tty, command(&vm, &args.command)).await;
    // It goes with this process in any case; the next command shall find it gone.
    if let Err(e) = vm.destroy().await {
        render::complain(&e);
    }
    outcome
}

/// One word may be a whole line of shell; several arrive as they are. Without any it is a shell.
fn command(vm: &Vm, words: &[String]) -> Option<Command> {
    match words {
        [] => None,
        [line] => Some(vm.shell(line)),
        [program, rest @ ..] => {
            let mut command = vm.command(program);
            command.args(rest);
            Some(command)
        }
    }
}

/// A VM that goes with this process; none if that is interrupted meanwhile.
pub(super) async fn start(
    name: &str,
    machine: &Machine,
    cold: bool,
    quiet: bool,
) -> Result<Option<Vm>, Error> {
    let mut builder = machine.of(Vm::builder(name)).ephemeral(true).warm(!cold);
    let display = (!quiet).then(Display::new);
    if let Some(display) = &display {
        builder = builder.on_progress(display.sink(name));
    }
    tokio::select! {
        // Listens before there is anything to be undone, which dropping the start does.
        biased;
        () = crate::interrupted() => Ok(None),
        vm = builder.start() => vm.map(Some),
    }
}
