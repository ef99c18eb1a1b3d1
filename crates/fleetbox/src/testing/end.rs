//! Owns the end of a test's machines: by order, or by a watch over a body that does not yield.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::machines::Fleet;
use crate::error::{Error, ErrorKind, Result};
use crate::vm::Vm;

/// What a body that is told to end may take until it yields.
const YIELD_WAIT: Duration = Duration::from_secs(10);

/// Destroys them side by side.
pub(super) async fn destroy(vms: Vec<Vm>) -> Result<()> {
    let mut ends = JoinSet::new();
    for vm in vms {
        ends.spawn(async move { vm.destroy().await });
    }
    while let Some(end) = ends.join_next().await {
        end.map_err(|e| Error::new(ErrorKind::Internal, "destroy a VM").source(e))??;
    }
    Ok(())
}

/// Ends the machines of a body that blocks its thread, so that at least they do not go on.
pub(super) struct Watch {
    /// Dropping it ends the watch.
    _over: mpsc::Sender<()>,
}

impl Watch {
    pub(super) fn over(fleet: Fleet, timeout: Duration) -> Self {
        let (over, ended) = mpsc::channel();
        std::thread::spawn(move || {
            if ended.recv_timeout(timeout + YIELD_WAIT) == Err(RecvTimeoutError::Timeout) {
                end(&fleet);
            }
        });
        Self { _over: over }
    }
}

#[expect(clippy::print_stderr, reason = "a test that hangs has no other voice")]
fn end(fleet: &Fleet) {
    eprintln!("the test's time is up and it blocks its thread: its machines are ended");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map(|runtime| runtime.block_on(destroy(fleet.vms())));
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(e)) => eprintln!("failed to end them: {}", e.report()),
        Err(e) => eprintln!("failed to end them: {e}"),
    }
}
