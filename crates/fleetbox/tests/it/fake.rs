//! Coordination over the fake backend: real callers, real holders, real namespaces and processes,
//! no machine. What any one machine does is in `conformance`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fleetbox::{Backend, ErrorKind, Progress, Result, State, Vm, VmBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::unique;

/// The port on which the fake guest echoes.
const ECHO_PORT: u16 = 7;

fn fake(name: &str) -> VmBuilder {
    Vm::builder(name).backend(Backend::Fake)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    let mut pause = Duration::from_millis(5);
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(10), "{what} did not happen");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn alive(pid: u32) -> bool {
    // A zombie still has its directory, but it runs nothing.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

#[tokio::test]
async fn options_are_frozen_at_creation_and_ignoring_them_is_said() -> Result<()> {
    let name = unique("frozen");
    let vm = fake(&name).memory_mib(512).start().await?;
    let notes = Arc::new(Mutex::new(Vec::new()));
    let sink = notes.clone();
    let again = fake(&name)
        .memory_mib(2048)
        .on_progress(move |event| {
            if let Progress::Note(text) = event {
                sink.lock().unwrap().push(text);
            }
        })
        .start()
        .await?;
    assert_eq!(again.info().await?.memory_mib, 512);
    let notes = notes.lock().unwrap().join("\n");
    assert!(notes.contains("512 MiB"), "{notes:?}");
    vm.destroy().await
}

#[tokio::test]
async fn ports_are_reached_by_socket_and_by_loopback_address() -> Result<()> {
    let vm = fake(&unique("ports")).start().await?;
    echo(vm.connect(ECHO_PORT).await?).await;

    let address = vm.forward(ECHO_PORT).await?;
    assert!(address.ip().is_loopback());
    assert_eq!(vm.forward(ECHO_PORT).await?, address, "asked again, it is the same");
    echo(TcpStream::connect(address).await.unwrap()).await;

    let error = vm.connect(9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    let error = vm.forward_at(ECHO_PORT, ([0, 0, 0, 0], 0).into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);

    vm.stop().await?;
    until("the forwarded port's end", async || TcpStream::connect(address).await.is_err()).await;
    vm.destroy().await
}

async fn echo(mut stream: TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

#[tokio::test]
async fn a_bound_vm_ends_with_its_last_handle_and_its_disk_stays() -> Result<()> {
    let name = unique("bound");
    let first = fake(&name).start().await?;
    let holder = first.info().await?.holder_pid.unwrap();
    let second = fake(&name).start().await?;
    first.ssh("echo kept > kept").await?;
    drop(first);
    assert_eq!(second.ssh("cat kept").await?, "kept", "the second handle still holds it");
    drop(second);
    until("the holder's end", async || !alive(holder)).await;
    let found = Vm::find(&name)?;
    assert_eq!(found.state().await?, State::Stopped);
    found.destroy().await
}

#[tokio::test]
async fn an_ephemeral_vm_leaves_no_trace_when_dropped() -> Result<()> {
    let name = unique("ephemeral");
    let vm = fake(&name).ephemeral(true).start().await?;
    let directory = vm.console_path().parent().unwrap().parent().unwrap().to_owned();
    drop(vm);
    until("the directory's end", async || !directory.exists()).await;
    Ok(())
}

#[tokio::test]
async fn a_detached_vm_outlives_its_handles() -> Result<()> {
    let name = unique("detached");
    fake(&name).detached(true).start().await?.release().await;
    let vm = Vm::find(&name)?;
    assert_eq!(vm.ssh("echo here").await?, "here");
    let holder = vm.info().await?.holder_pid.unwrap();
    vm.destroy().await?;
    until("the holder's end", async || !alive(holder)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_different_names_start_at_once() -> Result<()> {
    let part = unique("many");
    let starts: Vec<_> = (0..20)
        .map(|n| tokio::spawn(fake(&format!("{part}x{n}-a")).ephemeral(true).start()))
        .collect();
    let mut vms = Vec::new();
    for start in starts {
        vms.push(start.await.unwrap()?);
    }
    for vm in &vms {
        assert_eq!(vm.ssh("hostname").await?, vm.name());
    }
    for vm in vms {
        vm.destroy().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_members_of_one_cluster_start_at_once_with_addresses_of_their_own() -> Result<()> {
    let part = unique("node");
    let starts: Vec<_> = (1..=20)
        .map(|n| tokio::spawn(fake(&format!("{part}-{n}")).ephemeral(true).start()))
        .collect();
    let mut vms = Vec::new();
    for start in starts {
        vms.push(start.await.unwrap()?);
    }
    let addresses: std::collections::HashSet<_> = vms.iter().map(Vm::address).collect();
    assert_eq!(addresses.len(), 20);
    let holders: std::collections::HashSet<_> = {
        let mut pids = std::collections::HashSet::new();
        for vm in &vms {
            pids.insert(vm.info().await?.holder_pid);
        }
        pids
    };
    assert_eq!(holders.len(), 1, "one holder for one cluster");
    for vm in vms {
        vm.destroy().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_starts_of_one_name_at_once_give_one_machine() -> Result<()> {
    let name = unique("twice");
    let (one, two) = tokio::join!(fake(&name).start(), fake(&name).start());
    let (one, two) = (one?, two?);
    one.ssh("echo same > mark").await?;
    assert_eq!(two.ssh("cat mark").await?, "same");
    assert_eq!(one.info().await?.holder_pid, two.info().await?.holder_pid);
    one.destroy().await
}

#[tokio::test]
async fn a_start_that_is_dropped_leaves_nothing_running() -> Result<()> {
    let name = unique("dropped");
    for delay_ms in [0, 5, 10, 15, 20, 30] {
        let start = fake(&name).start();
        // Whether it was done by then or not, nobody holds it afterwards.
        drop(tokio::time::timeout(Duration::from_millis(delay_ms), start).await);
        until("its end", async || match Vm::find(&name) {
            Ok(vm) => vm.state().await.is_ok_and(|state| state == State::Stopped),
            Err(_) => true,
        })
        .await;
    }
    let vm = fake(&name).start().await?;
    vm.destroy().await
}

#[tokio::test]
async fn the_console_is_there_and_stages_are_told_in_order() -> Result<()> {
    let stages = Arc::new(Mutex::new(Vec::new()));
    let sink = stages.clone();
    let vm = fake(&unique("stages"))
        .on_progress(move |event| {
            if let Progress::Begin(stage) = event {
                sink.lock().unwrap().push(stage);
            }
        })
        .start()
        .await?;
    let stages = stages.lock().unwrap().clone();
    assert!(stages.is_sorted() && !stages.is_empty(), "{stages:?}");
    assert!(String::from_utf8_lossy(&vm.console().await?).contains("Linux version"));
    assert!(vm.timings().total() >= vm.timings().stages().iter().map(|(_, t)| *t).sum());
    vm.destroy().await
}

#[tokio::test]
async fn a_bound_member_ends_with_its_handle_though_its_cluster_lives_on() -> Result<()> {
    let part = unique("mixed");
    let stays = fake(&format!("{part}-1")).detached(true).start().await?;
    let bound = fake(&format!("{part}-2")).start().await?;
    assert_eq!(stays.info().await?.holder_pid, bound.info().await?.holder_pid);
    let name = bound.name().to_owned();
    drop(bound);
    let found = Vm::find(&name)?;
    until("the bound member's end", async || {
        found.state().await.is_ok_and(|state| state == State::Stopped)
    })
    .await;
    assert_eq!(stays.ssh("echo here").await?, "here");
    found.destroy().await?;
    stays.destroy().await
}
