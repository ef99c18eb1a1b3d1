//! Owns the list of what the library promises of snapshots, forks and warm starts, run against every
//! backend that can save machines. Each scenario has machines of its own, all made of one golden
//! machine.

mod memory;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fleetbox::{Backend, Cluster, ErrorKind, Result, Snapshot, Stdio, Vm, VmBuilder};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::bed::{until, until_within};
use super::{chosen, require, runtime, said, told};
use crate::unique;

/// Those of the other lists: one golden machine serves all.
const MEMORY_MIB: u32 = 512;
const CPUS: u32 = 1;
/// How far a guest's clock may be off.
const CLOCK_OFF_MAX_MS: i128 = 50;
/// A clock that was set right and stands still is not right any more after this long.
const CLOCK_GOES_ON: Duration = Duration::from_secs(1);
/// What a guest does when it has nothing else to do.
const SETTLED: Duration = Duration::from_mins(2);

for_each_backend!(conforms: fake, qemu, cloud_hypervisor);

/// Machines of one backend.
struct Bed {
    backend: Backend,
}

impl Bed {
    fn warm(&self, name: &str) -> VmBuilder {
        let vm = Vm::builder(name).backend(self.backend).memory_mib(MEMORY_MIB).cpus(CPUS);
        vm.ephemeral(true).warm(true)
    }

    fn has_guests(&self) -> bool {
        self.backend != Backend::Fake
    }
}

type Scenario = (&'static str, fn(&Bed) -> super::Running<'_>);

#[rustfmt::skip]
const SCENARIOS: &[Scenario] = &[
    ("two_of_one_golden_machine_are_two", |bed| Box::pin(two_of_one_golden_machine_are_two(bed))),
    ("a_warm_start_is_one_without_a_boot", |bed| Box::pin(a_warm_start_is_one_without_a_boot(bed))),
    ("a_cluster_of_one_golden_machine_has_its_addresses", |bed| Box::pin(a_cluster_has_its_addresses(bed))),
    ("a_fork_goes_on_where_it_was_saved", |bed| Box::pin(a_fork_goes_on_where_it_was_saved(bed))),
    ("memory_is_that_of_one_instant", |bed| Box::pin(memory::it_is_that_of_one_instant(bed))),
    ("a_reverted_one_is_as_it_was", |bed| Box::pin(a_reverted_one_is_as_it_was(bed))),
    ("a_formed_cluster_goes_on_elsewhere", |bed| Box::pin(a_formed_cluster_goes_on_elsewhere(bed))),
    ("what_cannot_be_is_refused", |bed| Box::pin(what_cannot_be_is_refused(bed))),
];

fn conforms(word: &str) {
    let Some(backend) = chosen(word) else { return };
    let runtime = runtime();
    if !backend.capabilities().snapshot {
        return eprintln!("skipped: {backend} cannot save machines");
    }
    let bed = Bed { backend };
    if let Some(why) = runtime.block_on(cannot_start(&bed)) {
        return require::missing(backend, &why);
    }
    let mut failures = Vec::new();
    for (name, scenario) in SCENARIOS {
        let began = Instant::now();
        let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(scenario(&bed))));
        let failure = match ran {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.report()),
            Err(panic) => Some(said(panic.as_ref())),
        };
        told(backend, name, began, if failure.is_none() { "ok" } else { "FAILED" });
        failures.extend(failure.map(|failure| format!("- {name}: {failure}")));
    }
    assert!(failures.is_empty(), "{backend}:\n{}", failures.join("\n"));
}

/// Makes the golden machine, if the host can.
async fn cannot_start(bed: &Bed) -> Option<String> {
    if bed.has_guests() && !require::has_image().await {
        return Some("the image is not here; `fleetbox image build` makes it".to_owned());
    }
    let began = Instant::now();
    match bed.warm(&unique("golden")).start().await {
        Err(e)
            if matches!(e.kind(), ErrorKind::HostUnsupported | ErrorKind::BackendUnavailable) =>
        {
            Some(e.report())
        }
        started => {
            let destroyed = started.unwrap().destroy().await;
            destroyed.unwrap();
            told(bed.backend, "(a first warm start)", began, "ok");
            None
        }
    }
}

/// What tells one machine from another.
async fn identity(vm: &Vm) -> Result<Vec<String>> {
    let line = "hostname; cat /etc/machine-id; cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub; \
                head -c 1048576 /dev/urandom | sha256sum";
    Ok(vm.ssh(line).await?.lines().map(str::to_owned).collect())
}

