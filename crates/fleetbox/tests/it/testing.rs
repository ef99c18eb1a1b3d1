//! `fleetbox::testing` from the outside, over the fake backend: what a test takes, how it ends, what it leaves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetbox::testing::{Outcome, Test};
use fleetbox::{Ailment, Backend, Cluster, Vm};

use crate::child;

fn test(name: &str) -> Test {
    Test::new(format!("testing::{name}")).vm(|vm| vm.backend(Backend::Fake))
}

/// What a test that fails says.
fn failure<T: Outcome>(run: impl FnOnce() -> T) -> String {
    let panic = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(outcome) => return outcome.failure().expect("it fails"),
        Err(panic) => panic,
    };
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap()
}

/// The newest bundle of that test.
fn bundle(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).unwrap();
    let dir = target.join("fleetbox").join(format!("testing.{name}"));
    let mut bundles: Vec<PathBuf> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    bundles.sort();
    bundles.pop().unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn a_test_takes_a_cluster_or_several_machines() {
    test("a_cluster").vms(2).run(async |nodes: Cluster| {
        assert_eq!(nodes.len(), 2);
        assert!(nodes.vm(&format!("{}-2", nodes.name())).is_ok());
    });
    test("a_tuple").names(["db", "web"]).run(async |(db, web): (Vm, Vm)| {
        assert!(db.name().ends_with("-1") && web.name().ends_with("-2"));
        assert_ne!(db.address(), web.address());
    });
}

/// For the test below, which says what is required.
#[test]
#[ignore = "wants an image that is not here"]
fn wants_an_image() {
    Test::new("testing::wants_an_image")
        .vm(|vm| vm.image("ubuntu-22.04").backend(Backend::Qemu))
        .run(async |vm: Vm| assert_eq!(vm.name(), "", "it ran"));
}

#[test]
fn an_image_that_may_not_be_fetched_is_nothing_a_host_has() {
    let home = tempfile::tempdir().unwrap();
    for (required, passes) in [("fake", true), ("qemu", false)] {
        let mut test = child::test("testing::wants_an_image");
        test.env("FLEETBOX_HOME", home.path()).env("FLEETBOX_BUNDLE_DIR", home.path());
        test.env("FLEETBOX_OFFLINE", "1").env("FLEETBOX_REQUIRE", required);
        let output = test.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.success(), passes, "{said}");
        assert!(said.contains("FLEETBOX_OFFLINE"), "{said}");
        assert_eq!(said.contains("testing::wants_an_image skipped: "), passes, "{said}");
    }
}

#[test]
fn a_body_may_block() {
    use fleetbox::blocking::Block;
    test("a_body_may_block")
        .run_blocking(|vm: Vm| -> fleetbox::Result<()> {
            assert_eq!(vm.ssh("echo 1").block()?, "1");
            vm.wait(fleetbox::wait::command("true").succeeds()).block()
        })
        .unwrap();
    let said = failure(|| {
        test("too_long").timeout(Duration::from_millis(50)).run_blocking(|vm: Vm| {
            vm.shell("timeout 0.2 tail -f /dev/null; true").run().block().unwrap();
        });
    });
    assert_eq!(said, "the test did not end within 50ms");
}

#[test]
fn a_failure_leaves_all_that_is_known_of_it() {
    let said = failure(|| {
        test("a_failure_leaves").vms(2).run(async |nodes: Cluster| -> Result<(), String> {
            let vms = nodes.vms();
            vms[0].ssh("echo '<b>out</b>'; echo err >&2").await.unwrap();
            let pause = vms[1].pause().await;
            pause.unwrap();
            vms[1].resume().await.unwrap();
            let failed = vms[1].ssh("exit 3").await.unwrap_err();
            Err(format!("on purpose: {}", failed.kind().as_str()))
        })
    });
    assert_eq!(said, "\"on purpose: command_failed\"");
    let bundle = bundle("a_failure_leaves");
    let page = read(&bundle.join("index.html"));
    for expected in
        ["on purpose", "&lt;b&gt;out&lt;/b&gt;", "exit 3", "exit code 3", "pause", "<svg"]
    {
        assert!(page.contains(expected), "no {expected} in the page");
    }
    assert!(!page.contains("<b>out</b>"));
    let timeline = read(&bundle.join("timeline.jsonl"));
    assert!(timeline.lines().count() >= 5, "{timeline}");
    let reproduce = read(&bundle.join("REPRODUCE.md"));
    assert!(reproduce.contains("--exact a_failure_leaves"), "{reproduce}");
    let members: Vec<PathBuf> = std::fs::read_dir(&bundle)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(members.len(), 2);
    for member in members {
        for file in ["console.log", "processes.txt", "journal.txt", "holder.log"] {
            assert!(member.join(file).exists(), "no {file} in {}", member.display());
        }
        let name = member.file_name().unwrap().to_str().unwrap();
        assert!(Vm::find(name).is_err(), "{name} is still there");
    }
}

