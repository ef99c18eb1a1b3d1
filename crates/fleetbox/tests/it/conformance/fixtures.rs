//! Owns the list of what the library promises of fixtures, run against every backend. Each scenario finds
//! what the one before left. Where machines can be saved all come back from a golden one, and boot later.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fleetbox::{Backend, Cluster, ErrorKind, Fixture, Result, Vm, VmBuilder};

use super::{chosen, require, runtime, told};
use crate::unique;

/// Those of the snapshots' list.
const MEMORY_MIB: u32 = 512;
const CPUS: u32 = 1;

const PLAIN: &str = "/srv/plain";
/// Whatever a line of fstab or a unit of systemd's could stumble over.
const ODD: &str = "/opt/a b/#\"c\\d'%s: \u{e4}$HOME";
const HOME: &str = "/home/fleetbox/some/data";
/// In a fixture that has no such directory.
const INNER: &str = "/srv/plain/in/side";
/// By a link of the guest's, which `/bin` is.
const LINKED: &str = "/bin/fleetbox-fixture";

for_each_backend!(conforms: fake, qemu, cloud_hypervisor);

fn conforms(word: &str) {
    let Some(backend) = chosen(word) else { return };
    let runtime = runtime();
    let bed = Bed::new(backend);
    let vm = match runtime.block_on(first(&bed)) {
        Ok(vm) => vm,
        Err(why) => return require::missing(backend, &why),
    };
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(&bed, vm))));
    // It is not there any more if all went well.
    if let Ok(left) = Vm::find(&bed.name) {
        runtime.block_on(left.destroy()).unwrap();
    }
    match ran {
        Ok(Ok(())) => {}
        Ok(Err(e)) => panic!("{backend}: {}", e.report()),
        Err(panic) => resume_unwind(panic),
    }
}

/// The directories of the host.
struct Bed {
    backend: Backend,
    dir: tempfile::TempDir,
    name: String,
}

impl Bed {
    fn new(backend: Backend) -> Self {
        let bed = Self { backend, dir: tempfile::tempdir().unwrap(), name: unique("fixtures") };
        bed.fill();
        bed
    }

    fn has_guests(&self) -> bool {
        self.backend != Backend::Fake
    }

    fn plain(&self) -> PathBuf {
        self.dir.path().join("plain")
    }

    fn tools(&self) -> PathBuf {
        self.dir.path().join("tools")
    }

    /// What changes from start to start.
    fn say(&self, word: &str) {
        std::fs::write(self.plain().join("word"), word).unwrap();
    }

    fn fill(&self) {
        let plain = self.plain();
        std::fs::create_dir_all(plain.join("empty/deep/deeper")).unwrap();
        for name in [&b"a b"[..], b"new\nline", b"\xff\xfe", b"\"'\\$x", b"-rf", &[b'x'; 255]] {
            std::fs::write(plain.join(OsStr::from_bytes(name)), name).unwrap();
        }
        for number in 0..300 {
            std::fs::write(plain.join(format!("empty/{number}")), number.to_string()).unwrap();
        }
        let noise: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        std::fs::write(plain.join("noise"), noise).unwrap();
        std::fs::hard_link(plain.join("noise"), plain.join("again")).unwrap();
        for (link, target) in
            [("absolute", "/etc/passwd"), ("dangling", "no/where"), ("loop", "loop")]
        {
            symlink(target, plain.join(link)).unwrap();
        }
        std::fs::create_dir(self.tools()).unwrap();
        std::fs::write(self.tools().join("run"), "#!/bin/sh\necho ran\n").unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(&self.tools().join("run"), 0o755);
        set(&plain.join("noise"), 0o600);
        self.say("first");
    }

    fn builder(&self, name: &str) -> VmBuilder {
        let vm = Vm::builder(name).backend(self.backend).memory_mib(MEMORY_MIB).cpus(CPUS);
        vm.fixture(self.plain(), PLAIN)
            .fixtures([Fixture::new(self.tools(), ODD).preserve_modes()])
            .fixtures([(self.tools(), HOME), (self.tools(), INNER), (self.tools(), LINKED)])
    }
}