async fn two_of_one_golden_machine_are_two(bed: &Bed) -> Result<()> {
    let (first, second) = (unique("fork"), unique("fork"));
    let (first, second) = tokio::try_join!(bed.warm(&first).start(), bed.warm(&second).start())?;
    assert!(!booted(&first) && !booted(&second), "a warm start booted");
    if bed.has_guests() {
        let (one, other) = tokio::try_join!(identity(&first), identity(&second))?;
        assert_eq!((one[0].as_str(), other[0].as_str()), (first.name(), second.name()));
        for (what, (one, other)) in
            ["host name", "machine-id", "host key", "randomness"].iter().zip(one.iter().zip(&other))
        {
            assert_ne!(one, other, "{what}");
        }
        // Until what waited in the guest has ended, with a new journald.
        let asks = "while pgrep -x python3; do sudo journalctl --sync || exit; done";
        first.ssh(asks).await?;
        for vm in [&first, &second] {
            its_clock_is_right(vm).await?;
            is_whole(vm).await?;
        }
        // A new one would cost each first login more than all else.
        let since = "systemctl show -P ActiveEnterTimestampMonotonic user@$(id -u)";
        let (one, other) = tokio::try_join!(first.ssh(since), second.ssh(since))?;
        assert_eq!(one, other, "the user's systemd is not the golden machine's");
    }
    tokio::try_join!(first.destroy(), second.destroy())?;
    Ok(())
}

fn booted(vm: &Vm) -> bool {
    vm.timings().stages().iter().any(|(stage, _)| stage.as_str() == "firmware")
}

/// Says what it is worth, beside a machine that is alone as well.
async fn a_warm_start_is_one_without_a_boot(bed: &Bed) -> Result<()> {
    let mut took = Vec::new();
    // Without KVM it takes its time, and the benchmarks tell.
    let kvm = fleetbox::host::check()
        .await
        .iter()
        .any(|check| check.name == "kvm" && check.verdict == fleetbox::host::Verdict::Good);
    if bed.has_guests() && !kvm {
        return Ok(());
    }
    for warm in [true, false] {
        let began = Instant::now();
        let vm = bed.warm(&unique("alone")).warm(warm).start().await?;
        took.push(began.elapsed().as_secs_f64());
        assert_eq!(booted(&vm), !warm);
        vm.destroy().await?;
    }
    let backend = bed.backend;
    eprintln!("{backend} warm start: {:.2} s, cold start of the same: {:.2} s", took[0], took[1]);
    Ok(())
}

async fn its_clock_is_right(vm: &Vm) -> Result<()> {
    let (off_ms, took_ms) = clock_off_ms(vm).await?;
    let said = format!("{}: the clock is off by {off_ms} ms, read within {took_ms} ms", vm.name());
    // It was read whenever in that time.
    assert!(off_ms.abs() <= CLOCK_OFF_MAX_MS + took_ms / 2, "{said}");
    Ok(())
}

/// How far the guest's clock is from the host's, and how long it took to read: the least of some readings.
async fn clock_off_ms(vm: &Vm) -> Result<(i128, i128)> {
    let mut child = vm
        .command("sh")
        .args(["-c", "while read -r _; do date +%s%N; done"])
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
        .spawn()
        .await?;
    let mut asks = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i128::try_from(since.as_nanos()).unwrap()
    };
    let began = Instant::now();
    let mut best = (i128::MAX, 0);
    let mut left = 20;
    while left > 0 {
        let before = now();
        asks.write_all(b"\n").await.unwrap();
        let there: i128 = answers.next_line().await.unwrap().unwrap().parse().unwrap();
        let after = now();
        if began.elapsed() >= CLOCK_GOES_ON {
            best = best.min((after - before, there - i128::midpoint(before, after)));
            left -= 1;
        }
    }
    drop(asks);
    drop(child.wait().await?);
    Ok((best.1 / 1_000_000, best.0 / 1_000_000))
}

/// The system is as one that was booted: nothing failed, nothing of ours runs, logs and timers go on.
async fn is_whole(vm: &Vm) -> Result<()> {
    assert_eq!(vm.ssh("systemctl is-system-running; true").await?, "running");
    let quiet = async || vm.ssh("! pgrep python3").await.is_ok();
    until_within(SETTLED, "the end of what waited in the guest", quiet).await;
    let timers = "systemctl list-timers --no-legend | wc -l";
    let timed = async || vm.ssh(timers).await.is_ok_and(|n| n.parse::<u32>().unwrap() > 0);
    until_within(SETTLED, "timers", timed).await;
    // The cluster's name server is asked.
    vm.ssh("getent hosts host.fleetbox.internal").await?;
    vm.ssh("logger -t conformance noted").await?;
    let log = "sudo journalctl -q -t conformance | grep -c noted";
    let logged = async || vm.ssh(log).await.is_ok_and(|n| n == "1");
    until_within(SETTLED, "an entry in the journal", logged).await;
    Ok(())
}

