//! Owns the life of a holder: entered before `main` in a re-executed process, it makes its
//! namespaces, forks, and holds one cluster until nobody needs it. It must not download, build or
//! speak SSH.
//!
//! ```text
//! spawner ──re-exec──► warden ──fork──► holder (pid 1 of its pid namespace)
//!                        │                ├─ thread "network" in the cluster's network namespace
//!                        │                └─ monitors, killed by the kernel when the holder dies
//!                        └─ waits, then removes what is left on disk
//! ```

pub(crate) mod cleanup;
mod log;
mod server;
mod state;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::PROTOCOL;
use crate::control::message::{Envelope, Reply, Request, WireError};
use crate::error::{Error, ErrorKind, Result};
use crate::net::Network;
use crate::store::lock::{self, Lock};
use crate::store::paths::ClusterPaths;
use crate::store::timeline::Appender;
use crate::sys::namespace::{self, Forked, StepError, Tier};

/// The opening message is a few hundred bytes.
const OPENING_BYTES_MAX: usize = 64 * 1024;
/// The warden of a holder that just ended may still be tidying up.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Runs as holder and never returns. Called with one thread, before `main`.
pub(crate) fn enter(mut control: UnixStream) -> ! {
    namespace::ignore_sigpipe();
    crate::sys::fd::close_from(4);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // A fresh process always may; a failure would only leave it in its spawner's session.
    let _ = rustix::process::setsid();
    let opened = opening(&mut control).and_then(|dir| {
        let began = Instant::now();
        // Known to both sides of the fork.
        let label = format!("{}{}", dir.link_label(), std::process::id());
        namespaces()?;
        let forked = namespace::fork()
            .map_err(|e| Error::new(ErrorKind::HostUnsupported, "fork the holder").source(e))?;
        Ok((dir, label, began, forked))
    });
    match opened {
        Ok((dir, label, _, Forked::Parent(holder))) => {
            drop(control);
            cleanup::ward(&dir, &label, holder);
            namespace::exit_now(0)
        }
        Ok((dir, label, began, Forked::Child)) => {
            // tokio must not run on a thread whose locals were never set up by `main`.
            let run = std::thread::Builder::new()
                .name("holder".into())
                .spawn(move || run(&dir, label, began, control))
                .map(std::thread::JoinHandle::join);
            namespace::exit_now(i32::from(!matches!(run, Ok(Ok(Ok(()))))))
        }
        Err(error) => {
            refuse(&mut control, &error);
            namespace::exit_now(1)
        }
    }
}

/// Reads the opening message byte by byte, as what follows belongs to the forked holder.
fn opening(control: &mut UnixStream) -> Result<ClusterPaths> {
    let read = |control: &mut UnixStream| -> io::Result<Vec<u8>> {
        control.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut line = Vec::new();
        let mut byte = [0];
        while line.len() < OPENING_BYTES_MAX {
            control.read_exact(&mut byte)?;
            if byte == *b"\n" {
                break;
            }
            line.push(byte[0]);
        }
        control.set_read_timeout(None)?;
        Ok(line)
    };
    let line = read(control)
        .map_err(|e| Error::new(ErrorKind::HolderUnavailable, "hear from the spawner").source(e))?;
    let said = serde_json::from_slice(&line).map_err(not_understood)?;
    match envelope(said)?.request {
        Request::Open { dir, .. } => Ok(ClusterPaths::at(dir)),
        other => Err(Error::new(ErrorKind::Internal, format!("begin with {other:?}"))),
    }
}

/// A request, once its protocol is known to be ours: one of another release may have any form.
fn envelope(said: serde_json::Value) -> Result<Envelope> {
    let protocol = said["protocol"].as_u64();
    if let Some(protocol) = protocol.filter(|protocol| *protocol != u64::from(PROTOCOL)) {
        return Err(other_protocol(
            protocol,
            said["version"].as_str().unwrap_or("of another release"),
        ));
    }
    serde_json::from_value(said).map_err(not_understood)
}

fn not_understood(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let version = env!("CARGO_PKG_VERSION");
    Error::new(ErrorKind::ProtocolMismatch, "understand the request")
        .hint(format!("use fleetbox {version}, which this holder is; check FLEETBOX_HOLDER and the fleetbox on PATH"))
        .source(source)
}