/// The first machine, if the host can have one.
async fn first(bed: &Bed) -> Result<Vm, String> {
    if bed.has_guests() && !require::has_image().await {
        return Err("the image is not here; `fleetbox image build debian-12` makes it".to_owned());
    }
    let warm = bed.backend.capabilities().snapshot;
    match bed.builder(&bed.name).warm(warm).start().await {
        Err(e)
            if matches!(e.kind(), ErrorKind::HostUnsupported | ErrorKind::BackendUnavailable) =>
        {
            Err(e.report())
        }
        started => Ok(started.unwrap_or_else(|e| panic!("{}", e.report()))),
    }
}

async fn run(bed: &Bed, vm: Vm) -> Result<()> {
    let began = Instant::now();
    let done = |what: &str| told(bed.backend, what, began, "ok");
    what_the_host_has_is_there(bed, &vm).await?;
    nobody_writes_to_it(bed, &vm).await?;
    done("what_the_host_has_is_there_and_nobody_writes_to_it");
    content_stays_over_a_reboot(bed, &vm).await?;
    done("content_stays_over_a_reboot");
    if bed.backend.capabilities().snapshot {
        a_snapshot_has_its_own(bed, vm).await?;
        done("a_snapshot_has_its_own");
    } else {
        vm.destroy().await?;
    }
    if bed.backend.capabilities().snapshot {
        warm_starts_have_new_content(bed).await?;
        done("warm_starts_have_new_content");
    }
    Ok(())
}

/// Kinds, names, lengths of files, links and all bytes, as two numbers. The fake does not know that two
/// names are of one file.
fn survey(bed: &Bed, dir: &str) -> String {
    let links = if bed.has_guests() { "%n" } else { "" };
    format!(
        "cd '{dir}' && {{ find . -type f -printf '%p %s {links}\\0'; find . ! -type f -printf '%y %p %l\\0'; }} \
         | LC_ALL=C sort -z | sha256sum; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | sha256sum"
    )
}

/// A program of the host's, to compare with.
#[expect(
    clippy::disallowed_methods,
    reason = "what the guest has is compared with what the host has"
)]
fn here(program: &str) -> Command {
    Command::new(program)
}

async fn what_the_host_has_is_there(bed: &Bed, vm: &Vm) -> Result<()> {
    // The host has no directory to mount the inner one on.
    let (inner, outer) = (bed.plain().join("in/side"), bed.plain().join("in"));
    std::fs::create_dir_all(inner).unwrap();
    let line = survey(bed, bed.plain().to_str().unwrap());
    let asked = here("sh").args(["-c", &line]).output().unwrap();
    std::fs::remove_dir_all(outer).unwrap();
    assert!(asked.status.success(), "{asked:?}");
    let asked = String::from_utf8(asked.stdout).unwrap();
    let look = survey(bed, PLAIN).replace("find .", "find . -path ./in/side/run -prune -o");
    let look = if bed.has_guests() { look } else { survey(bed, PLAIN) };
    assert_eq!(vm.ssh(&look).await?.trim(), asked.trim());
    assert_eq!(vm.ssh(&format!("cat {PLAIN}/word")).await?, "first");
    for (at, kept) in [(ODD, true), (HOME, false), (INNER, false), (LINKED, false)] {
        let run = vm.command("sh").arg(format!("{at}/run")).run().await?;
        assert_eq!(run.stdout_text(), "ran", "{at}");
        let ran = vm.command(format!("{at}/run")).output().await?;
        assert_eq!(ran.status.success(), kept, "{at}: {ran:?}");
    }
    Ok(())
}

async fn nobody_writes_to_it(bed: &Bed, vm: &Vm) -> Result<()> {
    if !bed.has_guests() {
        return Ok(());
    }
    let modes = "stat -c '%a %U:%G %F' . noise empty empty/7";
    let asked = "555 root:root directory\n444 root:root regular file\n\
                 555 root:root directory\n444 root:root regular file";
    assert_eq!(vm.ssh(&format!("cd {PLAIN} && {modes}")).await?, asked);
    for line in [
        format!("touch {PLAIN}/new"),
        format!("rm -f {PLAIN}/noise"),
        format!("chmod 777 {PLAIN}"),
        format!("mount -o remount,rw {PLAIN}"),
        format!("echo x > $(findmnt -fno SOURCE {PLAIN})"),
    ] {
        let tried = vm.command("sh").args(["-c", &line]).sudo().output().await?;
        assert!(!tried.status.success(), "{line} was done");
    }
    // The user's home is the user's, whatever is mounted in it.
    vm.ssh("touch ~/mine && [ -f ~/.bashrc ]").await?;
    assert_eq!(vm.ssh("systemctl is-system-running --wait").await?, "running");
    Ok(())
}

