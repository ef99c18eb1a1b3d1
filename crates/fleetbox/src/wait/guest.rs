//! Owns the conditions that the guest is asked for: units, files, commands, the journal, the end of the boot.
//! It must not change anything there.
//!
//! A question is a script that looks again and again by itself and ends when it has an answer, or after a few
//! seconds with what it saw: one channel instead of many.

use std::time::Duration;

use regex_lite::Regex;

use super::outside::{Pause, passing};
use super::{Seen, UnitState, never};
use crate::error::{Error, Result};
use crate::ssh::Output;
use crate::vm::Vm;

/// Looks until `look` is done, again and again after each pause of its first argument. Exit codes: it holds,
/// it never will, not yet.
const LOOP: &str = "pauses=$1
shift
for pause in $pauses; do
    look \"$@\"
    sleep $pause
done
exit 2
";
/// The first question has a short answer, so that something is known soon.
const FIRST_PAUSES: &str = "0.02 0.05 0.1 0.2";
/// Some five seconds.
const PAUSES: &str = "0.2 0.2 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3 0.3";
const HOLDS: Option<i32> = Some(0);
const NEVER: Option<i32> = Some(1);
/// What a script may take beyond its own pauses, on a slow guest.
const ANSWER_WAIT: Duration = Duration::from_mins(1);
const OUTPUT_BYTES_MAX: u64 = 16 * 1024 * 1024;

const UNIT: &str = "look() {
    state=$(systemctl show -p LoadState -p ActiveState -p SubState -p Result -- \"$1\" | tr '\\n' ' ')
    case $state in
    *\"ActiveState=$2 \"*) exit 0;;
    *'ActiveState=failed '*) systemctl status --no-pager -l -n 20 -- \"$1\"; exit 1;;
    esac
    last=$state
}
trap 'echo \"$last\"' EXIT
";

const PATH: &str = "look() { if [ \"$1\" \"$2\" ]; then exit 0; fi; }\n";

/// Asks until the answer is yes or never. `seen` keeps what it saw meanwhile.
async fn ask(vm: &Vm, script: &str, args: &[&str], seen: &Seen) -> Result<Output> {
    let script = format!("{script}{LOOP}");
    let mut pause = Pause::new();
    let mut pauses = FIRST_PAUSES;
    loop {
        let mut command = vm.command("sh");
        command.args(["-c", &script, "sh", pauses]).args(args).sudo().unwritten();
        command.timeout(ANSWER_WAIT).output_limit_bytes(OUTPUT_BYTES_MAX);
        match command.output().await {
            Ok(output) if output.status.code() == HOLDS => return Ok(output),
            Ok(output) if output.status.code() == NEVER => return Err(refused(&output)),
            Ok(output) => {
                seen.set(&told(&output));
                pauses = PAUSES;
            }
            Err(e) => {
                // A guest that reboots comes back.
                passing(e, seen)?;
                pause.pause().await;
            }
        }
    }
}

fn told(output: &Output) -> String {
    let text = [output.stdout_text(), output.stderr_text()].concat();
    if text.is_empty() { format!("not yet ({})", output.status) } else { text }
}

fn refused(output: &Output) -> Error {
    never("it failed").detail(crate::console::harmless(told(output).as_bytes()))
}

pub(super) async fn unit(vm: &Vm, name: &str, state: UnitState, seen: &Seen) -> Result<()> {
    let state = match state {
        UnitState::Active => "active",
        UnitState::Inactive => "inactive",
    };
    let hint = format!("see `fleetbox ssh {} -- journalctl -u {name}`", vm.name());
    ask(vm, UNIT, &[name, state], seen)
        .await
        .map(drop)
        .map_err(|e| if e.kind() == crate::ErrorKind::WaitFailed { e.hint(hint) } else { e })
}

pub(super) async fn path(vm: &Vm, test: &str, path: &str, seen: &Seen) -> Result<()> {
    seen.set("it is not there");
    ask(vm, PATH, &[test, path], seen).await.map(drop)
}

/// The journal since the last look, with the place where it ended.
const JOURNAL: &str = "look() {
    text=$(journalctl -q -b -o short --no-pager --show-cursor ${1:+\"--after-cursor=$1\"} | tail -c 8000000)
    case $text in
    ''|'-- cursor: '*) ;;
    *) printf '%s\\n' \"$text\"; exit 0;;
    esac
}
";

pub(super) async fn journal(vm: &Vm, pattern: &Regex, seen: &Seen) -> Result<()> {
    let mut cursor = String::new();
    loop {
        let output = ask(vm, JOURNAL, &[&cursor], seen).await?;
        let text = output.stdout_text();
        for line in text.lines() {
            match line.strip_prefix("-- cursor: ") {
                Some(place) => place.clone_into(&mut cursor),
                None if pattern.is_match(line) => return Ok(()),
                None => seen.set(line),
            }
        }
    }
}

pub(super) async fn command(vm: &Vm, line: &str, seen: &Seen) -> Result<()> {
    let mut pause = Pause::new();
    loop {
        let mut command = vm.shell(line);
        match command.unwritten().output_limit_bytes(OUTPUT_BYTES_MAX).output().await {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let text = [output.stdout_text(), output.stderr_text()].join("\n");
                seen.set(&format!("{}\n{}", output.status, text.trim()));
            }
            Err(e) => passing(e, seen)?,
        }
        pause.pause().await;
    }
}

/// Both wait by themselves. What they end with is no matter: they have ended.
const BOOT: &str = "systemctl is-system-running --wait
if command -v cloud-init >/dev/null; then cloud-init status --wait; fi
true";

pub(super) async fn boot_finished(vm: &Vm, seen: &Seen) -> Result<()> {
    let mut pause = Pause::new();
    loop {
        match vm.shell(BOOT).unwritten().run().await {
            Ok(_) => return Ok(()),
            Err(e) => passing(e, seen)?,
        }
        pause.pause().await;
    }
}
