//! `runner`: a program of this host, such as a test binary that cargo built, in a VM of its own, with this
//! process's streams and the program's exit code. cargo calls it (`target.<triple>.runner`).

use std::hash::{BuildHasher, RandomState};
use std::os::unix::process::CommandExt;
use std::path::Path;

use fleetbox::{Error, Vm};

use super::run::start;
use super::ssh;
use crate::args::Runner;
use crate::{Outcome, render};

/// What a test binary reads of its surroundings, by how the names begin.
const VARIABLES: &[&str] =
    &["RUST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_NAME", "NEXTEST", "PROPTEST_", "INSTA_"];
/// The guest's own place for it.
const GUEST_DIR: &str = "/tmp/fleetbox-runner";

pub(super) async fn run(args: Runner) -> Outcome {
    if args.arguments.iter().any(|word| word == "--list") {
        // libtest only names its tests then; nextest asks for that before each of them.
        return Ok(listed(&args));
    }
    let Some(name) = args.program.file_name().filter(|_| args.program.is_file()) else {
        render::complain_text(&format!("there is no program {}", args.program.display()));
        return Ok(2);
    };
    let vm_name = format!("runner-{:08x}x", RandomState::new().hash_one(0) as u32);
    let Some(vm) = start(&vm_name, &args.machine, args.cold, args.quiet).await? else {
        return Ok(130);
    };
    let guest = format!("{GUEST_DIR}/{}", name.to_string_lossy());
    let outcome = in_guest(&vm, &args, &guest).await;
    // It goes with this process in any case; the next command shall find it gone.
    if let Err(e) = vm.destroy().await {
        render::complain(&e);
    }
    outcome
}

/// Runs it on this host.
fn listed(args: &Runner) -> u8 {
    #[expect(clippy::disallowed_methods, reason = "the user's own program takes this process over")]
    let error = std::process::Command::new(&args.program).args(&args.arguments).exec();
    render::complain_io(&format!("run {}", args.program.display()), &error);
    255
}

async fn in_guest(vm: &Vm, args: &Runner, guest: &str) -> Outcome {
    vm.command("mkdir").args(["-p", GUEST_DIR]).run().await?;
    vm.copy_to(&args.program, guest).await?;
    let mut command = vm.command(guest);
    command.args(&args.arguments);
    for (name, value) in std::env::vars_os() {
        let Some(word) = name.to_str() else { continue };
        let wanted = VARIABLES.iter().any(|prefix| word.starts_with(prefix));
        if wanted || args.env.iter().any(|asked| asked == word) {
            command.env(word, value);
        }
    }
    if args.sudo {
        command.sudo();
    }
    let code = ssh::piped(&mut command).await?;
    if code == 1 || code == 127 {
        explain(vm, &args.program, guest).await?;
    }
    Ok(code)
}

/// A program that the guest's loader does not start says so in a way that not everybody knows.
async fn explain(vm: &Vm, program: &Path, guest: &str) -> Result<(), Error> {
    let output = vm.command("ldd").arg(guest).output().await?;
    let said = [output.stdout_text(), output.stderr_text()].join("\n");
    if let Some(line) = said.lines().find(|line| line.contains("not found")) {
        let hint = if line.trim_start().starts_with("libstd-") {
            "it needs cargo's own toolchain, as tests of a crate of procedural macros do: leave that crate out \
             (`--exclude`)"
        } else {
            "use an image as new as this host, or build for x86_64-unknown-linux-musl"
        };
        render::complain_text(&format!(
            "{} does not start in the guest: {}\nhint: {hint}",
            program.display(),
            fleetbox::harmless(line.trim().as_bytes())
        ));
    }
    Ok(())
}
