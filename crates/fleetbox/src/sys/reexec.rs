//! Owns starting this executable again as another part of fleetbox, before its `main`, and the
//! guards that keep that from ever repeating. It must not know what that part does.
//!
//! Guards: a variable with a random token, removed before anything else happens; the same token
//! must come over the inherited socket; the arguments name a test that does not exist, so that an
//! executable without the hook, run by mistake, does nothing.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::env;
use crate::sys::fd;

/// Where the child finds its end of the control connection.
const CONTROL_FD: RawFd = 3;
const TOKEN_BYTES: usize = 32;
/// The spawner writes the token before it execs, so it is there at once.
const TOKEN_WAIT: Duration = Duration::from_secs(5);

/// `env::HOLDER_TOKEN`, as C has it.
const TOKEN_NAME: &CStr = c"FLEETBOX_HOLDER_TOKEN";

static HOOKED: AtomicBool = AtomicBool::new(false);

ctor::declarative::ctor! {
    #[ctor(unsafe)]
    fn hook() {
        before_main();
    }
}

/// Runs before `main` of every executable that links this library. Without the variable it costs
/// one environment look-up.
fn before_main() {
    HOOKED.store(true, Ordering::Relaxed);
    // `std::env` is fine this early on glibc and macOS, but a plain getenv is certain everywhere.
    // SAFETY: the name is NUL-terminated; the result is only compared with null.
    if unsafe { libc::getenv(TOKEN_NAME.as_ptr()) }.is_null() {
        return;
    }
    let token = std::env::var(env::HOLDER_TOKEN).unwrap_or_default();
    // SAFETY: nothing but this constructor runs yet, so no other thread reads the environment.
    unsafe { std::env::remove_var(env::HOLDER_TOKEN) };
    if let Some(control) = genuine(&token) {
        crate::holder::enter(control);
    }
}

/// Whether this executable has the hook, and so can be its own holder.
pub(crate) fn hooked() -> bool {
    HOOKED.load(Ordering::Relaxed)
}

/// This executable, also when its file was replaced meanwhile, as a rebuild does.
pub(crate) fn own_executable() -> PathBuf {
    if cfg!(target_os = "linux") {
        PathBuf::from("/proc/self/exe")
    } else {
        std::env::current_exe().unwrap_or_else(|_| PathBuf::from("fleetbox"))
    }
}

/// The control connection, if the token of the variable also comes over it.
fn genuine(token: &str) -> Option<UnixStream> {
    if token.len() != TOKEN_BYTES || !fd::is_open(CONTROL_FD) {
        return None;
    }
    let mut control = UnixStream::from(fd::adopt(CONTROL_FD));
    let mut seen = [0; TOKEN_BYTES];
    let read = control
        .set_read_timeout(Some(TOKEN_WAIT))
        .and_then(|()| control.read_exact(&mut seen))
        .and_then(|()| control.set_read_timeout(None));
    if read.is_ok() && seen == token.as_bytes() {
        return Some(control);
    }
    // Not ours: the fd belongs to whatever this process really is.
    std::mem::forget(OwnedFd::from(control));
    None
}

/// Starts `executable` as a holder. Returns the child, which forks and stays as the holder's
/// warden, and our end of the control connection.
pub(crate) fn spawn(
    executable: &Path,
    title: &str,
    log: OwnedFd,
) -> io::Result<(Child, UnixStream)> {
    use std::io::Write;
    let (mut ours, theirs) = UnixStream::pair()?;
    let token = random_token()?;
    ours.write_all(token.as_bytes())?;
    #[expect(clippy::disallowed_methods, reason = "processes are started here")]
    let mut command = Command::new(executable);
    command
        .arg0(title)
        .args(["--exact", "__fleetbox_holder__"])
        .env(env::HOLDER_TOKEN, &token)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    fd::inherit(&mut command, vec![(theirs.into(), CONTROL_FD)]);
    let child = command.spawn()?;
    Ok((child, ours))
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0_u8; TOKEN_BYTES / 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
