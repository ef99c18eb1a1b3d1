//! Owns what waits in a guest while it is saved, to be told afterwards who it is: its program, and
//! starting it. What it is told is the holder's. It must not run in the guest a moment longer.

use crate::error::{Error, ErrorKind, Result};
use crate::ssh::{Command, Session};
use crate::sys::random;

/// Runs in the guest's own Python, which cloud-init is written in. It mounts fixtures as a boot does.
pub(super) const PROGRAM: &str =
    concat!(include_str!("../prepare/mount.py"), "\n\n", include_str!("waiter.py"));
/// Enterprise Linux 8 keeps its own out of the way.
const START: &str =
    "exec \"$(command -v python3 || echo /usr/libexec/platform-python)\" -I -S - 2>&1";
/// What it says when it waits.
const WAITS: &str = "waits";

/// Lets the guest with that MAC wait, and flush each write while it does, if asked to. Returns what it
/// knows who may tell it.
pub(super) async fn start(session: &Session, mac: &str, write_through: bool) -> Result<String> {
    let token = random::hex::<16>()?;
    let mac = mac.to_ascii_lowercase();
    let write_through = if write_through { "True" } else { "False" };
    let program =
        format!("TOKEN = '{token}'\nMAC = '{mac}'\nWRITE_THROUGH = {write_through}\n{PROGRAM}");
    let output = Command::shell(session.clone(), START)
        .sudo()
        .stdin_bytes(program.into_bytes())
        .output()
        .await?;
    if output.stdout.trim_ascii() == WAITS.as_bytes() {
        return Ok(token);
    }
    Err(Error::new(ErrorKind::Unsupported, "prepare the guest for being saved")
        .hint("the guest needs Python 3 and sudo, as cloud images have them")
        .detail(crate::console::harmless(&output.stdout)))
}
