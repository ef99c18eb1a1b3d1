//! Owns `REPRODUCE.md`: how to run the failed test again, and on what it ran. It must not have a secret in it.

use std::fmt::Write;

use super::Story;
use super::gather::Evidence;
use crate::console::harmless;
use crate::env;

pub(super) fn text(story: &Story, failure: &str, evidence: &[Evidence]) -> String {
    let mut text = format!("# {}\n\n", story.test);
    let first = failure.lines().next().unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "Failed on {} with:\n", humantime::format_rfc3339_seconds(story.began));
    let _ = writeln!(text, "    {}\n", harmless(first.as_bytes()));
    let _ = writeln!(text, "## Again\n\n```sh\n{}\n```\n", command(&story.test));
    text.push_str(
        "`FLEETBOX_KEEP=failed` before it leaves the machines running, to look into.\n\n## On\n\n",
    );
    let _ = writeln!(text, "- fleetbox {}, host {}", env!("CARGO_PKG_VERSION"), host());
    for member in evidence {
        let facts: Vec<String> =
            member.facts.iter().map(|(what, value)| format!("{what} {value}")).collect();
        let _ = writeln!(text, "- {} ({}): {}", member.vm, member.state, facts.join(", "));
    }
    let settings = env::settings();
    if !settings.is_empty() {
        text.push_str("\n## Settings\n\n```sh\n");
        for (name, value) in settings {
            let _ = writeln!(text, "{name}={}", harmless(value.as_bytes()));
        }
        text.push_str("```\n");
    }
    text.push_str(
        "\n## Here\n\n`index.html` shows it all; each member has a directory with its console, its guest's \
         journal, processes, network and units, and its monitor's log, which begins with the monitor's \
         command line. `timeline.jsonl` has every command and fault, with the seeds of those that draw lots.\n",
    );
    text
}

/// The command that runs the test alone.
fn command(test: &str) -> String {
    let (krate, name) = test.split_once("::").unwrap_or((test, test));
    let package = env::text(env::CARGO_PACKAGE).ok().flatten();
    let package = package.map_or_else(String::new, |package| format!(" -p {package}"));
    let exe = std::env::current_exe().ok();
    let file = exe.as_deref().and_then(|exe| exe.file_stem()?.to_str());
    // Cargo adds a hash; a library's own tests are called after the library.
    let binary = file.and_then(|file| Some(file.rsplit_once('-')?.0)).unwrap_or(krate);
    let target = if env::text(env::CARGO_PACKAGE)
        .ok()
        .flatten()
        .is_some_and(|p| p.replace('-', "_") == binary)
    {
        "--lib".to_owned()
    } else {
        format!("--test {binary}")
    };
    format!("cargo test{package} {target} -- --exact {name}")
}

fn host() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} {}, {cores} cores", std::env::consts::ARCH, kernel.trim())
}