#[test]
fn a_body_that_takes_too_long_is_dropped_with_its_machines() {
    let name = std::sync::Mutex::new(String::new());
    let began = Instant::now();
    let said = failure(|| {
        test("too_long").timeout(Duration::from_millis(300)).run(async |vm: Vm| {
            vm.name().clone_into(&mut name.lock().unwrap());
            std::future::pending::<()>().await;
        });
    });
    assert_eq!(said, "the test did not end within 300ms");
    assert!(began.elapsed() < Duration::from_mins(1));
    assert!(Vm::find(&name.into_inner().unwrap()).is_err());
}

#[test]
fn a_machine_that_is_not_well_fails_its_test_unless_that_is_allowed() {
    async fn crash(vm: Vm) {
        use std::io::Write;
        let mut console = std::fs::File::options().append(true).open(vm.console_path()).unwrap();
        writeln!(console, "[   12.3] web[7]: segfault at 0 ip 00 sp 00 error 4 in web[1+1]")
            .unwrap();
        vm.ssh("echo '[ 9.0] systemd[1]: web.service: Failed with result '\\''signal'\\''.' >> ~/journal")
            .await
            .unwrap();
    }
    let said = failure(|| test("not_well").run(crash));
    for expected in
        ["the machines are not well", "a process crashed: web[7]", "web.service", "allow_health"]
    {
        assert!(said.contains(expected), "no {expected} in {said}");
    }
    let partly = failure(|| test("not_well").allow_health("a process crashed").run(crash));
    assert!(partly.contains("web.service") && !partly.contains("segfault"), "{partly}");
    test("well").allow_health("crashed").allow_health("^.*web\\.service").run(crash);
}

#[test]
fn health_is_looked_at_from_a_mark_on() {
    test("from_a_mark_on").allow_health(".").run(async |vm: Vm| {
        let write = async |line: &str| {
            let mut command = vm.command("sh");
            command
                .args(["-c", "printf '%s\\n' \"$1\" >> ~/journal", "sh", line])
                .run()
                .await
                .unwrap();
        };
        write("[ 1.0] kernel: BUG: before").await;
        let mark = vm.health_mark().await.unwrap();
        assert_eq!(vm.health(&mark).await.unwrap(), []);
        write("[ 2.0] kernel: Out of memory: Killed process 7 (x)").await;
        let findings = vm.health(&mark).await.unwrap();
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].ailment, Ailment::OomKill);
    });
}

#[test]
fn a_body_may_destroy_its_machine_or_leak_what_it_holds() {
    test("destroys").run(async |vm: Vm| vm.destroy().await.unwrap());
    let name = std::sync::Mutex::new(String::new());
    test("leaks").vms(2).run(async |nodes: Cluster| {
        nodes.name().clone_into(&mut name.lock().unwrap());
        std::mem::forget(nodes.vms());
        if let Ok(fault) = nodes.isolate(nodes.vms()[0].name()).await {
            std::mem::forget(fault);
        }
    });
    assert!(Cluster::find(&name.into_inner().unwrap()).is_err());
}

async fn never(_: Vm) {
    panic!("the body ran");
}

#[test]
fn what_cannot_be_understood_is_refused_before_any_machine() {
    let said = failure(|| test("x").allow_health("(").run(never));
    assert!(said.contains("allow_health"), "{said}");
    let said = failure(|| test("x").vms(3).run(never));
    assert!(said.contains("takes 1 machines"), "{said}");
}

/// Fails on purpose, for the test below, which runs it in a process of its own.
#[test]
#[ignore = "fails on purpose"]
fn fails_and_is_kept() {
    async fn fail(vm: Vm) {
        println!("name: {}", vm.name());
        panic!("on purpose");
    }
    test("fails_and_is_kept").run(fail);
}

