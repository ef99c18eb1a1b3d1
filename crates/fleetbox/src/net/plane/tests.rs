//! Owns the tests of the data plane: real taps on a real bridge, real frames, a real clock. No
//! machine runs; a test is the guest at either end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::*;

/// A frame in front of which the kernel puts and expects a `virtio_net_hdr`.
const VNET_HEADER_BYTES: usize = 10;
/// A filter that no test matches, and the mark of a run that is inside already.
const INSIDE: &str = "(inside-a-user-namespace)";

/// Long enough for what passes to arrive also on a busy host; what is lost takes as long to miss.
const ARRIVES: Duration = Duration::from_millis(400);

/// Runs `test` where a network namespace may be made: here, else once more in a user namespace.
fn with_rights(name: &str, test: impl AsyncFnOnce(Lab)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match Network::start() {
        Ok((network, _listeners)) => runtime.block_on(async {
            let lab = Lab::new(network).await;
            test(lab).await;
        }),
        // Never deeper than once.
        Err(e) if std::env::args().all(|word| word != INSIDE) => {
            let status = std::process::Command::new("unshare")
                .args(["--user", "--map-root-user", "--"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", &format!("net::plane::tests::{name}"), "--nocapture", INSIDE])
                .status();
            match status {
                Ok(status) => assert!(status.success(), "it failed in a user namespace"),
                Err(_) => eprintln!("skipped: no network namespace ({})", e.report()),
            }
        }
        Err(e) => eprintln!("skipped: no network namespace ({})", e.report()),
    }
}

/// Three guests on a bridge, numbered from 1.
struct Lab {
    plane: Plane,
    taps: Vec<OwnedFd>,
}

struct Arrival {
    number: u32,
    at: Instant,
}

impl Lab {
    async fn new(network: Network) -> Self {
        let mut taps = Vec::new();
        for number in 1..=3 {
            taps.push(network.tap(plan::tap_name(number)).await.unwrap());
        }
        let mut lab = Self { plane: Plane::new(network), taps };
        for number in 1..=3 {
            lab.drain(number);
        }
        lab
    }

    async fn want(&mut self, wanted: Wanted) {
        let macs = (1..=3).map(|number| (number, mac(number))).collect();
        self.plane.bring_about(&Wanted { macs, ..wanted }).await.unwrap();
        // A tap says something of its own when it comes up; a guest's frames are known by their type.
        for number in 1..=3 {
            self.drain(number);
        }
    }

    fn tap(&self, number: u32) -> &OwnedFd {
        &self.taps[number as usize - 1]
    }

    fn send(&self, from: u32, to: [u8; 6], number: u32, length: usize) {
        let mut frame = vec![0; VNET_HEADER_BYTES];
        frame.extend(to);
        frame.extend(mac(from));
        frame.extend([0x88, 0xb5]);
        frame.extend(number.to_be_bytes());
        frame.resize(VNET_HEADER_BYTES + length.max(60), 0);
        assert_eq!(rustix::io::write(self.tap(from), &frame), Ok(frame.len()));
    }

    /// The next frame of ours for a guest.
    fn receive(&self, at: u32, within: Duration) -> Option<Arrival> {
        let until = Instant::now() + within;
        loop {
            let mut bytes = vec![0; 70_000];
            match rustix::io::read(self.tap(at), &mut bytes) {
                Ok(length) if length >= VNET_HEADER_BYTES + 18 => {
                    let frame = &bytes[VNET_HEADER_BYTES..];
                    // A bridge may flood; a guest's card takes what is for it.
                    let ours = frame[..6] == mac(at) || frame[..6] == [0xff; 6];
                    if ours && frame[12..14] == [0x88, 0xb5] {
                        let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
                        return Some(Arrival { number, at: Instant::now() });
                    }
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    let left = until.checked_duration_since(Instant::now())?;
                    let mut fds = [PollFd::new(self.tap(at), PollFlags::IN)];
                    let left = Timespec::try_from(left).unwrap();
                    poll(&mut fds, Some(&left)).unwrap();
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn drain(&mut self, at: u32) {
        while self.receive(at, Duration::ZERO).is_some() {}
    }

    fn passes(&self, from: u32, to: u32) -> bool {
        self.send(from, mac(to), 7, 60);
        self.receive(to, ARRIVES).is_some()
    }
}

fn mac(number: u32) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number as u8]
}

fn plan(id: u64, impairment: Impairment) -> StagePlan {
    StagePlan { id, from: None, impairment, seed: 1 }
}

fn link(number: u32, impairment: Impairment) -> Wanted {
    Wanted { links: BTreeMap::from([(number, vec![plan(1, impairment)])]), ..Wanted::default() }
}

#[test]
fn cuts_hold_in_their_direction_at_once_and_heal() {
    with_rights("cuts_hold_in_their_direction_at_once_and_heal", async |mut lab| {
        for kernel in [None, Some(false)] {
            lab.plane.kernel_cuts = kernel;
            assert!(lab.passes(1, 2) && lab.passes(2, 1) && lab.passes(3, 1));
            lab.want(Wanted { cuts: BTreeSet::from([(1, 2)]), ..Wanted::default() }).await;
            assert!(!lab.passes(1, 2));
            assert!(lab.passes(2, 1) && lab.passes(1, 3) && lab.passes(3, 2));
            // A broadcast reaches all but the one.
            lab.send(1, [0xff; 6], 9, 60);
            assert!(lab.receive(3, ARRIVES).is_some());
            assert!(lab.receive(2, Duration::from_millis(50)).is_none());
            lab.want(Wanted { isolated: BTreeSet::from([3]), ..Wanted::default() }).await;
            assert!(lab.passes(1, 2) && lab.passes(2, 1), "{kernel:?}");
            assert!(!lab.passes(1, 3) && !lab.passes(2, 3), "{kernel:?}");
            assert!(!lab.passes(3, 1) && !lab.passes(3, 2), "{kernel:?}");
            lab.want(Wanted::default()).await;
            assert!(lab.passes(1, 2) && lab.passes(1, 3) && lab.passes(3, 2));
        }
        assert_eq!(lab.plane.kernel_cuts, Some(false));
    });
}

#[test]
fn a_partition_loses_every_frame_also_of_members_with_slow_links() {
    with_rights(
        "a_partition_loses_every_frame_also_of_members_with_slow_links",
        async |mut lab| {
            let slow = Impairment { latency: Duration::from_millis(5), ..Impairment::default() };
            let mut wanted = link(1, slow);
            wanted.cuts = BTreeSet::from([(1, 2), (2, 1)]);
            lab.want(wanted).await;
            for number in 0..1000 {
                lab.send(1, mac(2), number, 60);
                lab.send(2, mac(1), number, 60);
            }
            assert!(lab.receive(2, Duration::from_millis(100)).is_none());
            assert!(lab.receive(1, Duration::from_millis(100)).is_none());
            assert!(lab.passes(1, 3) && lab.passes(3, 1));
        },
    );
}

#[test]
fn loss_is_as_asked() {
    with_rights("loss_is_as_asked", async |mut lab| {
        lab.want(link(2, Impairment { loss: 0.1, ..Impairment::default() })).await;
        let mut arrived = 0;
        for number in 0..5000 {
            lab.send(1, mac(2), number, 60);
            // In steps, as a tap holds 500 frames.
            if number % 100 == 99 {
                while lab.receive(2, Duration::from_millis(20)).is_some() {
                    arrived += 1;
                }
            }
        }
        while lab.receive(2, ARRIVES).is_some() {
            arrived += 1;
        }
        let lost = 1.0 - f64::from(arrived) / 5000.0;
        eprintln!("loss asked 10 %, measured {:.2} %", 100.0 * lost);
        assert!((0.085..=0.115).contains(&lost), "{lost}");
    });
}

#[test]
fn latency_is_as_asked_each_way() {
    with_rights("latency_is_as_asked_each_way", async |mut lab| {
        let late = Duration::from_millis(50);
        lab.want(link(2, Impairment { latency: late, ..Impairment::default() })).await;
        for (from, to) in [(1, 2), (2, 1)] {
            let mut took = Vec::new();
            for number in 0..20 {
                let sent = Instant::now();
                lab.send(from, mac(to), number, 60);
                let arrival = lab.receive(to, Duration::from_secs(1)).unwrap();
                assert_eq!(arrival.number, number);
                took.push(arrival.at - sent);
            }
            took.sort();
            // The median, and not to the millisecond: this host may be busy with something else.
            let median = took[took.len() / 2];
            eprintln!("latency asked {late:?}, measured {median:?}");
            assert!(took[0] >= late && median < late * 2, "{took:?}");
        }
        // Not between others.
        let sent = Instant::now();
        lab.send(1, mac(3), 1, 60);
        let arrival = lab.receive(3, Duration::from_secs(1)).unwrap();
        assert!(arrival.at - sent < late);
    });
}

#[test]
fn bandwidth_is_as_asked() {
    with_rights("bandwidth_is_as_asked", async |mut lab| {
        let bits_per_s = 10_000_000;
        lab.want(link(2, Impairment { bits_per_s: Some(bits_per_s), ..Impairment::default() }))
            .await;
        // 1 Mbit at a time fits the queue.
        let began = Instant::now();
        let (mut sent, mut arrived, mut last) = (0, 0u32, began);
        while began.elapsed() < Duration::from_secs(2) {
            while sent - arrived < 80 {
                lab.send(1, mac(2), sent, 1500);
                sent += 1;
            }
            let arrival = lab.receive(2, Duration::from_secs(1)).unwrap();
            arrived += 1;
            last = arrival.at;
        }
        let measured = f64::from(arrived) * 1500.0 * 8.0 / (last - began).as_secs_f64();
        eprintln!("bandwidth asked 10 Mbit/s, measured {:.2} Mbit/s", measured / 1e6);
        // Never more; less where this host is too busy to keep the queue filled.
        assert!((0.3e7..=1.1e7).contains(&measured), "{measured}");
    });
}

#[test]
fn a_pairs_link_leaves_others_alone_and_counts_broadcasts() {
    with_rights("a_pairs_link_leaves_others_alone_and_counts_broadcasts", async |mut lab| {
        let lost = Impairment { loss: 1.0, ..Impairment::default() };
        let from = |number| vec![StagePlan { from: Some(mac(number)), ..plan(1, lost) }];
        let links = BTreeMap::from([(1, from(2)), (2, from(1))]);
        lab.want(Wanted { links, ..Wanted::default() }).await;
        assert!(!lab.passes(1, 2) && !lab.passes(2, 1));
        assert!(lab.passes(1, 3) && lab.passes(3, 1) && lab.passes(2, 3) && lab.passes(3, 2));
        lab.send(1, [0xff; 6], 9, 60);
        assert!(lab.receive(3, ARRIVES).is_some());
        assert!(lab.receive(2, Duration::from_millis(50)).is_none());
    });
}

#[test]
fn what_is_under_way_arrives_when_a_fault_ends() {
    with_rights("what_is_under_way_arrives_when_a_fault_ends", async |mut lab| {
        let late = Duration::from_hours(1);
        lab.want(link(2, Impairment { latency: late, ..Impairment::default() })).await;
        for number in 0..10 {
            lab.send(1, mac(2), number, 60);
        }
        assert!(lab.receive(2, Duration::from_millis(50)).is_none());
        lab.plane.bring_about(&Wanted::default()).await.unwrap();
        for number in 0..10 {
            assert_eq!(lab.receive(2, ARRIVES).unwrap().number, number);
        }
        assert!(lab.passes(1, 2) && lab.passes(2, 1));
        // And again, with the same names.
        lab.want(link(2, Impairment { loss: 1.0, ..Impairment::default() })).await;
        assert!(!lab.passes(1, 2));
    });
}

#[test]
fn a_capture_has_every_frame_once() {
    with_rights("a_capture_has_every_frame_once", async |mut lab| {
        lab.want(Wanted::default()).await;
        // So that the bridge knows where it is.
        assert!(lab.passes(2, 1));
        let captures = [None, Some(2), Some(3)];
        let mut running = Vec::new();
        for tap in captures {
            let file = tempfile::NamedTempFile::new().unwrap();
            let socket = lab.plane.network.packets(tap).await.unwrap();
            let fd = file.reopen().unwrap().into();
            running.push((crate::net::Capture::start(socket, fd).unwrap(), file));
        }
        for number in 0..100 {
            lab.send(1, mac(2), number, 60 + number as usize);
        }
        let ours = |file: &tempfile::NamedTempFile| {
            let bytes = std::fs::read(file.path()).unwrap();
            let mut rest = &bytes[24..];
            let mut numbers = Vec::new();
            while !rest.is_empty() {
                let length = u32::from_ne_bytes(rest[8..12].try_into().unwrap()) as usize;
                let frame = &rest[16..16 + length];
                if frame[12..14] == [0x88, 0xb5] {
                    numbers.push(u32::from_be_bytes(frame[14..18].try_into().unwrap()));
                }
                rest = &rest[16 + length..];
            }
            numbers
        };
        let mut seen = Vec::new();
        for (capture, file) in running {
            assert_eq!(capture.stop().await.unwrap().lost, 0);
            seen.push(ours(&file));
        }
        let all: Vec<u32> = (0..100).collect();
        assert_eq!(seen[0], all, "of the bridge");
        assert_eq!(seen[1], all, "of the receiver");
        assert!(seen[2].is_empty(), "of a third: {:?}", seen[2]);
    });
}

/// Prints what a relay carries, with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement, for a quiet host"]
fn throughput() {
    with_rights("throughput", async |mut lab| {
        for relayed in [false, true] {
            let late = Impairment { latency: Duration::from_micros(1), ..Impairment::default() };
            lab.want(if relayed { link(2, late) } else { Wanted::default() }).await;
            let began = Instant::now();
            let mut arrived = 0u32;
            while began.elapsed() < Duration::from_secs(3) {
                for number in 0..64 {
                    lab.send(1, mac(2), number, 1514);
                }
                while lab.receive(2, Duration::from_millis(1)).is_some() {
                    arrived += 1;
                }
            }
            let rate = f64::from(arrived) / began.elapsed().as_secs_f64();
            eprintln!("relayed {relayed}: {rate:.0} frames/s, {:.0} Mbit/s", rate * 1514.0 * 8e-6);
        }
    });
}

#[test]
fn a_large_segment_counts_as_the_frames_it_is() {
    with_rights("a_large_segment_counts_as_the_frames_it_is", async |mut lab| {
        lab.want(link(2, Impairment::default())).await;
        // 20,000 bytes of TCP in one write, as a guest with segmentation offload does.
        let payload = 20_000;
        let mut frame = segment(payload);
        let header = &mut frame[..VNET_HEADER_BYTES];
        // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4; lengths little-endian.
        header[0] = 1;
        header[1] = 1;
        header[2..4].copy_from_slice(&54u16.to_le_bytes());
        header[4..6].copy_from_slice(&1448u16.to_le_bytes());
        header[6..8].copy_from_slice(&34u16.to_le_bytes());
        header[8..10].copy_from_slice(&16u16.to_le_bytes());
        assert_eq!(rustix::io::write(lab.tap(1), &frame), Ok(frame.len()));
        let mut lengths = Vec::new();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            let mut bytes = vec![0; 70_000];
            match rustix::io::read(lab.tap(2), &mut bytes) {
                Ok(length) if bytes[VNET_HEADER_BYTES + 12..][..2] == [8, 0] => {
                    lengths.push(length - VNET_HEADER_BYTES);
                }
                Ok(_) => {}
                Err(_) => std::thread::yield_now(),
            }
        }
        assert_eq!(lengths.len(), payload.div_ceil(1448), "{lengths:?}");
        assert!(lengths.iter().all(|length| *length <= 1514), "{lengths:?}");
        assert_eq!(lengths.iter().map(|length| length - 54).sum::<usize>(), payload);
    });
}

/// A frame with a TCP segment of that many bytes from guest 1 to guest 2, behind an empty header.
fn segment(payload: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_BYTES];
    frame.extend(mac(2));
    frame.extend(mac(1));
    frame.extend([8, 0]);
    let total = u16::try_from(20 + 20 + payload).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 213, 77, 10, 10, 213, 77, 11]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(VNET_HEADER_BYTES + 54 + payload, 0x61);
    frame
}