async fn a_cluster_has_its_addresses(bed: &Bed) -> Result<()> {
    let name = unique("warm");
    let cluster = Cluster::builder(&name)
        .size(2)
        .backend(bed.backend)
        .memory_mib(MEMORY_MIB)
        .cpus(CPUS)
        .warm(true)
        .every(|vm| vm.ephemeral(true))
        .start()
        .await?;
    let vms = cluster.vms();
    assert_ne!(vms[0].address(), vms[1].address());
    if bed.has_guests() {
        for vm in &vms {
            let addresses = vm.ssh("ip -4 -o addr show scope global | awk '{print $4}'").await?;
            assert_eq!(addresses, format!("{}/24", vm.address()), "{}", vm.name());
        }
        let mac = "cat /sys/class/net/[!l]*/address";
        assert_ne!(vms[0].ssh(mac).await?, vms[1].ssh(mac).await?);
        let local = "grep -v ' lo$' /proc/net/if_inet6 | grep -o '^fe80[0-9a-f]*'";
        assert_ne!(vms[0].ssh(local).await?, vms[1].ssh(local).await?);
        for (from, to) in [(0, 1), (1, 0)] {
            vms[from].command("ping").args(["-c", "1", "-W", "20", vms[to].name()]).run().await?;
        }
        is_whole(&vms[1]).await?;
        // What manages the network has no other address in mind.
        vms[1]
            .ssh("sudo networkctl reconfigure $(ip -o route get 10.213.77.1 | cut -d ' ' -f 3)")
            .await?;
        until("its address", async || vms[1].ssh("true").await.is_ok()).await;
        let addresses = vms[1].ssh("ip -4 -o addr show scope global | awk '{print $4}'").await?;
        assert_eq!(addresses, format!("{}/24", vms[1].address()));
    }
    cluster.destroy().await
}

