//! Owns [`Vm`]: what a user holds; `power` has its buttons, `disk` makes its
//! disk bad, `network` has more ways to its ports. Every
//! call hands on to the part that does the work; nothing here knows how.

mod disk;
mod evidence;
mod held;
mod network;
mod power;
mod snapshot;

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::builder::VmBuilder;
use crate::control::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::holder::cleanup;
use crate::launch::Launched;
use crate::spec::{Arch, Fixture, Name};
use crate::ssh::keys::{self, KeyPair};
use crate::ssh::{self, Command, Session, Target, copy};
use crate::store::lock;
use crate::store::paths::{ClusterPaths, MemberPaths, Paths};
use crate::store::place::{self, Placed};
use crate::store::record::VmRecord;
use crate::timings::Timings;

pub use self::disk::{Disk, DiskImpairment};
use self::held::Held;
pub(crate) use self::power::{JUMP_MS_MAX, STOP_GRACE};

/// A flood is kept to that by the holder.
const CONSOLE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A Linux machine: a real kernel, systemd and sshd, to run commands in, copy to, connect to and
/// break.
///
/// A handle is cheap to clone. A VM started by a library call is *bound*: it ends when the last
/// handle to it, in whatever process, is dropped or its process dies, be it by `kill -9`; its disk
/// stays for the next start unless it is [ephemeral](VmBuilder::ephemeral). A
/// [detached](VmBuilder::detached) one lives on until it is stopped.
///
/// Every `async` call may be dropped at any time; what it was doing in the guest is ended.
///
/// ```no_run
/// # async fn example() -> fleetbox::Result<()> {
/// use fleetbox::Vm;
///
/// let vm = Vm::builder("web").memory_mib(1024).start().await?;
/// println!("{}", vm.ssh("uname -a").await?);
/// vm.command("systemctl").args(["restart", "nginx"]).sudo().run().await?;
/// vm.copy_from("/var/log", "logs").await?;
/// vm.destroy().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Vm {
    inner: Arc<Inner>,
}

struct Inner {
    record: VmRecord,
    cluster: ClusterPaths,
    client: Client,
    session: Session,
    held: Mutex<Option<Held>>,
    timings: Timings,
}

/// Whether a VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It runs; the guest may still be booting.
    Running,
    /// It runs, but its processors stand still until [`Vm::resume`].
    Paused,
    /// It does not run; its disk is there.
    Stopped,
}

impl State {
    /// `running`, `paused` or `stopped`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is fixed about a VM, and whether it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VmInfo {
    /// The VM's name.
    pub name: String,
    /// The cluster it belongs to: the one it was started in, for a VM started alone its name without
    /// a trailing `-<digits>`.
    pub cluster: String,
    /// Whether it runs.
    pub state: State,
    /// Its address in the cluster's network, the same at every start.
    pub address: Ipv4Addr,
    /// Where the host reaches it while it runs, if that was [asked for](VmBuilder::host_routable).
    pub host_address: Option<Ipv4Addr>,
    /// The image it was created from, as it was named.
    pub image: String,
    /// Its processor's architecture.
    pub arch: Arch,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk size in GiB.
    pub disk_gib: u32,
    /// Whether KVM is to work inside it.
    pub nested_virt: bool,
    /// Whether a power cut loses what the guest did not flush, as
    /// [`VmBuilder::durable`](crate::VmBuilder::durable) says.
    pub durable: bool,
    /// The directories of the host that it has.
    pub fixtures: Vec<Fixture>,
    /// The user commands run as.
    pub user: String,
    /// When it was created, RFC 3339 in UTC.
    pub created_at: String,
    /// The process that holds it while it runs, where the system tells.
    pub holder_pid: Option<u32>,
}

impl Vm {
    /// Starts describing a VM. Nothing happens until [`VmBuilder::start`].
    pub fn builder(name: impl Into<String>) -> VmBuilder {
        VmBuilder::new(name.into())
    }

    /// Starts the VM of that name with default options: creates it if it is missing, boots it if
    /// it is stopped, joins it if it runs.
    ///
    /// # Errors
    /// As [`VmBuilder::start`].
    pub async fn start(name: impl Into<String>) -> Result<Self> {
        Self::builder(name).start().await
    }

    /// A handle to an existing VM, running or not, without holding it: it may end at any time.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, with the nearest names.
    pub fn find(name: &str) -> Result<Self> {
        let name = Name::new(name)?;
        let paths = Paths::from_env()?;
        match place::find(&paths, &name)? {
            Some(Placed { cluster, record }) => Self::placed(&paths, cluster, record),
            None => Err(crate::listing::not_found(&paths, &name)),
        }
    }

