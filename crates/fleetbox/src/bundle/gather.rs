//! Owns what is asked of a machine after a failure: its console, its guest's own state, its monitor's words.
//! It must not fail for a machine that does not answer: that is evidence, too.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::console::harmless;
use crate::diagnose::{BootReport, Units};
use crate::error::{Error, Result};
use crate::sys::random;
use crate::timings::Timings;
use crate::vm::{State, Vm};

/// Emulated guests answer in a few seconds; a dead one shall not hold up the rest.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: u64 = 32 * 1024 * 1024;
const CONSOLE_BYTES_MAX: u64 = 4 * 1024 * 1024;
const LOG_BYTES_MAX: u64 = 1024 * 1024;
const CORES_MAX: usize = 4;

/// What is written to which file, by a script that begins each with a line of a word nobody can guess.
const ASK: &str = r#"part() { printf '\n%s %s\n' "$1" "$2"; }
part "$1" processes.txt; ps auxww
part "$1" network.txt; ip -br address; ip route; ip neighbour; ss -tuanp
part "$1" units.txt; systemctl --no-pager --plain --failed; systemctl --no-pager list-jobs
part "$1" memory-and-disks.txt; free -m; df -h; mount
part "$1" kernel.txt; dmesg | tail -n 3000
part "$1" journal.txt; journalctl -q -b -n 5000 -o short-iso-precise --no-pager
part "$1" cloud-init.txt; tail -n 1000 /var/log/cloud-init.log; tail -n 200 /var/log/cloud-init-output.log
part "$1" cores; find /var/lib/systemd/coredump /var/crash -type f -size -65536k 2>/dev/null | head -n 4
"#;

/// What is known of one machine.
#[derive(Debug)]
pub(super) struct Evidence {
    pub vm: String,
    /// How it was found, in a line.
    pub state: String,
    pub files: Vec<(String, Vec<u8>)>,
    pub boot: Option<BootReport>,
    pub timings: Option<Timings>,
    /// Its image, sizes and backend, as pairs.
    pub facts: Vec<(&'static str, String)>,
}

impl Evidence {
    /// What a boot that failed left of its machine.
    pub(super) fn of_failed_boot(error: &Error) -> Option<Self> {
        let report = error.boot_report()?;
        let mut files = vec![("error.txt".to_owned(), error.report().into_bytes())];
        files.push(("console.log".to_owned(), error.boot_console().unwrap_or_default().to_vec()));
        files.push(("boot.txt".to_owned(), report.to_string().into_bytes()));
        Some(Self {
            vm: error.vm_name().unwrap_or("machine").to_owned(),
            state: "did not come up".to_owned(),
            files,
            boot: Some(report.clone()),
            timings: None,
            facts: Vec::new(),
        })
    }

    /// A file's text, harmless.
    pub(super) fn text(&self, file: &str) -> Option<String> {
        let (_, bytes) = self.files.iter().find(|(name, _)| name == file)?;
        Some(harmless(bytes))
    }
}

/// Of all machines, side by side, in their order. Who is among the `dead` is not asked anything.
pub(super) async fn all(vms: &[Vm], dead: &[&str]) -> Vec<Evidence> {
    let mut asked = JoinSet::new();
    for (place, vm) in vms.iter().cloned().enumerate() {
        let dead = dead.contains(&vm.name());
        asked.spawn(async move { (place, of(&vm, dead).await) });
    }
    let mut evidence = asked.join_all().await;
    evidence.sort_by_key(|(place, _)| *place);
    evidence.into_iter().map(|(_, evidence)| evidence).collect()
}

async fn of(vm: &Vm, dead: bool) -> Evidence {
    let mut files = Vec::new();
    let mut note = |name: &str, content: Result<Vec<u8>>| match content {
        Ok(content) => files.push((name.to_owned(), content)),
        Err(e) => files.push((format!("{name}.missing"), e.report().into_bytes())),
    };
    note("console.log", vm.console_end(CONSOLE_BYTES_MAX));
    note("monitor.log", vm.monitor_log(LOG_BYTES_MAX));
    note("holder.log", vm.holder_log(LOG_BYTES_MAX));
    let mut facts = vm.facts();
    let (state, boot) = match vm.info().await {
        Ok(info) => {
            facts.push(("holder", info.holder_pid.map_or("-".to_owned(), |pid| pid.to_string())));
            let state = if dead { "its kernel is dead".to_owned() } else { info.state.to_string() };
            (state, info.state == State::Running && !dead)
        }
        Err(e) => (format!("unknown: {}", e.report()), false),
    };
    let boot = if boot {
        let (told, boot) = tokio::join!(ask(vm), vm.report_boot(Units::Stages));
        match told {
            Ok(told) => files.extend(told),
            Err(e) => files.push(("guest.missing".to_owned(), e.report().into_bytes())),
        }
        boot.map_err(|e| log::debug!("no report of the boot: {}", e.report())).ok()
    } else {
        None
    };
    if let Some(boot) = &boot {
        files.push(("boot.txt".to_owned(), boot.to_string().into_bytes()));
    }
    let timings = Some(vm.timings().clone());
    Evidence { vm: vm.name().to_owned(), state, files, boot, timings, facts }
}

/// The guest's own state, in one command, and the cores it names.
async fn ask(vm: &Vm) -> Result<Vec<(String, Vec<u8>)>> {
    let mark = format!("fleetbox-{}", random::hex::<16>()?);
    let mut command = vm.command("sh");
    command.args(["-c", &format!("exec 2>&1\n{ASK}"), "sh", &mark]).sudo().unwritten();
    command.timeout(ANSWER_WAIT).output_limit_bytes(ANSWER_BYTES_MAX);
    let output = command.output().await?;
    let mut files = parts(&output.stdout, &mark);
    let cores = files.iter().position(|(name, _)| name == "cores").map(|at| files.swap_remove(at));
    let cores = String::from_utf8_lossy(&cores.unwrap_or_default().1).into_owned();
    for path in cores.lines().filter(|line| line.starts_with('/')).take(CORES_MAX) {
        files.push(core(vm, path).await?);
    }
    Ok(files)
}

async fn core(vm: &Vm, path: &str) -> Result<(String, Vec<u8>)> {
    let mut command = vm.command("cat");
    command.arg("--").arg(path).sudo().unwritten().timeout(ANSWER_WAIT);
    let output = command.output_limit_bytes(1 << 26).run().await?;
    let base = path.rsplit('/').next().unwrap_or(path);
    let name: String =
        base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(100).collect();
    Ok((format!("core-{name}"), output.stdout))
}

/// Cuts the script's output where it names a file. A name is one of ours.
fn parts(output: &[u8], mark: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for line in output.split_inclusive(|b| *b == b'\n') {
        let name =
            std::str::from_utf8(line).ok().and_then(|line| line.trim_end().strip_prefix(mark));
        match (name, files.last_mut()) {
            (Some(name), _) => files.push((name.trim().to_owned(), Vec::new())),
            (None, Some((_, content))) => content.extend_from_slice(line),
            (None, None) => {}
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_answer_is_cut_into_files_by_a_word_it_cannot_guess() {
        let output = b"\nmark-1 a.txt\none\nmark- b.txt\n\xff\n\nmark-1 b.txt\n";
        assert_eq!(
            parts(output, "mark-1"),
            [
                ("a.txt".to_owned(), b"one\nmark- b.txt\n\xff\n\n".to_vec()),
                ("b.txt".to_owned(), Vec::new())
            ]
        );
        assert!(parts(b"", "mark").is_empty());
    }
}
