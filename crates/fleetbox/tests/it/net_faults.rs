//! Who keeps a fault of the network, and what is refused: over the fake backend, whose members have
//! taps that faults act on but no traffic. What faults do to frames is tested beside the plane.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use fleetbox::{Backend, Cluster, Egress, ErrorKind, FaultKind, Result, Vm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::unique;

/// The port on which the fake guest echoes.
const ECHO_PORT: u16 = 7;

async fn three(part: &str) -> Result<Cluster> {
    Cluster::builder(unique(part)).size(3).backend(Backend::Fake).ephemeral(true).start().await
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.iter().map(|vm| vm.name().to_owned()).collect()
}

async fn words(cluster: &Cluster) -> Result<Vec<&'static str>> {
    Ok(cluster.faults().await?.iter().map(|fault| fault.what.word()).collect())
}

async fn until_healed(cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    while !cluster.faults().await?.is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", cluster.faults().await?);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn each_fault_lasts_as_long_as_its_guard() -> Result<()> {
    let cluster = three("guard").await?;
    let vm = names(&cluster);
    let cut = cluster.cut(&vm[0], &vm[1]).await?;
    let alone = cluster.isolate(&vm[2]).await?;
    let split = cluster.partition([&vm[..1], &vm[1..]]).await?;
    let offline = cluster.egress(Egress::Deny).await?;
    let link = cluster
        .link_between(&vm[0], &vm[1])
        .latency(Duration::from_millis(50))
        .loss(0.1)
        .seed(42)
        .apply()
        .await?;
    assert_eq!(link.seed(), Some(42));
    assert_eq!(words(&cluster).await?, ["cut", "isolate", "partition", "egress", "link"]);

    // Each goes by itself.
    alone.heal().await?;
    drop(split);
    while words(&cluster).await? != ["cut", "egress", "link"] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One that is kept stays.
    cut.keep().await?;
    drop((offline, link));
    while words(&cluster).await? != ["cut"] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let kept = cluster.faults().await?.remove(0);
    assert!(kept.kept);
    assert!(matches!(&kept.what, FaultKind::Cut { from, .. } if *from == vm[0]));
    // The host still reaches every member.
    for member in &cluster {
        assert_eq!(member.ssh("hostname").await?, member.name());
    }
    cluster.heal().await?;
    assert!(cluster.faults().await?.is_empty());
    cluster.heal().await?;
    cluster.destroy().await
}

#[tokio::test]
async fn a_drawn_seed_is_told_and_a_healed_fault_cannot_be_kept() -> Result<()> {
    let cluster = three("seed").await?;
    let vm = names(&cluster);
    let link = cluster.link(&vm[0]).loss(0.5).apply().await?;
    let told = link.seed().expect("a link has dice");
    let info = cluster.faults().await?.remove(0);
    assert!(matches!(info.what, FaultKind::Link { seed, .. } if seed == told));
    cluster.heal().await?;
    assert_eq!(link.keep().await.unwrap_err().kind(), ErrorKind::NotFound);
    cluster.destroy().await
}

#[tokio::test]
async fn a_fault_follows_a_member_that_comes_back() -> Result<()> {
    let cluster = three("back").await?;
    let vm = names(&cluster);
    let slow = cluster.link(&vm[0]).latency(Duration::from_millis(5)).apply().await?;
    let member = cluster.vm(&vm[0])?;
    member.power_cut().await?;
    assert_eq!(words(&cluster).await?, ["link"]);
    let stopped = cluster.isolate(&vm[0]).await.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::NotRunning);
    assert_eq!(stopped.vm_name(), Some(vm[0].as_str()));
    let again = cluster.add(&vm[0]).await?;
    assert_eq!(again.ssh("hostname").await?, vm[0]);
    assert_eq!(words(&cluster).await?, ["link"]);
    slow.heal().await?;
    until_healed(&cluster).await?;
    cluster.destroy().await
}

/// The records of a pcap file: each frame's bytes. Panics if one is not whole.
fn records(path: &std::path::Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes[..4], 0xa1b2_3c4d_u32.to_ne_bytes());
    let mut rest = &bytes[24..];
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        assert!(word(8) <= word(12));
        frames.push(rest[16..16 + word(8)].to_vec());
        rest = &rest[16 + word(8)..];
    }
    frames
}