/// The refusal for a peer of another protocol version.
fn other_protocol(protocol: u64, version: &str) -> Error {
    Error::new(
        ErrorKind::ProtocolMismatch,
        format!(
            "serve a caller that speaks protocol {protocol} (fleetbox {version}): this holder speaks {PROTOCOL} (fleetbox {})",
            env!("CARGO_PKG_VERSION"),
        ),
    )
    .hint(format!(
        "use fleetbox {0} for these VMs, or stop them with {0}'s `fleetbox down` and start them again",
        env!("CARGO_PKG_VERSION")
    ))
}

/// Enters the namespaces, as root if we are, else through a user namespace.
fn namespaces() -> Result<()> {
    let first = namespace::preferred_tier();
    let outcome = match namespace::enter(first) {
        // Root without `CAP_SYS_ADMIN`, as in a container, may still have user namespaces.
        Err(e) if first == Tier::Root && e.source.kind() == io::ErrorKind::PermissionDenied => {
            namespace::enter(Tier::User)
        }
        outcome => outcome,
    };
    outcome.map_err(|e| no_namespace(&e))
}

/// What to do when the kernel or a policy forbids user namespaces (`user_namespaces(7)`).
fn no_namespace(failed: &StepError) -> Error {
    let error = Error::new(ErrorKind::HostUnsupported, failed.step);
    match failed.source.raw_os_error() {
        // What it says for a disk would mislead here.
        Some(libc::ENOSPC) => {
            let limit = match failed.step {
                namespace::MAKE_PID => "user.max_pid_namespaces",
                _ => "user.max_user_namespaces",
            };
            return error
                .hint(format!("raise the limit: `sudo sysctl {limit}=15000`"))
                .source(io::Error::other(format!("the limit {limit} is reached")));
        }
        Some(libc::EPERM | libc::EACCES) => error.hint(
            "allow user namespaces: on Ubuntu 24.04 and later `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, \
             on older Debian `sudo sysctl kernel.unprivileged_userns_clone=1`, in Docker `--security-opt seccomp=unconfined`; or run as root",
        ),
        Some(libc::EINVAL | libc::ENOSYS) => {
            error.hint("use a kernel with user, pid and network namespaces, or run as root")
        }
        _ => error.hint("run `fleetbox doctor` to see what this host lacks"),
    }
    .source(io::Error::from(failed.source.kind()))
    .detail(failed.source.to_string())
}

fn refuse(control: &mut UnixStream, error: &Error) {
    let reply = Reply::Error(WireError::from(error));
    if let Ok(mut line) = serde_json::to_vec(&reply) {
        line.push(b'\n');
        // The spawner may be gone; then nobody wants to know.
        drop(control.write_all(&line));
    }
}

/// The holder proper: pid 1 of its namespace.
fn run(dir: &ClusterPaths, label: String, began: Instant, mut control: UnixStream) -> Result<()> {
    log::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::new(ErrorKind::Internal, "start a runtime").source(e))?;
    let outcome = runtime.block_on(async {
        let ready = make_ready(dir, began).await;
        match ready {
            Ok(ready) => server::serve(dir, label, ready, control).await,
            Err(error) => {
                ::log::error!("{}", error.report());
                refuse(&mut control, &error);
                Err(error)
            }
        }
    });
    // Pending blocking work must not keep a holder alive.
    runtime.shutdown_background();
    outcome
}

/// What a holder has before it says it is there.
struct Ready {
    _lock: Lock,
    listener: UnixListener,
    network: Network,
    listeners: crate::net::Listeners,
    timeline: Appender,
}

async fn make_ready(dir: &ClusterPaths, began: Instant) -> Result<Ready> {
    let lock_path = dir.holder_lock();
    let lock =
        tokio::time::timeout(LOCK_WAIT, lock::lock(&lock_path, || ())).await.map_err(|_| {
            Error::new(
                ErrorKind::Conflict,
                format!("hold {}: another holder has it", dir.dir().display()),
            )
            .hint("it may be hanging: see holder.log, end it with `fleetbox down`")
        })??;
    let (network, listeners) = Network::start()?;
    // `xtask bench` reads this line, and that of a tap.
    ::log::info!("the network is there after {} us", began.elapsed().as_micros());
    let listener = bind(&dir.socket())?;
    let timeline = Appender::open(dir)?;
    Ok(Ready { _lock: lock, listener, network, listeners, timeline })
}

/// Binds the control socket; a stale one is ours to replace, as we hold the lock.
fn bind(path: &Path) -> Result<UnixListener> {
    let bound = || -> io::Result<UnixListener> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bound().map_err(|e| Error::io("listen at", path, e))
}
