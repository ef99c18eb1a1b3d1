//! Two real guests on one network: their names, faults between them as seen from inside, what the host
//! still reaches. How exact a fault is depends on how busy the host is: here it is only seen that it is
//! there and of the right size.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use fleetbox::{Backend, Cluster, Egress, ErrorKind, Result, Stdio, Vm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{chosen, require, runtime};
use crate::unique;

/// Loss, delay and the like over this many packets, sent by the guest itself.
const PACKETS: u32 = 5000;

/// A guest's program that sends numbered datagrams to another's echo and prints, over the answers,
/// how many came and the median round trip in milliseconds.
const ASK: &str = include_str!("../guest/ask.py");

const ECHO: &str = include_str!("../guest/echo.py");

/// Takes what is sent to it over TCP and prints bytes and seconds of the first connection.
const SINK: &str = include_str!("../guest/sink.py");

const POUR: &str = include_str!("../guest/pour.py");

struct Lab {
    cluster: Cluster,
    a: Vm,
    b: Vm,
    /// Of the guests without any fault: slow ones lose packets of themselves that come faster.
    trip_ms: f64,
}

for_each_backend!(on: qemu, cloud_hypervisor);

fn on(word: &str) {
    let Some(backend) = chosen(word) else { return };
    let runtime = runtime();
    runtime.block_on(async {
        if !require::has_image().await {
            let why = "the image is not here; `fleetbox image build debian-12` makes it";
            return require::missing(backend, why);
        }
        let mut lab = match start(backend).await {
            Ok(lab) => lab,
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::HostUnsupported | ErrorKind::BackendUnavailable
                ) =>
            {
                return require::missing(backend, &e.report());
            }
            Err(e) => panic!("{backend}: {}", e.report()),
        };
        let outcome = scenarios(&mut lab).await;
        let removed = lab.cluster.destroy().await;
        if let Err(e) = outcome.and(removed) {
            panic!("{backend}: {}", e.report());
        }
    });
}

async fn start(backend: Backend) -> Result<Lab> {
    let name = unique("net");
    let warm = backend.capabilities().snapshot;
    let cluster =
        Cluster::builder(&name).size(2).backend(backend).memory_mib(crate::MEMORY_MIB).warm(warm);
    let cluster = cluster.start().await?;
    let (a, b) = (cluster.vm(&format!("{name}-1"))?, cluster.vm(&format!("{name}-2"))?);
    for vm in [&a, &b] {
        for (program, text) in [("ask", ASK), ("echo", ECHO), ("sink", SINK), ("pour", POUR)] {
            vm.shell(format!("cat > {program}.py")).stdin_bytes(text).run().await?;
        }
        for program in ["echo", "sink"] {
            vm.ssh(&format!("sudo systemd-run --quiet --unit {program} python3 $PWD/{program}.py"))
                .await?;
        }
    }
    Ok(Lab { cluster, a, b, trip_ms: 0.0 })
}

async fn scenarios(lab: &mut Lab) -> Result<()> {
    told("names", async || names(lab).await).await?;
    lab.trip_ms = ask(&lab.a, &lab.b, 100, 20).await?.1;
    let lab = &*lab;
    told("none", async || healthy(lab).await).await?;
    told("cuts and isolation", async || cuts(lab).await).await?;
    told("a partition and a flow", async || partition(lab).await).await?;
    told("loss", async || loss(lab).await).await?;
    told("latency", async || latency(lab).await).await?;
    told("bandwidth", async || bandwidth(lab).await).await?;
    told("egress and the host", async || egress(lab).await).await?;
    told("capture", async || capture(lab).await).await?;
    told("healed", async || healthy(lab).await).await
}

async fn told(name: &str, scenario: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    let outcome = scenario().await;
    let word = if outcome.is_ok() { "ok" } else { "FAILED" };
    eprintln!("network faults {:>7.2} s  {name}: {word}", began.elapsed().as_secs_f64());
    outcome
}

/// Asks the other's echo: how many answers of so many, and the median round trip.
async fn ask(from: &Vm, to: &Vm, count: u32, rate: u32) -> Result<(u32, f64)> {
    let said = from.ssh(&format!("python3 ask.py {} {count} {rate}", to.address())).await?;
    let mut words = said.split_whitespace();
    let mut next = || words.next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(-1.0);
    let (came, trip_ms) = (next(), next());
    #[expect(clippy::cast_sign_loss, reason = "a count")]
    Ok((came as u32, trip_ms))
}

async fn reaches(from: &Vm, to: &Vm) -> Result<bool> {
    Ok(ask(from, to, 5, 20).await?.0 == 5)
}

/// Soon after a heal: what the guest has in its table of neighbours it may first ask for again, and it
/// waits a second between two questions.
async fn is_whole_again(from: &Vm, to: &Vm) -> Result<()> {
    let began = Instant::now();
    while !reaches(from, to).await? {
        assert!(began.elapsed() < Duration::from_secs(30), "it is not healed");
    }
    Ok(())
}

