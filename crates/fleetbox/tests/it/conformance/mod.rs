//! Owns the one list of what the library promises of a [`Vm`](fleetbox::Vm), run against every
//! backend, so that none drifts. Coordination between processes and handles is not in it.
//!
//! A scenario gets a running machine and leaves one, or says in `bed.vm` that it does not. They
//! stand in the order in which they cost the fewest boots; one that fails does not stop the rest.

/// A test for each of the backends, which hands the backend's word to the list.
macro_rules! for_each_backend {
    ($conforms:ident: $($backend:ident),*) => {$(
        #[test]
        fn $backend() {
            $conforms(&stringify!($backend).replace('_', "-"));
        }
    )*};
}

mod bed;
mod clusters;
mod commands;
mod ends;
mod files;
mod fixtures;
mod machine;
mod net_faults;
mod network;
mod snapshots;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::{Duration, Instant};

use fleetbox::{Backend, ErrorKind, Result};

use self::bed::Bed;
use crate::require;

/// Far more than any takes; one with boots in it has the library's own limits besides.
const SCENARIO_WAIT: Duration = Duration::from_mins(15);

/// One behaviour.
struct Scenario {
    name: &'static str,
    needs: Needs,
    run: for<'a> fn(&'a mut Bed) -> Running<'a>,
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// What a scenario cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Any backend has it.
    Vm,
    /// A kernel and system of the guest's own, which the fake has not.
    Guest,
}

/// `module::function, needs;` in order.
macro_rules! scenarios {
    ($($module:ident :: $name:ident, $needs:ident;)*) => {
        &[$(Scenario {
            name: stringify!($name),
            needs: Needs::$needs,
            run: |bed| Box::pin($module::$name(bed)),
        }),*]
    };
}

#[rustfmt::skip]
const SCENARIOS: &[Scenario] = scenarios! {
    // On one machine that runs on.
    machine::a_start_returns_what_was_asked_for, Vm;
    machine::a_start_of_a_running_one_joins_it, Vm;
    machine::the_console_has_the_boot, Vm;
    machine::the_host_key_is_the_pinned_one, Vm;
    machine::the_user_has_the_name_and_sudo, Vm;
    machine::the_system_is_whole, Guest;
    machine::cpus_memory_and_disk_are_as_asked, Guest;
    commands::output_and_code_are_told_apart, Vm;
    commands::a_signal_that_ends_it_is_named, Vm;
    commands::a_failure_carries_its_output, Vm;
    commands::input_environment_and_directory_arrive, Vm;
    commands::words_arrive_as_they_are, Vm;
    commands::a_timeout_ends_it, Vm;
    commands::a_dropped_one_is_ended, Vm;
    commands::streams_flow_both_ways, Vm;
    commands::many_run_at_once, Vm;
    files::a_file_comes_back_exact, Vm;
    files::a_directory_keeps_names_modes_and_links, Vm;
    files::bad_paths_are_refused_before_any_work, Vm;
    network::a_port_is_reached_through_a_socket, Vm;
    network::a_port_nobody_listens_at_is_a_connect_error, Vm;
    network::a_port_is_reached_through_a_loopback_address, Vm;
    network::connections_at_once_do_not_mix, Vm;
    network::the_guest_resolves_its_own_name, Guest;
    machine::a_paused_one_stands_still_and_goes_on, Vm;
    machine::a_start_of_a_paused_one_resumes_it, Vm;
    machine::a_balloon_takes_memory_and_gives_it_back, Vm;
    machine::too_large_a_balloon_is_refused, Vm;
    machine::a_clock_jumps_both_ways, Vm;
    machine::a_slow_disk_is_as_slow_as_asked, Guest;
    machine::a_disk_that_fails_reads_says_so, Guest;
    machine::a_full_disk_has_no_space, Guest;
    machine::a_bad_disk_is_refused_or_listed, Vm;
    // They boot it anew.
    ends::a_reboot_is_a_new_boot_of_the_same_disk, Vm;
    ends::a_reset_is_a_new_boot_of_the_same_disk, Vm;
    // They end it and start it again.
    ends::a_stop_is_polite_even_to_a_paused_one, Vm;
    ends::a_power_cut_keeps_what_was_synced, Vm;
    // They end it.
    ends::a_killed_monitor_is_noticed_and_named, Vm;
    ends::a_stopped_one_refuses_calls_at_once, Vm;
    ends::a_destroyed_one_leaves_nothing, Vm;
};

