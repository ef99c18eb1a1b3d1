//! Which files of captures stay: over the fake backend, in real processes.

use std::path::Path;
use std::time::{Duration, Instant};

use fleetbox::{Backend, Capture, Cluster, Result, Vm};

use crate::unique;

/// The sizes of the frames in a file in the pcap format, which must be whole.
fn frames(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes[..4], 0xa1b2_3c4d_u32.to_ne_bytes());
    let (mut at, mut count) = (24, 0);
    while at < bytes.len() {
        let length = u32::from_ne_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        at += 16 + length as usize;
        count += 1;
    }
    assert_eq!(at, bytes.len(), "the last record is whole");
    count
}

fn fake(part: &str) -> fleetbox::VmBuilder {
    Vm::builder(unique(part)).backend(Backend::Fake).ephemeral(true)
}

#[tokio::test]
async fn what_succeeds_leaves_no_capture() -> Result<()> {
    let vm = fake("kept").start().await?;
    let dir = tempfile::tempdir().unwrap();
    let (dropped, stopped, plain) =
        (dir.path().join("dropped"), dir.path().join("stopped"), dir.path().join("plain"));
    drop(vm.capture(&dropped).await?.only_on_failure());
    assert!(!dropped.exists());
    vm.capture(&stopped).await?.only_on_failure().stop().await?;
    assert!(!stopped.exists());
    vm.capture(&plain).await?.stop().await?;
    assert!(plain.exists());
    // What somebody else put there stays.
    let capture = vm.capture(&dropped).await?.only_on_failure();
    std::fs::remove_file(&dropped).unwrap();
    std::fs::write(&dropped, "mine").unwrap();
    drop(capture);
    assert_eq!(std::fs::read(&dropped).unwrap(), b"mine");
    let open = std::fs::File::create(dir.path().join("open")).unwrap();
    drop(vm.capture_to(&open).await?.only_on_failure());
    assert!(dir.path().join("open").exists());
    vm.destroy().await
}

/// A capture, kept only on failure, that has seen something pass.
async fn busy(cluster: &Cluster, path: &Path) -> Result<Capture> {
    let capture = cluster.capture(path).await?.only_on_failure();
    // The tap of a new member says something of its own to all when it comes up.
    let late = cluster.add(&unique("late")).await?;
    let began = Instant::now();
    while std::fs::metadata(path).unwrap().len() <= 24 {
        assert!(began.elapsed() < Duration::from_secs(10), "nothing passed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    late.destroy().await?;
    Ok(capture)
}

#[test]
fn a_panic_keeps_the_capture_and_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("why.pcap");
    let at = path.clone();
    let panicked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let name = unique("panics");
            let started = Cluster::builder(&name).size(1).backend(Backend::Fake).ephemeral(true);
            let cluster = started.start().await.unwrap();
            let _capture = busy(&cluster, &at).await.unwrap();
            panic!("as a test that fails");
        });
    })
    .join();
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"as a test that fails"));
    assert!(frames(&path) > 0);
}

#[test]
fn a_test_that_returns_an_error_keeps_the_capture() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let test = |name: &str, fails: bool| -> Result<()> {
        let at = path(name);
        fleetbox::testing::run(
            name,
            |vm| vm.backend(Backend::Fake),
            async |vm| {
                let _capture = vm.capture(&at).await?.only_on_failure();
                let stopped = vm.capture(at.with_extension("stopped")).await?.only_on_failure();
                stopped.stop().await?;
                vm.ssh(if fails { "false" } else { "true" }).await.map(drop)
            },
        )
    };
    test("good", false).unwrap();
    assert!(!path("good").exists() && !path("good.stopped").exists());
    test("bad", true).unwrap_err();
    frames(&path("bad"));
    frames(&path("bad.stopped"));
}
