//! Owns starting a holder: which executable, and the handshake with it. It must not know what is
//! booted in it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::backend::select::which;
use crate::control::client::Hold;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::store::paths::ClusterPaths;
use crate::sys::reexec;

/// Namespaces and network take some 20 ms; the rest is for a busy machine.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(20);

/// Starts a holder for the cluster and waits until it serves.
pub(super) async fn holder(cluster: &ClusterPaths) -> Result<Hold> {
    let name = cluster.dir().file_name().unwrap_or_default().to_string_lossy();
    let executable = executable()?;
    let log_path = cluster.holder_log();
    let log = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(|e| Error::io("write", &log_path, e))?;
    let unavailable = |what: &str| {
        Error::new(
            ErrorKind::HolderUnavailable,
            format!("{what} the holder {}", executable.display()),
        )
    };
    let (mut child, socket) =
        reexec::spawn(&executable, &format!("fleetbox-holder {name}"), log.into()).map_err(
            |e| unavailable("start").hint("set FLEETBOX_HOLDER to a fleetbox executable").source(e),
        )?;
    // The child is the warden: it outlives us if the holder does, and is reaped if we live on.
    std::thread::Builder::new()
        .name("fleetbox-warden".into())
        .spawn(move || child.wait())
        .map_err(|e| unavailable("watch").source(e))?;
    let socket = socket
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(socket))
        .map_err(|e| unavailable("talk to").source(e))?;
    match tokio::time::timeout(HANDSHAKE_WAIT, Hold::open(socket, cluster.dir())).await {
        Ok(Ok(hold)) => Ok(hold),
        Ok(Err(e)) if e.kind() == ErrorKind::HolderDied => Err(unavailable("hear from")
            .hint("this executable does not start holders; set FLEETBOX_HOLDER to the fleetbox command")
            .detail(crate::console::tail(&log_path))),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(unavailable("hear in time from").detail(crate::console::tail(&log_path))),
    }
}

/// `FLEETBOX_HOLDER`, else this very executable by its life-before-main hook, else `fleetbox` on
/// PATH.
fn executable() -> Result<PathBuf> {
    if let Some(named) = env::path(env::HOLDER) {
        if !named.is_file() {
            return Err(Error::new(
                ErrorKind::InvalidSetting,
                format!("use FLEETBOX_HOLDER={}: there is no such file", named.display()),
            )
            .hint("unset it, or point it at the fleetbox command"));
        }
        return Ok(named);
    }
    if reexec::hooked() {
        return Ok(reexec::own_executable());
    }
    which("fleetbox").ok_or_else(|| {
        Error::new(ErrorKind::HolderUnavailable, "find an executable that can be the holder")
            .hint("install the fleetbox command, or set FLEETBOX_HOLDER to it")
    })
}