async fn a_fork_goes_on_where_it_was_saved(bed: &Bed) -> Result<()> {
    let (name, snapshot) = (unique("saved"), unique("snap"));
    let vm = bed.warm(&name).start().await?;
    vm.ssh("echo before > file").await?;
    if bed.has_guests() {
        vm.ssh("sudo systemd-run -q --unit lasting sleep infinity").await?;
    }
    let saved = vm.snapshot(&snapshot).await?;
    assert_eq!((saved.name(), saved.members()), (snapshot.as_str(), vec![vm.name()]));
    vm.ssh("echo after > file").await?;
    let (first, second) = (unique("fork"), unique("fork"));
    let forks = tokio::try_join!(
        saved.fork(&first)?.ephemeral(true).start(),
        Snapshot::find(&snapshot)?.fork(&second)?.ephemeral(true).start(),
    )?;
    for fork in [&forks.0, &forks.1] {
        assert_eq!(fork.ssh("cat file").await?, "before");
        assert_eq!(fork.ssh("hostname").await?, fork.name());
        if bed.has_guests() {
            assert_eq!(fork.ssh("systemctl is-active lasting").await?, "active");
            // The one that was open when it was saved is gone.
            let open = "ss -Htn state established sport = :22 | wc -l";
            assert_eq!(fork.ssh(open).await?, "1");
            its_clock_is_right(fork).await?;
            is_whole(fork).await?;
        }
    }
    assert_eq!(vm.ssh("cat file").await?, "after");
    if bed.has_guests() {
        let pid = "systemctl show -P MainPID lasting";
        assert_eq!(vm.ssh(pid).await?, forks.0.ssh(pid).await?, "it is the same process");
        is_whole(&vm).await?;
    }
    let refused = saved.remove().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{}", refused.report());
    tokio::try_join!(forks.0.destroy(), forks.1.destroy(), vm.destroy())?;
    saved.remove()?;
    assert_eq!(Snapshot::find(&snapshot).unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}

async fn a_reverted_one_is_as_it_was(bed: &Bed) -> Result<()> {
    let snapshot = unique("snap");
    let vm = bed.warm(&unique("reverted")).start().await?;
    vm.ssh("echo before > file").await?;
    let id = vm.ssh("cat /etc/machine-id").await?;
    let saved = vm.snapshot(&snapshot).await?;
    for _ in 0..2 {
        vm.ssh("echo after > file && sync").await?;
        vm.revert().await?;
        assert_eq!(vm.ssh("cat file").await?, "before");
        assert_eq!(vm.ssh("hostname").await?, vm.name());
        assert_eq!(vm.ssh("cat /etc/machine-id").await?, id);
    }
    if bed.has_guests() {
        its_clock_is_right(&vm).await?;
        is_whole(&vm).await?;
    }
    vm.destroy().await?;
    saved.remove()
}

/// Serves one connection, and tells how often it was called.
const SERVER: &str = "import socket\n\
    s = socket.create_server(('', 7777))\n\
    while True:\n \
     c, _ = s.accept()\n \
     print('call', file=open('/tmp/calls', 'a'), flush=True)\n \
     while data := c.recv(100): c.sendall(data)\n";
/// Counts what comes back over one connection.
const CLIENT: &str = "import socket, sys, time\n\
    c = socket.create_connection((sys.argv[1], 7777))\n\
    for n in range(1 << 30):\n \
     c.sendall(b'x')\n \
     assert c.recv(1) == b'x'\n \
     open('/tmp/count', 'w').write(str(n))\n \
     time.sleep(0.05)\n";

async fn a_formed_cluster_goes_on_elsewhere(bed: &Bed) -> Result<()> {
    let (name, other, snapshot) = (unique("formed"), unique("other"), unique("snap"));
    let cluster = Cluster::builder(&name)
        .size(2)
        .backend(bed.backend)
        .memory_mib(MEMORY_MIB)
        .cpus(CPUS)
        .warm(true)
        .every(|vm| vm.ephemeral(true))
        .start()
        .await?;
    let vms = cluster.vms();
    if bed.has_guests() {
        let run = ["-q", "--unit", "talk", "python3", "-c"];
        vms[0].command("systemd-run").args(run).arg(SERVER).sudo().run().await?;
        let client = ["-q", "--unit", "talk", "-p", "Restart=on-failure", "python3", "-c", CLIENT];
        vms[1].command("systemd-run").args(client).arg(vms[0].name()).sudo().run().await?;
        until("a conversation", async || count(&vms[1]).await > 3).await;
    }
    let saved = cluster.snapshot(&snapshot).await?;
    assert_eq!(saved.cluster(), Some(name.as_str()));
    let forked = saved.fork_cluster(&other)?.every(|vm| vm.ephemeral(true)).start().await?;
    let copies = forked.vms();
    let names: Vec<String> = copies.iter().map(|vm| vm.name().to_owned()).collect();
    assert_eq!(names, [format!("{other}-1"), format!("{other}-2")]);
    for (vm, copy) in vms.iter().zip(&copies) {
        assert_eq!(vm.address(), copy.address());
        assert_eq!(copy.ssh("hostname").await?, copy.name());
    }
    if bed.has_guests() {
        for cluster in [&copies, &vms] {
            let before = count(&cluster[1]).await;
            until("more of it", async || count(&cluster[1]).await > before + 3).await;
            assert_eq!(cluster[0].ssh("wc -l < /tmp/calls").await?, "1", "it called again");
        }
        // Its fellow has two names now.
        for name in [vms[0].name(), copies[0].name()] {
            copies[1].command("ping").args(["-c", "1", "-W", "20", name]).run().await?;
        }
    }
    tokio::try_join!(cluster.destroy(), forked.destroy())?;
    saved.remove()
}

async fn count(vm: &Vm) -> u64 {
    vm.ssh("cat /tmp/count").await.ok().and_then(|count| count.parse().ok()).unwrap_or(0)
}

async fn what_cannot_be_is_refused(bed: &Bed) -> Result<()> {
    let kind = |refused: fleetbox::Error| refused.kind();
    let snapshot = unique("snap");
    let vm = bed.warm(&unique("refused")).ephemeral(false).start().await?;
    assert_eq!(kind(vm.snapshot("No name").await.unwrap_err()), ErrorKind::InvalidName);
    assert_eq!(kind(vm.revert().await.unwrap_err()), ErrorKind::NotFound);
    let saved = vm.snapshot(&snapshot).await?;
    assert_eq!(kind(vm.snapshot(&snapshot).await.unwrap_err()), ErrorKind::Conflict);
    let resized = saved.fork(unique("resized"))?.memory_mib(MEMORY_MIB * 2).start().await;
    assert_eq!(kind(resized.unwrap_err()), ErrorKind::InvalidSpec);
    vm.stop_within(Duration::ZERO).await?;
    let stopped = Vm::find(vm.name())?;
    assert_eq!(kind(stopped.snapshot("late").await.unwrap_err()), ErrorKind::NotRunning);
    assert_eq!(kind(stopped.revert().await.unwrap_err()), ErrorKind::NotRunning);
    assert_eq!(kind(Snapshot::find("never").unwrap_err()), ErrorKind::NotFound);
    stopped.destroy().await?;
    saved.remove()
}
