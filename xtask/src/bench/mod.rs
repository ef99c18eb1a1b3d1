//! Owns the list of figures and the run over it: ours and its peer side by side, as few surprises
//! as one machine allows. What a figure is and how it is measured is in the figure's own file.
//!
//! A new figure is one more entry in [`FIGURES`].

mod bare;
mod bare_kvm;
mod boot;
mod cli;
mod crates;
mod fixture;
mod holder;
mod image;
mod kvm;
mod net;
mod report;
mod sample;
mod ssh;
mod stage;
mod start;
mod testing;
mod user;
mod warm;

use std::path::Path;

use self::report::Row;
use self::stage::Stage;
use crate::failure::{Failure, Outcome};
use crate::process;

/// Measures one figure: one row or more.
type Measure = fn(&Stage) -> Outcome<Vec<Row>>;

/// Every figure: its name, what it says, how it is measured. In the order they are run: what needs
/// an idle machine comes before what leaves one running.
const FIGURES: &[(&str, &str, Measure)] = &[
    ("crates", "crates the library draws", crates::crates),
    ("version", "`fleetbox --version`", cli::version),
    ("ls-50", "`fleetbox ls` with 50 machines", cli::ls_50),
    ("qcow2-to-raw", "taking a compressed qcow2 in, against qemu-img", image::qcow2_to_raw),
    (
        "fixture",
        "packing a fixture of 5,000 files and one of 300 MB, against mke2fs",
        fixture::pack,
    ),
    ("start-to-exec", "from `start` to the running monitor, against a copy", start::start_to_exec),
    ("cold-boot", "from `start` to the first output, against bare QEMU", boot::cold_boot),
    (
        "fork-start",
        "a warm start to the first output, against bare QEMU and boots",
        warm::start::start,
    ),
    ("fork-three", "three members made warm at once, against one", warm::more::three),
    ("fork-memory", "what a second fork takes of the host's memory", warm::more::memory),
    ("fork-pause", "how long a machine stands still to be saved", warm::more::pause),
    ("fork-run", "`fleetbox run -- true`, against a warm start", warm::more::run),
    ("test-overhead", "what the machinery of a test adds", testing::overhead),
    ("test-bundle", "the bundle of a failure of three machines", testing::bundle),
    ("test-build", "a user's first build, against testcontainers", testing::build),
    ("holder-memory", "resident memory of holder and warden", holder::holder_memory),
    ("warm-command", "a command over the warm connection, against ssh", ssh::warm_command),
    ("copy-to-guest", "200 MB into the guest, against scp", ssh::copy_to_guest),
    ("copy-from-guest", "200 MB out of the guest, against scp", ssh::copy_from_guest),
    ("net-ready", "a cluster's network with 3 and 32 taps, against ip", net::ready::ready),
    ("net-throughput", "guest to guest, against a bridge by hand", net::flow::throughput),
    ("net-faults", "what links are asked for and what they do", net::faults::faults),
    (KVM, "cloud-hypervisor against QEMU and against itself alone", kvm::kvm),
];

/// The figure that only a host with a working KVM has; `xtask nested --figures` makes one.
pub(crate) const KVM: &str = "kvm";

/// What to measure. Exits with 1 if a figure could not be measured or its bound does not hold.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Figures to measure; `net` stands for all `net-…` [default: all but kvm]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Runs the median is taken of [default: 5, cold boots 3, what takes milliseconds more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
}

/// Measures; true if every bound holds.
pub(crate) fn run(root: &Path, args: &Args) -> Outcome<bool> {
    let chosen = choose(&args.names)?;
    if cfg!(debug_assertions) {
        return run_release(root, args);
    }
    let stage = Stage::new(root, args.runs.map(usize::from))?;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for (name, about, measure) in chosen {
        report::progress(&format!("{name}: {about}"));
        match stage.check_interrupted().and_then(|()| measure(&stage)) {
            Ok(measured) => {
                measured.iter().for_each(report::announce);
                rows.extend(measured);
            }
            Err(failure) => {
                failures.push(format!("{name} could not be measured: {failure}"));
                report::progress(&format!("{name} failed: {failure}"));
            }
        }
    }
    if let Err(failure) = stage.close() {
        failures.push(format!("failed to tidy up: {failure}"));
    }
    report::write_json(&root.join("target/bench.json"), &rows)?;
    report::print(&rows, &failures)
        .map_err(|e| Failure::new(format!("failed to print the table: {e}")))?;
    Ok(failures.is_empty() && rows.iter().all(|row| row.holds))
}

fn choose(names: &[String]) -> Outcome<Vec<(&'static str, &'static str, Measure)>> {
    let is = |figure: &str, name: &str| {
        figure.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if let Some(unknown) = names.iter().find(|name| FIGURES.iter().all(|f| !is(f.0, name))) {
        let known: Vec<&str> = FIGURES.iter().map(|f| f.0).collect();
        return Err(Failure::new(format!(
            "there is no figure {unknown}; there are {}",
            known.join(", ")
        )));
    }
    let named = |figure: &str| names.iter().any(|name| is(figure, name));
    let wanted = |name: &str| named(name) || (names.is_empty() && name != KVM);
    Ok(FIGURES.iter().filter(|f| wanted(f.0)).copied().collect())
}

/// A debug build would measure itself: the same again as a release build.
fn run_release(root: &Path, args: &Args) -> Outcome<bool> {
    let mut cargo = process::cargo(root);
    cargo.args(["run", "--quiet", "--release", "--package", "xtask", "--", "bench"]);
    cargo.args(&args.names);
    if let Some(runs) = args.runs {
        cargo.arg("--runs").arg(runs.to_string());
    }
    let status = cargo.status().map_err(|e| Failure::new(format!("failed to run cargo: {e}")))?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_figure_is_answered_with_the_known_ones() {
        let failure = choose(&["ls-50".to_owned(), "ls-51".to_owned()]).unwrap_err().to_string();
        assert!(failure.contains("no figure ls-51"), "{failure}");
        assert!(failure.contains("warm-command"), "{failure}");
    }

    #[test]
    fn figures_are_chosen_by_name_and_have_names_of_their_own() {
        assert_eq!(choose(&[]).unwrap().len(), FIGURES.len() - 1);
        assert_eq!(choose(&[KVM.to_owned()]).unwrap().len(), 1);
        assert_eq!(choose(&["version".to_owned()]).unwrap()[0].0, "version");
        assert_eq!(choose(&["net".to_owned()]).unwrap().len(), 3);
        assert!(choose(&["ne".to_owned()]).is_err());
        for (at, figure) in FIGURES.iter().enumerate() {
            assert!(FIGURES[at + 1..].iter().all(|other| other.0 != figure.0), "{}", figure.0);
        }
    }
}
