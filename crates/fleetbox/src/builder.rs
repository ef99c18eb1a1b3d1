//! Owns [`VmBuilder`]: what may be said of a VM before it is started. It must not start it itself;
//! `launch` does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::Backend;
use crate::error::Result;
use crate::launch::{self, Origin, Packed, StartRequest, Trail};
use crate::progress::{Progress, ProgressSink};
use crate::spec::{Arch, Fixture, FixtureSpec, Name, VmSpec};
use crate::vm::Vm;

/// Describes a VM to start. Options count when the VM is created; an existing one keeps its own,
/// and says so.
#[derive(Debug, Clone)]
#[must_use = "nothing happens until `start`"]
#[expect(clippy::struct_excessive_bools, reason = "independent options, each set by name")]
pub struct VmBuilder {
    name: String,
    spec: VmSpec,
    spec_given: bool,
    backend: Option<Backend>,
    origin: Origin,
    index: Option<usize>,
    aliases: Vec<Name>,
    detached: bool,
    ephemeral: bool,
    host_routable: bool,
    timeout: Option<Duration>,
    progress: ProgressSink,
}

impl VmBuilder {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            spec: VmSpec::default(),
            spec_given: false,
            backend: None,
            origin: Origin::Boot,
            index: None,
            aliases: Vec::new(),
            detached: false,
            ephemeral: false,
            host_routable: false,
            timeout: None,
            progress: ProgressSink::default(),
        }
    }

    fn given(mut self, set: impl FnOnce(&mut VmSpec)) -> Self {
        set(&mut self.spec);
        self.spec_given = true;
        self
    }

    /// The image: an alias such as `debian-12` (the default), a URL, or a path.
    pub fn image(self, image: impl Into<String>) -> Self {
        self.given(|spec| spec.image = image.into())
    }

    /// The guest's architecture; the host's by default. Another one is emulated.
    pub fn arch(self, arch: Arch) -> Self {
        self.given(|spec| spec.arch = arch)
    }

    /// Virtual CPUs, 1 to 255; default 2.
    pub fn cpus(self, cpus: u32) -> Self {
        self.given(|spec| spec.cpus = cpus)
    }

    /// Memory in MiB, at least 128; default 4096.
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        self.given(|spec| spec.memory_mib = memory_mib)
    }

    /// Disk size in GiB; default 20. The disk is sparse: it takes what the guest writes.
    pub fn disk_gib(self, disk_gib: u32) -> Self {
        self.given(|spec| spec.disk_gib = disk_gib)
    }

    /// Whether KVM is to work inside the guest; default no, which promises nothing either way. Its
    /// `/dev/kvm` appears with its module, which a guest that runs udev loads by itself. Where
    /// [`nested_virt_supported`](crate::nested_virt_supported) says no, the start fails with
    /// [`ErrorKind::HostUnsupported`](crate::ErrorKind::HostUnsupported).
    pub fn nested_virt(self, nested_virt: bool) -> Self {
        self.given(|spec| spec.nested_virt = nested_virt)
    }

    /// Whether the disk keeps its word as a real one does; default no. What the guest flushed (`sync`,
    /// `fsync`) is then on the host's disk, safe from a crash of the host, and what it did not flush
    /// is lost at a [power cut](Vm::power_cut), with the disk as it was at the last flush. Without it
    /// a guest's flush keeps the disk whole when the VM is cut off, and what was written after it
    /// usually stays, which hides a program's missing `fsync`. It costs writes their speed.
    ///
    /// Where the backend cannot lose writes ([`Capabilities::disk_loss`](crate::Capabilities)), only
    /// the first half holds.
    pub fn durable(self, durable: bool) -> Self {
        self.given(|spec| spec.durable = durable)
    }

    /// Gives the guest a directory of the host, read-only, at an absolute path of its own; more with each
    /// call. [`Fixture`] says what the guest sees of it, and [`VmBuilder::fixtures`] takes those with
    /// modes.
    ///
    /// Which fixtures a VM has is frozen when it is made; what is in them is packed anew at each start that
    /// boots or restores it, and stays as it is until it ends, reboots and resets included. A snapshot has
    /// what was in them when it was made, and so have its forks until they are started again. A golden
    /// machine of [`VmBuilder::warm`] has none, so what is in them makes no other one.
    ///
    /// The start fails before any work with [`ErrorKind::InvalidPath`](crate::ErrorKind::InvalidPath) if
    /// `host` is no directory or has the state root in it, if `guest` is relative, has `..` in it, or is one
    /// the guest needs for itself, such as `/` or `/etc`; with
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec) if there are more than 16, or two at one path.
    /// One may lie inside another. It fails before the boot with `InvalidPath` if a fixture has what cannot be
    /// in one, or cannot be read, and with [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if files change
    /// while they are packed.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::Vm;
    ///
    /// let vm = Vm::builder("web").fixture("tests/site", "/srv/site").start().await?;
    /// assert!(vm.ssh("ls /srv/site").await?.contains("index.html"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn fixture(self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        self.fixtures([Fixture::new(host, guest)])
    }

    /// The same for several, or for such as [keep their modes](Fixture::preserve_modes).
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// use fleetbox::{Fixture, Vm};
    ///
    /// let tools = Fixture::new("target/debug", "/opt/tools").preserve_modes();
    /// let vm = Vm::builder("web").fixtures([tools]).start().await?;
    /// vm.ssh("/opt/tools/server --version").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn fixtures<I: IntoIterator<Item: Into<Fixture>>>(self, fixtures: I) -> Self {
        let fixtures = fixtures.into_iter().map(|fixture| FixtureSpec::of(fixture.into()));
        self.given(|spec| spec.fixtures.extend(fixtures))
    }

    /// The backend; `FLEETBOX_BACKEND` comes first, and without either QEMU is used.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Whether the VM, if it is made now, comes from a *golden machine* instead of a boot of its own;
    /// default no. The first warm start of a kind boots and saves one, once for all processes of the
    /// state root; every later start of the same kind restores it and makes it a machine of its own, in
    /// the time of a process. A kind is everything that shapes the machine: image, sizes, monitor,
    /// processor. The memory of what comes from one golden machine is shared until it is written to.
    ///
    /// The machine has a name, address, MAC, machine-id, host key, randomness and clock of its own. What
    /// it has in common with its golden machine is the boot: `/proc/sys/kernel/random/boot_id` and the
    /// uptime. A program of the guest's own image that keeps a random generator in its memory from
    /// before the snapshot has to be started anew (`systemctl restart`) where that matters; those that
    /// ask the kernel are right.
    ///
    /// Where machines cannot be saved ([`Capabilities::snapshot`](crate::Capabilities)), or the disk has
    /// no room, the VM boots as ever, and says so.
    pub fn warm(mut self, warm: bool) -> Self {
        self.origin = if warm { Origin::Warm } else { Origin::Boot };
        self
    }

    /// From a saved machine, which is as it was.
    pub(crate) fn restored(mut self, spec: &VmSpec, origin: Origin) -> Self {
        if !self.spec_given {
            self.spec = spec.clone();
        }
        self.origin = origin;
        self
    }

    pub(crate) fn at_index(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// A further name by which its fellows know it. One that no host can have is left out.
    pub(crate) fn alias(mut self, alias: &str) -> Self {
        self.aliases.extend(Name::new(&alias.replace('_', "-")));
        self
    }

    /// Whether the VM lives on when nobody holds it; default no.
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// Whether the VM's disk goes when nobody holds the VM any more, in whatever way that comes; default no.
    /// Until then it survives stops and power cuts as any other. Writes of such a VM are not made safe against a
    /// crash of the host.
    pub fn ephemeral(mut self, ephemeral: bool) -> Self {
        self.ephemeral = ephemeral;
        self
    }

    /// Whether the host is to reach the VM by an address of its own, as by `ping` and `curl`; default
    /// no. Only root can, and has to ask at each start of the cluster: it holds for all members, until
    /// the last of them has ended. [`Vm::host_address`] tells the address, out of a /24 of
    /// 198.19.0.0/16 that nothing on the host uses. Neither the host's forwarding nor its firewall is
    /// touched, and other hosts are not given a way. The VM sees the host as its gateway.
    ///
    /// Where it cannot be, the start fails with
    /// [`ErrorKind::HostUnsupported`](crate::ErrorKind::HostUnsupported), before any work if that is
    /// for want of root.
    pub fn host_routable(mut self, host_routable: bool) -> Self {
        self.host_routable = host_routable;
        self
    }

    /// How long the guest may take until it answers; by default `FLEETBOX_IP_WAIT_TIMEOUT`, else
    /// three minutes with KVM and ten without. It counts from the guest's own boot: waiting for memory is
    /// not in it. A boot that cannot come up any more is given up earlier.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Calls `f` with each event of the start. It runs on the runtime's threads: be quick.
    pub fn on_progress(mut self, f: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = ProgressSink::new(f);
        self
    }

    /// Starts the VM: creates it if it is missing, boots it if it is stopped, joins it if it runs,
    /// and waits until it answers over SSH. Two starts of the same name at once, in whatever
    /// processes, give the same machine.
    ///
    /// A machine that does not run yet waits until its memory is free: what the host has available, less
    /// what the machines of the state root, in whatever processes, may still take of theirs; or as much as
    /// `FLEETBOX_MEMORY_MIB` allows to all of them together (`unlimited`: nobody waits). First come, first
    /// served; who has to wait says so once, and waits for as long as it takes. Where no other machine runs
    /// it starts in any case. A program that has one machine and waits for a second, beside another that
    /// does the same, may wait for ever: what is needed together belongs in a
    /// [`Cluster`](crate::Cluster), which gets its memory in one step.
    ///
    /// Dropped before it is done, it leaves nothing running.
    ///
    /// # Errors
    /// Bad input is refused before any work ([`ErrorKind::InvalidName`](crate::ErrorKind::InvalidName),
    /// [`ErrorKind::InvalidSpec`](crate::ErrorKind::InvalidSpec), [`ErrorKind::InvalidSetting`](crate::ErrorKind::InvalidSetting),
    /// [`ErrorKind::UnknownImage`](crate::ErrorKind::UnknownImage)); then what the host lacks
    /// ([`ErrorKind::HostUnsupported`](crate::ErrorKind::HostUnsupported), [`ErrorKind::BackendUnavailable`](crate::ErrorKind::BackendUnavailable)); last
    /// [`ErrorKind::BootFailed`](crate::ErrorKind::BootFailed), which names the stage reached and shows the console's tail.
    pub async fn start(self) -> Result<Vm> {
        launch::start(self.request()?).await.and_then(Vm::launched)
    }

    /// The same options for another VM.
    pub(crate) fn named(&self, name: &Name) -> Self {
        Self { name: name.to_string(), ..self.clone() }
    }

    /// What is asked for; only the name is checked.
    pub(crate) fn request(self) -> Result<StartRequest> {
        Ok(StartRequest {
            name: Name::new(&self.name)?,
            cluster: None,
            index: self.index,
            aliases: self.aliases,
            spec: self.spec,
            spec_given: self.spec_given,
            backend: self.backend,
            origin: self.origin,
            detached: self.detached,
            ephemeral: self.ephemeral,
            host_routable: self.host_routable,
            timeout: self.timeout,
            progress: self.progress,
            trail: Trail::default(),
            queue: Arc::default(),
            packed: Packed::default(),
            memory: None,
        })
    }
}