    /// A handle to the VM of that record, without holding it.
    pub(crate) fn placed(paths: &Paths, cluster: ClusterPaths, record: VmRecord) -> Result<Self> {
        let client = Client::new(cluster.socket());
        let session = session(&record, &client, keys::installation_key(paths)?);
        let (held, timings) = (Mutex::new(None), Timings::start());
        Ok(Self { inner: Arc::new(Inner { record, cluster, client, session, held, timings }) })
    }

    pub(crate) fn launched(launched: Launched) -> Result<Self> {
        let Launched { record, cluster, client, session, hold, timings } = launched;
        let held = Mutex::new(Some(Held::new(hold, record.name.clone(), &session)?));
        Ok(Self { inner: Arc::new(Inner { record, cluster, client, session, held, timings }) })
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.record.name.as_str()
    }

    /// The VM's address in its cluster's network. The host has no route to it: use
    /// [`Vm::connect`] or [`Vm::forward`], or as root [`Vm::host_address`].
    #[must_use]
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(self.inner.record.address)
    }

    /// What is fixed about the VM, and its state now.
    ///
    /// # Errors
    /// If the holder cannot be asked.
    pub async fn info(&self) -> Result<VmInfo> {
        let status = self.inner.client.find().await.map_err(|e| self.mine(e))?;
        Ok(crate::listing::info(&self.inner.record, status.as_ref()))
    }

    /// Whether the VM runs.
    ///
    /// # Errors
    /// If the holder cannot be asked.
    pub async fn state(&self) -> Result<State> {
        self.info().await.map(|info| info.state)
    }

    /// How long each stage of the start took that made this handle.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.inner.timings
    }

    /// Runs a line of shell in the guest and returns what it wrote to standard output, decoded
    /// lossily, without white space at its end.
    ///
    /// # Errors
    /// [`ErrorKind::CommandFailed`] with the [output](Error::output) if it does not succeed.
    pub async fn ssh(&self, command: &str) -> Result<String> {
        ssh::ssh(&self.inner.session, command).await.map_err(|e| self.mine(e))
    }

    /// A program to run in the guest, in the manner of [`std::process::Command`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        Command::new(self.inner.session.clone(), program)
    }

    /// A line of shell to run in the guest, with all that [`Command`] offers.
    #[must_use]
    pub fn shell(&self, line: impl AsRef<OsStr>) -> Command {
        Command::shell(self.inner.session.clone(), line)
    }

    /// Copies a file or directory from the host into the guest. An existing guest directory takes
    /// it in under its own name; otherwise `guest` becomes its name, in a directory that must
    /// exist. Modes and times are kept, owners are not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidPath`] before any work if `guest` is relative or `host` is missing;
    /// [`ErrorKind::Copy`] if the guest refuses.
    pub async fn copy_to(&self, host: impl AsRef<Path>, guest: &str) -> Result<()> {
        copy::copy_to(&self.inner.session, host.as_ref(), guest).await.map_err(|e| self.mine(e))
    }

    /// Copies a file or directory from the guest to the host, by the same rules as
    /// [`Vm::copy_to`]. What a hostile guest sends cannot write outside the destination.
    ///
    /// # Errors
    /// As [`Vm::copy_to`].
    pub async fn copy_from(&self, guest: &str, host: impl AsRef<Path>) -> Result<()> {
        copy::copy_from(&self.inner.session, guest, host.as_ref()).await.map_err(|e| self.mine(e))
    }

    /// A connection to a TCP port of the guest. It needs no route: the holder opens it inside the
    /// cluster's network and hands it over.
    ///
    /// # Errors
    /// [`ErrorKind::Connect`] if nothing listens there; [`ErrorKind::NotRunning`].
    pub async fn connect(&self, port: u16) -> Result<TcpStream> {
        dial(&self.inner.client, &self.inner.record.name, port).await.map_err(|e| self.mine(e))
    }

    /// A loopback address of the host that leads to a TCP port of the guest. It lasts until the VM
    /// ends; asked again, it is the same.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`].
    pub async fn forward(&self, port: u16) -> Result<SocketAddr> {
        self.forward_at(port, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// [`Vm::forward`] at a loopback address of the caller's choice; port 0 is any free one.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if the port is taken, [`ErrorKind::InvalidSpec`] if the address is
    /// not a loopback one.
    pub async fn forward_at(&self, port: u16, listen: SocketAddr) -> Result<SocketAddr> {
        let name = &self.inner.record.name;
        self.inner.client.forward(name, port, listen).await.map_err(|e| self.mine(e))
    }

    /// What the guest wrote to its serial console since it was last started, byte for byte, at most the last
    /// 64 MiB. It may hold anything: show it through [`crate::harmless`].
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; a VM that never ran has an empty console.
    pub async fn console(&self) -> Result<Vec<u8>> {
        let path = self.member().console();
        let read = tokio::task::spawn_blocking({
            let path = path.clone();
            move || crate::console::end(&path, CONSOLE_BYTES_MAX)
        });
        let read = read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        read.map_err(|e| self.mine(Error::io("read", &path, e)))
    }

    /// The file [`Vm::console`] reads, for following it. Of a console that grows beyond 64 MiB the beginning is
    /// given back to the disk: it reads as zeros then.
    #[must_use]
    pub fn console_path(&self) -> std::path::PathBuf {
        self.member().console()
    }

    /// The OpenSSH client's configuration for this VM: an entry for `ssh -F` or
    /// `~/.ssh/config`, with the pinned host key. `fleetbox` is the path of the command to dial
    /// through.
    ///
    /// # Errors
    /// If the installation's key cannot be read.
    pub fn ssh_config(&self, fleetbox: &Path) -> Result<String> {
        let paths = Paths::from_env()?;
        keys::installation_key(&paths)?;
        Ok(crate::listing::ssh_config(&self.inner.record, &self.member(), &paths, fleetbox))
    }

    /// Ends the VM at once and deletes it, disk and all. Does nothing if it is gone already.
    ///
    /// # Errors
    /// If its files cannot be removed.
    pub async fn destroy(&self) -> Result<()> {
        let _starter = match lock::lock(&self.inner.cluster.lock(), || ()).await {
            // Without the directory there is nothing to destroy.
            Err(_) if !self.inner.cluster.dir().exists() => return Ok(()),
            lock => lock.map_err(|e| self.mine(e))?,
        };
        self.stop_within(Duration::ZERO).await?;
        cleanup::remove_member(self.member().dir())
            .and_then(|()| cleanup::remove_if_empty(&self.inner.cluster))
            .map_err(|e| self.mine(e))
    }

    /// Its place among the members of its cluster, which decides its address.
    pub(crate) fn index(&self) -> usize {
        self.inner.record.index
    }

    fn member(&self) -> MemberPaths {
        self.inner.cluster.member(&self.inner.record.name)
    }

    fn mine(&self, error: Error) -> Error {
        error.vm(self.name())
    }

    /// Lets go of the VM without ending a detached one; a bound one ends if no other handle holds
    /// it. The same as dropping, but the holder has heard of it when this returns.
    #[expect(clippy::unused_async, reason = "it may come to wait for the holder's word")]
    pub async fn release(self) {
        self.let_go();
    }

    /// [`Vm::release`] of all clones.
    pub(crate) fn let_go(&self) {
        self.inner.session.close();
        drop(self.inner.held.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("name", &self.name()).field("address", &self.address()).finish()
    }
}

/// Sends a connection over a unix socket to the process at its other end, as the OpenSSH client
/// expects it of a `ProxyCommand` with `ProxyUseFdpass yes` (`ssh_config(5)`).
///
/// # Errors
/// If `socket` is no unix socket, or its other end is gone.
///
/// ```no_run
/// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
/// let connection = vm.connect(22).await?;
/// fleetbox::pass_connection(std::io::stdout(), &connection)?;
/// # Ok(())
/// # }
/// ```
pub fn pass_connection(socket: impl AsFd, connection: &TcpStream) -> std::io::Result<()> {
    // One byte has to go along (unix(7)).
    crate::sys::fd::send(socket.as_fd(), &[0], Some(connection.as_fd())).map(|_| ())
}

/// The SSH session of a VM; nothing is dialled yet.
pub(crate) fn session(record: &VmRecord, client: &Client, client_key: Arc<KeyPair>) -> Session {
    let (client, vm) = (client.clone(), record.name.clone());
    Session::new(Target {
        vm: record.name.to_string(),
        user: record.user.clone(),
        client_key,
        host_key: record.host_key.clone(),
        dial: Arc::new(move |port| {
            let (client, vm) = (client.clone(), vm.clone());
            Box::pin(async move { dial(&client, &vm, port).await })
        }),
    })
}

async fn dial(client: &Client, vm: &Name, port: u16) -> Result<TcpStream> {
    let fd = client.connect(vm, port).await?;
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).map_err(|e| {
        Error::new(ErrorKind::Connect, format!("use the connection to port {port}")).source(e)
    })
}