for_each_backend!(conforms: fake, qemu, cloud_hypervisor);

/// Runs the list against a backend; panics with every scenario that failed.
fn conforms(word: &str) {
    let Some(backend) = chosen(word) else { return };
    let runtime = runtime();
    let mut bed = Bed::new(backend);
    if let Err(why) = runtime.block_on(cannot_start(&mut bed)) {
        runtime.block_on(bed.clear());
        return require::missing(backend, &why);
    }
    let failures = run_all(&runtime, &mut bed);
    runtime.block_on(bed.clear());
    assert!(
        failures.is_empty(),
        "{backend}: {} of {} scenarios failed:\n{}",
        failures.len(),
        SCENARIOS.len(),
        failures.join("\n")
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The backend, if this build knows it and the environment does not ask for another.
fn chosen(word: &str) -> Option<Backend> {
    let required = std::env::var("FLEETBOX_REQUIRE").unwrap_or_default();
    let Ok(backend) = word.parse::<Backend>() else {
        assert!(!required.split(',').any(|w| w.trim() == word), "{word} is required, but unknown");
        eprintln!("skipped: this build has no backend {word}");
        return None;
    };
    if backend == Backend::Fake && !cfg!(feature = "unstable-fake") {
        eprintln!("skipped: this build is without the feature `unstable-fake`");
        return None;
    }
    match std::env::var("FLEETBOX_BACKEND") {
        Ok(named) if named.parse::<Backend>().ok() != Some(backend) => {
            eprintln!("skipped: FLEETBOX_BACKEND names {named}");
            None
        }
        _ => Some(backend),
    }
}

/// The first start, which every scenario needs; the error is a reason to skip.
async fn cannot_start(bed: &mut Bed) -> Result<(), String> {
    if bed.has_guest() && !require::has_image().await {
        return Err("the image is not here; `fleetbox image build debian-12` makes it".to_owned());
    }
    let began = Instant::now();
    match bed.start().await {
        Ok(()) => {
            told(bed.backend, "(creation and first boot)", began, "ok");
            Ok(())
        }
        Err(e)
            if matches!(e.kind(), ErrorKind::HostUnsupported | ErrorKind::BackendUnavailable) =>
        {
            Err(e.report())
        }
        Err(e) => panic!("{}: the first start failed: {}", bed.backend, e.report()),
    }
}

fn run_all(runtime: &tokio::runtime::Runtime, bed: &mut Bed) -> Vec<String> {
    let mut failures = Vec::new();
    for scenario in SCENARIOS {
        let began = Instant::now();
        if scenario.needs == Needs::Guest && !bed.has_guest() {
            told(bed.backend, scenario.name, began, "left out: there is no guest");
            continue;
        }
        let failure = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                let run = async {
                    bed.make_ready().await?;
                    (scenario.run)(bed).await
                };
                match tokio::time::timeout(SCENARIO_WAIT, run).await {
                    Ok(Ok(())) => None,
                    Ok(Err(e)) => Some(e.report()),
                    Err(_) => Some(format!("not done within {SCENARIO_WAIT:?}")),
                }
            })
        }))
        .unwrap_or_else(|panic| Some(said(panic.as_ref())));
        told(bed.backend, scenario.name, began, if failure.is_none() { "ok" } else { "FAILED" });
        if let Some(failure) = failure {
            failures.push(format!("- {}: {failure}", scenario.name));
            bed.doubted = true;
        }
    }
    failures
}

fn told(backend: Backend, name: &str, began: Instant, outcome: &str) {
    eprintln!("{backend} {:>7.2} s  {name}: {outcome}", began.elapsed().as_secs_f64());
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned())
}