async fn healthy(lab: &Lab) -> Result<()> {
    assert!(reaches(&lab.a, &lab.b).await?);
    let (came, trip_ms) = ask(&lab.a, &lab.b, 200, 100).await?;
    eprintln!("no fault: {came} of 200 answered, median round trip {trip_ms:.2} ms");
    assert_eq!(came, 200);
    Ok(())
}

async fn names(lab: &Lab) -> Result<()> {
    for (from, to) in [(&lab.a, &lab.b), (&lab.b, &lab.a)] {
        for name in [to.name().to_owned(), format!("{}.fleetbox.internal", to.name())] {
            let found = from.ssh(&format!("getent ahostsv4 {name}")).await?;
            assert!(found.starts_with(&to.address().to_string()), "{found}");
        }
        assert!(from.ssh("getent ahostsv4 nobody.fleetbox.internal").await.is_err());
        assert_eq!(from.ssh(&format!("grep -c {} /etc/hosts || true", to.name())).await?, "0");
    }
    Ok(())
}

async fn cuts(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, b, .. } = lab;
    let fault = cluster.cut(a.name(), b.name()).await?;
    assert_eq!(ask(a, b, 5, 20).await?.0, 0);
    // The other way frames still arrive, only the answers do not.
    let heard = "python3 - <<'END'\nimport socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                 s.bind(('', 9009)); s.settimeout(20); print(s.recv(9).decode())\nEND";
    let hears = tokio::spawn({
        let a = a.clone();
        async move { a.ssh(heard).await }
    });
    let say = format!(
        "for n in $(seq 40); do echo -n word > /dev/udp/{}/9009; sleep 0.2; done",
        a.address()
    );
    let mut says = b.shell(format!("bash -c '{say}'"));
    let (heard, _) = tokio::join!(hears, says.run());
    assert_eq!(heard.expect("it runs to its end")?, "word");
    fault.heal().await?;
    is_whole_again(a, b).await?;

    let alone = cluster.isolate(b.name()).await?;
    assert_eq!(ask(a, b, 5, 20).await?.0, 0);
    assert_eq!(b.ssh("hostname").await?, b.name(), "the host still reaches it");
    alone.heal().await?;
    is_whole_again(a, b).await
}

/// A connection that is open stops at once, and goes on after.
async fn partition(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, b, .. } = lab;
    let count = "wc -c < /tmp/flow";
    b.ssh("sudo systemd-run --quiet --unit flow sh -c 'python3 -c \"import socket\nl = socket.socket(); l.bind((\\\"\\\", 9010)); l.listen(); c, _ = l.accept(); f = open(\\\"/tmp/flow\\\", \\\"wb\\\", 0)\nwhile True: f.write(c.recv(100))\"'").await?;
    let flow = format!(
        "import socket, time\nfor n in range(300):\n try: s = socket.create_connection(('{}', 9010)); break\n except OSError: time.sleep(0.1)\nwhile True: s.send(b'x'); time.sleep(0.05)",
        b.address()
    );
    a.shell("cat > flow.py").stdin_bytes(flow).run().await?;
    a.ssh("sudo systemd-run --quiet --unit flow python3 $PWD/flow.py").await?;
    b.ssh("sudo touch /tmp/flow").await?;
    let grows = async || -> Result<bool> {
        let before = b.ssh(count).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(before != b.ssh(count).await?)
    };
    while !grows().await? {}
    let split = cluster.partition([[a.name()], [b.name()]]).await?;
    assert!(!grows().await?, "an open connection was not cut");
    split.heal().await?;
    let began = Instant::now();
    while !grows().await? {
        assert!(began.elapsed() < Duration::from_mins(1), "the connection did not go on");
    }
    Ok(())
}

async fn loss(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, b, trip_ms } = lab;
    #[expect(clippy::cast_sign_loss, reason = "it is in between")]
    let rate = (2000.0 / trip_ms).clamp(20.0, 500.0) as u32;
    // One way is lossy for what leaves and what comes: of a round trip 0.9 × 0.9 are left.
    let fault = cluster.link(b.name()).loss(0.1).seed(1).apply().await?;
    let (came, _) = ask(a, b, PACKETS, rate).await?;
    let one_way = 1.0 - (f64::from(came) / f64::from(PACKETS)).sqrt();
    eprintln!("loss asked 10 %, measured {:.2} % each way", 100.0 * one_way);
    assert!((0.07..=0.2).contains(&one_way), "{one_way}");
    assert_eq!(b.ssh("hostname").await?, b.name());
    fault.heal().await
}

