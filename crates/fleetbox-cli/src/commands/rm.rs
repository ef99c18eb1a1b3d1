//! `rm`: deletes VMs, after asking.

use std::io::{BufRead, IsTerminal, Write};

use fleetbox::{Error, ErrorKind, Vm};

use super::resolve_all;
use crate::args::Rm;
use crate::{Outcome, render};

pub(super) async fn run(args: Rm) -> Outcome {
    let vms = if args.force { existing(&args.names)? } else { resolve_all(&args.names)? };
    if vms.is_empty() {
        return Ok(0);
    }
    if !args.force {
        match agreed(&vms) {
            Some(true) => {}
            Some(false) => return Ok(1),
            None => {
                eprintln!("fleetbox: delete {}: nobody is there to ask", list(&vms));
                eprintln!("hint: add -f to delete without asking");
                return Ok(2);
            }
        }
    }
    let mut worst = 0;
    for vm in vms {
        if let Err(error) = vm.destroy().await {
            render::complain(&error);
            worst = worst.max(crate::code_of(&error));
        }
    }
    Ok(worst)
}

/// With -f, what is not there is as good as deleted.
fn existing(names: &[String]) -> Result<Vec<Vm>, Error> {
    let mut vms = Vec::new();
    for name in names {
        match fleetbox::resolve(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            found => vms.extend(found?),
        }
    }
    Ok(vms)
}

fn list(vms: &[Vm]) -> String {
    vms.iter().map(Vm::name).collect::<Vec<_>>().join(", ")
}

/// The user's answer, or none if no user is there.
fn agreed(vms: &[Vm]) -> Option<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    eprint!("delete {} with their disks? [y/N] ", list(vms));
    std::io::stderr().flush().ok()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).ok()?;
    Some(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