#[tokio::test]
async fn machines_of_a_failed_test_are_kept_on_request() {
    let output = child::test("testing::fails_and_is_kept")
        .env("FLEETBOX_KEEP", "failed")
        .env("NEXTEST", "1")
        .env_remove("CI_PROJECT_DIR")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(!output.status.success());
    let name = said.split_once("name: ").and_then(|(_, rest)| rest.lines().next());
    let name = name.expect("it ran");
    assert!(said.contains(&format!("{name} is kept: fleetbox ssh {name}")), "{said}");
    assert!(said.contains("\n[[ATTACHMENT|/"), "{said}");
    assert!(said.contains("index.html"), "{said}");
    let vm = Vm::find(name).unwrap();
    assert_eq!(vm.ssh("echo alive").await.unwrap(), "alive");
    vm.destroy().await.unwrap();
    assert!(Vm::find(name).is_err());
}

#[test]
fn a_setting_that_means_nothing_is_told_before_any_machine() {
    for (name, value) in [("FLEETBOX_KEEP", "perhaps"), ("FLEETBOX_TEST_TIMEOUT", "soon")] {
        let output = child::test("testing::fails_and_is_kept").env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains(name), "{said}");
        assert!(!said.contains("name: "), "{said}");
    }
}

/// What the machinery of a test adds to the start and end of its VM, for `cargo xtask bench`.
#[test]
#[ignore = "a measurement"]
fn overhead() {
    use fleetbox::blocking::Block;
    const RUNS: u32 = 100;
    let mut bare = Duration::ZERO;
    let mut tested = Duration::ZERO;
    let alone = || {
        let began = Instant::now();
        let vm = Vm::builder(crate::unique("overhead"))
            .backend(Backend::Fake)
            .ephemeral(true)
            .warm(true)
            .start()
            .block()
            .unwrap();
        vm.destroy().block().unwrap();
        began.elapsed()
    };
    let tested_one = || {
        let began = Instant::now();
        test("overhead").run_blocking(|_: Vm| ());
        began.elapsed()
    };
    for run in 0..RUNS {
        // Who comes first has the end of the other before it beside it.
        if run % 2 == 0 {
            bare += alone();
            tested += tested_one();
        } else {
            tested += tested_one();
            bare += alone();
        }
    }
    println!("overhead-us {} {}", (bare / RUNS).as_micros(), (tested / RUNS).as_micros());
}

/// Stands still, for the test below, which ends its process.
#[test]
#[ignore = "stands still"]
fn stands_still() {
    test("stands_still").run(async |vm: Vm| {
        println!("name: {}", vm.name());
        std::future::pending::<()>().await;
    });
}

#[tokio::test]
async fn machines_end_with_the_process_of_their_test_however_that_ends() {
    use rustix::process::{Pid, Signal, kill_process};
    use tokio::io::{AsyncBufReadExt, BufReader};
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = tokio::process::Command::from(child::test("testing::stands_still"));
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let name = loop {
            let line = lines.next_line().await.unwrap().expect("it says its name");
            if let Some((_, name)) = line.split_once("name: ") {
                break name.to_owned();
            }
        };
        assert!(Vm::find(&name).is_ok());
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        child.wait().await.unwrap();
        let began = Instant::now();
        let mut pause = Duration::from_millis(5);
        while Vm::find(&name).is_ok() {
            assert!(began.elapsed() < Duration::from_secs(10), "{name} is left after {signal:?}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}

#[tokio::test]
async fn a_guest_that_panics_fails_its_test_in_little_time() {
    if !crate::require::can_boot().await {
        return;
    }
    let (said, took) = tokio::task::spawn_blocking(|| {
        let mut began = None;
        let said = failure(|| {
            Test::new("testing::panics").vm(|vm| vm.memory_mib(crate::MEMORY_MIB)).run(
                async |vm: Vm| {
                    vm.ssh(
                        "sudo sh -c '(sleep 0.2; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &'",
                    )
                    .await
                    .unwrap();
                    vm.wait(fleetbox::wait::console("Kernel panic").unwrap()).await.unwrap();
                    began = Some(Instant::now());
                },
            );
        });
        (said, began.unwrap().elapsed())
    })
    .await
    .unwrap();
    assert!(said.contains("kernel panic: "), "{said}");
    eprintln!("the verdict, bundle and end of a dead guest took {took:?}");
    // It is not asked, which would take its time.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let page = read(&bundle("panics").join("index.html"));
    assert!(page.contains("its kernel is dead") && page.contains("Kernel panic"));
}