async fn word(vm: &Vm) -> Result<String> {
    let all = format!("[ -f {HOME}/run ] && [ -f {INNER}/run ] && [ -f {LINKED}/run ]");
    vm.ssh(&format!("{all} && cat {PLAIN}/word")).await
}

async fn content_stays_over_a_reboot(bed: &Bed, vm: &Vm) -> Result<()> {
    bed.say("second");
    vm.reboot().await?;
    assert_eq!(word(vm).await?, "first", "it is the same start");
    assert_eq!(vm.command(format!("{ODD}/run")).run().await?.stdout_text(), "ran");
    is_whole(bed, vm).await
}

/// It has each fixture once, and nothing failed for them.
async fn is_whole(bed: &Bed, vm: &Vm) -> Result<()> {
    if bed.has_guests() {
        assert_eq!(vm.ssh("grep -c ^LABEL=fleetbox /etc/fstab").await?, "5");
        assert_eq!(vm.ssh("systemctl is-system-running --wait").await?, "running");
    }
    Ok(())
}

async fn a_snapshot_has_its_own(bed: &Bed, vm: Vm) -> Result<()> {
    let saved = vm.snapshot(&unique("snap")).await?;
    bed.say("third");
    let fork = saved.fork(unique("fork"))?.ephemeral(true).start().await?;
    vm.revert().await?;
    for vm in [&vm, &fork] {
        assert_eq!(word(vm).await?, "first");
        // What was not read before the snapshot, too.
        let sum = vm.ssh(&format!("sha256sum < {PLAIN}/noise")).await?;
        let noise = std::fs::File::open(bed.plain().join("noise"))?;
        let asked = here("sha256sum").stdin(noise).output()?;
        assert_eq!(sum.as_bytes(), asked.stdout.trim_ascii());
    }
    fork.destroy().await?;
    // The one that was taken back runs on its memory.
    vm.destroy().await?;
    saved.remove()
}

fn goldens() -> Vec<String> {
    let all = fleetbox::snapshots().unwrap().into_iter().map(Result::unwrap);
    all.filter(fleetbox::Snapshot::is_golden).map(|golden| golden.name().to_owned()).collect()
}

async fn warm_starts_have_new_content(bed: &Bed) -> Result<()> {
    let warm = |name: &str| bed.builder(name).warm(true);
    bed.say("warm");
    let first = warm(&unique("warm")).ephemeral(true).start().await?;
    assert_eq!(word(&first).await?, "warm");
    let before = goldens();
    bed.say("warmer");
    let name = unique("warm");
    let second = warm(&name).start().await?;
    let booted = second.timings().stages().iter().any(|(stage, _)| stage.as_str() == "firmware");
    assert!(!booted, "other content made a boot");
    assert_eq!(goldens(), before, "other content made another golden machine");
    assert_eq!(word(&second).await?, "warmer");
    assert_eq!(word(&first).await?, "warm", "it has its own");
    assert_eq!(second.command(format!("{ODD}/run")).run().await?.stdout_text(), "ran");
    nobody_writes_to_it(bed, &second).await?;
    first.destroy().await?;

    // The next start boots it, as one that booted before, and has what is there then.
    bed.say("booted");
    second.stop().await?;
    let second = Vm::start(&name).await?;
    assert_eq!(word(&second).await?, "booted");
    assert_eq!(second.command(format!("{ODD}/run")).run().await?.stdout_text(), "ran");
    is_whole(bed, &second).await?;
    second.destroy().await?;
    members_have_the_same(bed).await
}

async fn members_have_the_same(bed: &Bed) -> Result<()> {
    let cluster = Cluster::builder(unique("alike"))
        .size(2)
        .backend(bed.backend)
        .memory_mib(MEMORY_MIB)
        .cpus(CPUS)
        .warm(true)
        .every(|vm| vm.ephemeral(true))
        .fixture(bed.plain(), PLAIN)
        .fixtures([(bed.tools(), ODD), (bed.tools(), HOME), (bed.tools(), INNER)])
        .fixture(bed.tools(), LINKED)
        .start()
        .await?;
    for vm in &cluster {
        assert_eq!(word(&vm).await?, "booted", "{}", vm.name());
    }
    cluster.destroy().await
}