async fn latency(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, b, .. } = lab;
    let (_, before_ms) = ask(a, b, 100, 20).await?;
    let late = Duration::from_millis(50);
    let fault = cluster.link_between(a.name(), b.name()).latency(late).apply().await?;
    let (came, trip_ms) = ask(a, b, 100, 20).await?;
    let each_way_ms = (trip_ms - before_ms) / 2.0;
    eprintln!(
        "latency asked 50 ms each way, measured {each_way_ms:.2} ms more than {before_ms:.2} ms"
    );
    assert_eq!(came, 100);
    assert!((45.0..=150.0).contains(&each_way_ms), "{each_way_ms}");
    fault.heal().await
}

async fn bandwidth(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, b, .. } = lab;
    let free_kbit = poured_kbit_per_s(a, b).await?;
    let asked_kbit = (free_kbit / 2).min(10_000);
    let fault = cluster.link(a.name()).bandwidth_kbit_per_s(asked_kbit).apply().await?;
    let measured_kbit = poured_kbit_per_s(a, b).await?;
    eprintln!(
        "bandwidth asked {asked_kbit} kbit/s of {free_kbit}, measured {measured_kbit} over TCP"
    );
    assert!((asked_kbit * 3 / 10..=asked_kbit * 11 / 10).contains(&measured_kbit));
    fault.heal().await
}

/// What goes over a TCP connection of ten seconds, counted in frames.
async fn poured_kbit_per_s(a: &Vm, b: &Vm) -> Result<u64> {
    b.ssh("sudo rm -f /tmp/sink").await?;
    a.ssh(&format!("python3 pour.py {} 10", b.address())).await?;
    let said = b.ssh("while ! test -s /tmp/sink; do sleep 0.2; done; cat /tmp/sink").await?;
    let (bytes, seconds) = said.split_once(' ').expect("two numbers");
    let bits = bytes.parse::<f64>().expect("bytes") * 8.0;
    // 1448 of the 1514 bytes of a frame are payload.
    let kbit = bits / seconds.parse::<f64>().expect("seconds") * 1514.0 / 1448.0 / 1000.0;
    #[expect(clippy::cast_sign_loss, reason = "a rate")]
    Ok(kbit as u64)
}

async fn capture(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, b, .. } = lab;
    let dir = tempfile::tempdir().expect("a directory");
    let (all, one) = (dir.path().join("all.pcap"), dir.path().join("one.pcap"));
    let captures = (cluster.capture(&all).await?, a.capture(&one).await?);
    assert!(reaches(a, b).await?);
    captures.0.stop().await?;
    captures.1.stop().await?;
    for path in [all, one] {
        let bytes = std::fs::read(&path).expect("the capture");
        // Behind the Ethernet and IP headers: the destination port of the questions, 9007.
        let port = 9007u16.to_be_bytes();
        let (IpAddr::V4(from), IpAddr::V4(to)) = (a.address(), b.address()) else { panic!() };
        let flow = [from.octets(), to.octets()].concat();
        let asked = bytes.windows(12).filter(|w| w[..8] == flow && w[10..] == port).count();
        assert_eq!(asked, 5, "{}", path.display());
    }
    Ok(())
}

async fn egress(lab: &Lab) -> Result<()> {
    let Lab { cluster, a, .. } = lab;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut guest, _)) = listener.accept().await {
            drop(guest.write_all(b"the host").await);
            open.push(guest);
        }
    });
    let get = format!(
        "python3 -c \"import socket; s = socket.create_connection(('host.fleetbox.internal', {port}), 20); print(s.recv(99).decode())\""
    );
    assert_eq!(a.ssh(&get).await?, "the host");
    // One that is open is reset.
    let wait = format!(
        "python3 -c \"import socket; s = socket.create_connection(('host.fleetbox.internal', {port}), 60); print(s.recv(8).decode(), flush=True); print(s.recv(8))\""
    );
    let mut open = a.shell(wait).stdout(Stdio::Piped).stderr(Stdio::Piped).spawn().await?;
    let mut first = [0; 8];
    let mut said = open.stdout.take().expect("it is piped");
    said.read_exact(&mut first).await.expect("the host's answer");
    let offline = cluster.egress(Egress::Deny).await?;
    let mut complaint = String::new();
    let mut stderr = open.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut complaint).await.expect("its last words");
    assert!(complaint.contains("ConnectionResetError"), "{complaint}");
    let refused = a.ssh(&get).await.unwrap_err();
    assert!(refused.report().contains("ConnectionResetError"), "{}", refused.report());
    let named = cluster.egress(Egress::only([format!("host.fleetbox.internal:{port}")])).await?;
    assert_eq!(a.ssh(&get).await?, "the host");
    assert!(a.ssh("getent hosts example.org").await.is_err());
    named.heal().await?;
    offline.heal().await?;
    assert_eq!(a.ssh(&get).await?, "the host");
    Ok(())
}