#[tokio::test]
async fn a_capture_has_what_passes_and_is_whole_at_any_time() -> Result<()> {
    let cluster = three("capture").await?;
    let dir = tempfile::tempdir().unwrap();
    let (of_all, of_one) = (dir.path().join("all.pcap"), dir.path().join("one.pcap"));
    let all = cluster.capture(&of_all).await?;
    let member = cluster.vm(&names(&cluster)[0])?;
    let one = member.capture(&of_one).await?;
    assert!(records(&of_all).is_empty());
    // A fake guest is on the host's side of the bridge, so nothing of it passes; but the tap of a new
    // one says something of its own to all when it comes up.
    let late = cluster.add(&unique("late")).await?;
    let began = Instant::now();
    while records(&of_one).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "nothing passed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    late.destroy().await?;
    let all = all.stop().await?;
    assert_eq!(all.lost, 0);
    assert_eq!(records(&of_all).len() as u64, all.frames);
    let one = one.stop().await?;
    assert_eq!(records(&of_one).len() as u64, one.frames);
    assert!(one.frames > 0);

    let of_none = dir.path().join("none.pcap");
    cluster.capture(&of_none).await?.discard().await?;
    assert!(!of_none.exists());
    let fails = async || -> Result<()> {
        let _capture = cluster.capture(&of_none).await?;
        Err(cluster.vm("nobody").unwrap_err())
    };
    fails().await.unwrap_err();
    assert!(of_none.exists(), "what a failure leaves is gone");
    let error = cluster.capture(dir.path().join("no/such")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    member.stop_within(Duration::ZERO).await?;
    let error = member.capture(&of_one).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotRunning);
    cluster.destroy().await
}

#[tokio::test]
async fn datagrams_and_published_ports_reach_a_guest() -> Result<()> {
    let name = unique("udp");
    let vm = Vm::builder(&name).backend(Backend::Fake).ephemeral(true).start().await?;
    let socket = vm.connect_udp(ECHO_PORT).await?;
    socket.send(b"ping").await.unwrap();
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer).await.unwrap();
    assert_eq!(&answer[..length], b"ping");

    let address = vm.publish(ECHO_PORT, ([0, 0, 0, 0], 0).into()).await?;
    assert!(address.ip().is_unspecified());
    assert_eq!(vm.publish(ECHO_PORT, ([0, 0, 0, 0], 0).into()).await?, address);
    let at_loopback = vm.forward(ECHO_PORT).await?;
    assert_ne!(at_loopback, address, "one does not end the other");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).await.unwrap();
    stream.write_all(b"pong").await.unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"pong");
    let taken = vm.publish(22, address).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict);
    let foreign = vm.publish(22, ([192, 0, 2, 1], 0).into()).await.unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Conflict);
    vm.stop_within(Duration::ZERO).await?;
    assert_eq!(vm.connect_udp(ECHO_PORT).await.unwrap_err().kind(), ErrorKind::NotRunning);
    vm.destroy().await
}

#[tokio::test]
async fn bad_input_is_refused_before_any_work() -> Result<()> {
    let cluster = three("refused").await?;
    let vm = names(&cluster);
    let (a, b) = (vm[0].as_str(), vm[1].as_str());
    let nearly = format!("{a}x");
    let unknown = cluster.cut(a, &nearly).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.hint_text().unwrap().contains(a), "{}", unknown.report());
    let ms = Duration::from_millis;
    let refused = [
        cluster.cut(a, a).await,
        cluster.partition([vec![a, b], vec![b]]).await,
        cluster.partition([vec![a, b]]).await,
        cluster.partition([vec![a], vec![]]).await,
        cluster.link_between(a, a).latency(ms(1)).apply().await,
        cluster.link(a).apply().await,
        cluster.link(a).loss(-0.1).apply().await,
        cluster.link(a).loss(f64::NAN).apply().await,
        cluster.link(a).duplicate(1.5).apply().await,
        cluster.link(a).latency(Duration::from_hours(2)).apply().await,
        cluster.link(a).latency(ms(1)).jitter(ms(2)).apply().await,
        cluster.link(a).bandwidth_kbit_per_s(0).apply().await,
        cluster.egress(Egress::only(["http://example.org"])).await,
        cluster.egress(Egress::only(Vec::<String>::new())).await,
    ];
    for (at, outcome) in refused.into_iter().enumerate() {
        let error = outcome.expect_err(&format!("number {at}"));
        assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{at}: {}", error.report());
        assert!(error.hint_text().is_some(), "{at}: {}", error.report());
    }
    assert!(cluster.faults().await?.is_empty());
    cluster.stop_within(Duration::ZERO).await?;
    assert_eq!(cluster.isolate(a).await.unwrap_err().kind(), ErrorKind::NotRunning);
    assert!(cluster.faults().await?.is_empty());
    cluster.heal().await?;
    cluster.destroy().await
}
