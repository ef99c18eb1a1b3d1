//! `completion` and `man`: what a shell and a manual reader get, generated from the grammar.

use std::path::Path;

use super::{Args, CommandFactory, CompletionShell, Outcome, printed};

/// Prints the code that makes the shell ask this command for completions, so that names of VMs
/// are among them.
pub(super) fn completion(shell: CompletionShell) -> Outcome {
    let name = match shell {
        CompletionShell::Bash => "bash",
        CompletionShell::Elvish => "elvish",
        CompletionShell::Fish => "fish",
        CompletionShell::Powershell => "powershell",
        CompletionShell::Zsh => "zsh",
    };
    let shells = clap_complete::env::Shells::builtins();
    let Some(completer) = shells.completer(name) else {
        eprintln!("fleetbox: no completion for {name}");
        return Ok(1);
    };
    let mut code = Vec::new();
    let registered =
        completer.write_registration("COMPLETE", "fleetbox", "fleetbox", "fleetbox", &mut code);
    printed(registered.and_then(|()| std::io::Write::write_all(&mut std::io::stdout(), &code)))
}

pub(super) fn man(directory: &Path) -> Outcome {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Args::command(), directory));
    match written {
        Ok(()) => Ok(0),
        Err(e) => {
            eprintln!("fleetbox: write manual pages to {}: {e}", directory.display());
            Ok(1)
        }
    }
}
