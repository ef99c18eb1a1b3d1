//! Owns the caller's side: finding a live holder, one request and its reply, holding it. It must
//! not start holders; `launch` does.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

use super::PROTOCOL;
use super::frame::Frames;
use super::message::{
    ActiveFault, Booted, Broken, Envelope, Event, Fault, HolderStatus, Note, Outage, Reply, Request,
};
use crate::backend::{BootPlan, SavePlan};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;

/// A holder does no slow work before it answers, save booting, saving, stopping and connecting, which
/// carry their own times.
const REPLY_WAIT: Duration = Duration::from_secs(30);

/// A boot begins within that, and a restored guest is who it is to be: each step has a limit of its own in
/// the holder, which says more.
const BOOT_WAIT: Duration = Duration::from_mins(5);

/// A save reads and writes all of its machines' memory.
const SAVE_WAIT: Duration = Duration::from_mins(10);

/// The address of one cluster's holder. Cheap to copy around; every request opens a connection of
/// its own, so a caller can always be dropped without leaving half a conversation behind.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether a holder answers at all; `None` if there is none, or one that just ends and so hangs
    /// up.
    pub(crate) async fn find(&self) -> Result<Option<HolderStatus>> {
        match self.status().await {
            Ok(status) => Ok(Some(status)),
            Err(e) if matches!(e.kind(), ErrorKind::NotRunning | ErrorKind::HolderDied) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) async fn status(&self) -> Result<HolderStatus> {
        let mut frames = self.dial().await?;
        let pid = frames.peer_pid();
        match within(REPLY_WAIT, &mut frames, Request::Status, &self.socket).await? {
            Reply::Status(status) => Ok(HolderStatus { pid, ..status }),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn boot(&self, plan: BootPlan) -> Result<Booted> {
        let asked = self.ask(Request::Boot { plan: Box::new(plan) }, BOOT_WAIT).await;
        match asked.map_err(lost)?.0 {
            Reply::Booted(booted) => Ok(booted),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn detach(&self, vm: &Name) -> Result<()> {
        self.done(Request::Detach { vm: vm.clone() }, REPLY_WAIT).await.map_err(lost)
    }

    pub(crate) async fn stop(&self, vm: &Name, grace: Duration) -> Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.done(Request::Stop { vm: vm.clone(), grace_ms }, grace + REPLY_WAIT).await
    }

    pub(crate) async fn kill(&self, vm: &Name) -> Result<()> {
        self.done(Request::Kill { vm: vm.clone() }, REPLY_WAIT).await
    }

    pub(crate) async fn reset(&self, vm: &Name) -> Result<()> {
        self.done(Request::Reset { vm: vm.clone() }, REPLY_WAIT).await.map_err(|e| about(vm, e))
    }

    pub(crate) async fn pause(&self, vm: &Name) -> Result<()> {
        self.done(Request::Pause { vm: vm.clone() }, REPLY_WAIT).await.map_err(|e| about(vm, e))
    }

    pub(crate) async fn resume(&self, vm: &Name) -> Result<()> {
        self.done(Request::Resume { vm: vm.clone() }, REPLY_WAIT).await.map_err(|e| about(vm, e))
    }

    pub(crate) async fn set_balloon(&self, vm: &Name, mib: u32) -> Result<()> {
        let request = Request::Balloon { vm: vm.clone(), mib };
        self.done(request, REPLY_WAIT).await.map_err(|e| about(vm, e))
    }

    /// Lets the member stand still or be off until what is returned is ended or dropped.
    pub(crate) async fn outage(&self, vm: &Name, outage: Outage) -> Result<OutageHold> {
        let mut frames = self.dial().await.map_err(|e| about(vm, e))?;
        let request = Request::Outage { vm: vm.clone(), outage };
        match within(REPLY_WAIT, &mut frames, request, &self.socket).await? {
            Reply::Done => Ok(OutageHold { frames }),
            other => Err(unexpected(&other)),
        }
    }

    /// Keeps the holder alive for as long as the returned [`Hold`] lives, but no member.
    pub(crate) async fn hold_alone(&self) -> Result<Hold> {
        self.hold_with(None).await
    }

    pub(crate) async fn note(&self, vm: &Name, note: Note) -> Result<()> {
        let request = Request::Note { vm: vm.clone(), note };
        self.done(request, REPLY_WAIT).await.map_err(|e| about(vm, e))
    }

    pub(crate) async fn route_to_host(&self) -> Result<()> {
        self.done(Request::RouteToHost, REPLY_WAIT).await
    }

    /// Saves members as they are at one instant. Returns how long they stood still, and what runs.
    pub(crate) async fn save(&self, members: Vec<SavePlan>) -> Result<(Duration, Vec<BootPlan>)> {
        match self.ask(Request::Save { members }, SAVE_WAIT).await?.0 {
            Reply::Saved { paused_us, plans } => Ok((Duration::from_micros(paused_us), plans)),
            other => Err(unexpected(&other)),
        }
    }

    /// Copies a running member's own disk to an empty overlay on the same.
    pub(crate) async fn copy_disk(&self, vm: &Name, target: &Path) -> Result<()> {
        let request = Request::CopyDisk { vm: vm.clone(), target: target.to_owned() };
        self.done(request, SAVE_WAIT).await.map_err(|e| about(vm, e))
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.done(Request::Close, REPLY_WAIT).await
    }

    /// A socket connected to the guest's port from inside the cluster's network.
    pub(crate) async fn connect(&self, vm: &Name, port: u16) -> Result<OwnedFd> {
        let asked = self.ask(Request::Connect { vm: vm.clone(), port }, REPLY_WAIT).await;
        match asked.map_err(|e| about(vm, e))? {
            (Reply::Connected, Some(fd)) => Ok(fd),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// A datagram socket connected to the guest's port from inside the cluster's network.
    pub(crate) async fn connect_udp(&self, vm: &Name, port: u16) -> Result<OwnedFd> {
        let asked = self.ask(Request::ConnectUdp { vm: vm.clone(), port }, REPLY_WAIT).await;
        match asked.map_err(|e| about(vm, e))? {
            (Reply::Connected, Some(fd)) => Ok(fd),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// As [`Client::forward`], at any address of the host.
    pub(crate) async fn publish(
        &self,
        vm: &Name,
        port: u16,
        listen: SocketAddr,
    ) -> Result<SocketAddr> {
        let request = Request::Publish { vm: vm.clone(), port, listen };
        match self.ask(request, REPLY_WAIT).await.map_err(|e| about(vm, e))?.0 {
            Reply::Forwarded { address } => Ok(address),
            other => Err(unexpected(&other)),
        }
    }

    /// Has what passes the member's tap, or the bridge, written to `file` until what is returned is
    /// dropped.
    pub(crate) async fn capture(
        &self,
        vm: Option<&Name>,
        file: BorrowedFd<'_>,
    ) -> Result<CaptureHold> {
        let mut frames = self.dial().await?;
        let request = Request::Capture { vm: vm.cloned() };
        let asked = exchange_with(&mut frames, request, Some(file), &self.socket);
        match tokio::time::timeout(REPLY_WAIT, asked).await.map_err(|_| silent(&self.socket))?? {
            Reply::Done => Ok(CaptureHold { frames }),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn forward(
        &self,
        vm: &Name,
        port: u16,
        listen: SocketAddr,
    ) -> Result<SocketAddr> {
        let request = Request::Forward { vm: vm.clone(), port, listen };
        match self.ask(request, REPLY_WAIT).await.map_err(|e| about(vm, e))?.0 {
            Reply::Forwarded { address } => Ok(address),
            other => Err(unexpected(&other)),
        }
    }

    /// Keeps the holder and the member alive for as long as the returned [`Hold`] lives; the member
    /// need not be booted yet.
    pub(crate) async fn hold(&self, vm: &Name) -> Result<Hold> {
        self.hold_with(Some(vm.clone())).await
    }

    async fn hold_with(&self, vm: Option<Name>) -> Result<Hold> {
        let mut frames = self.dial().await?;
        exchange(&mut frames, Request::Hold { vm }, &self.socket).await.and_then(|reply| {
            match reply {
                Reply::Done => Ok(()),
                other => Err(unexpected(&other)),
            }
        })?;
        Ok(Hold { frames })
    }

    /// Breaks the network or a disk until what is returned is dropped, unless [`Client::keep_fault`] is asked.
    pub(crate) async fn fault(&self, fault: Fault) -> Result<FaultHold> {
        let mut frames = self.dial().await?;
        let request = Request::Fault { fault };
        match within(REPLY_WAIT, &mut frames, request, &self.socket).await? {
            Reply::Fault { id, seed } => Ok(FaultHold { id, seed, _connection: frames }),
            other => Err(unexpected(&other)),
        }
    }

    pub(crate) async fn keep_fault(&self, id: u64) -> Result<()> {
        self.done(Request::KeepFault { id }, REPLY_WAIT).await
    }

    pub(crate) async fn heal_fault(&self, id: u64) -> Result<()> {
        self.done(Request::HealFault { id }, REPLY_WAIT).await
    }

    pub(crate) async fn heal(&self, only: Option<Broken>) -> Result<()> {
        self.done(Request::Heal { only }, REPLY_WAIT).await
    }

    pub(crate) async fn faults(&self) -> Result<Vec<ActiveFault>> {
        match self.ask(Request::Faults, REPLY_WAIT).await?.0 {
            Reply::Faults(faults) => Ok(faults),
            other => Err(unexpected(&other)),
        }
    }

    async fn done(&self, request: Request, wait: Duration) -> Result<()> {
        match self.ask(request, wait).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: Request, wait: Duration) -> Result<(Reply, Option<OwnedFd>)> {
        let mut frames = self.dial().await?;
        let reply = within(wait, &mut frames, request, &self.socket).await?;
        Ok((reply, frames.take_fd()))
    }

    async fn dial(&self) -> Result<Frames> {
        match UnixStream::connect(&self.socket).await {
            Ok(socket) => Ok(Frames::new(socket)),
            // Reset: the holder ended before it came to us in its queue.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                ) =>
            {
                Err(Error::new(ErrorKind::NotRunning, "reach a holder: none is running")
                    .hint("start the VM first"))
            }
            Err(e) => Err(Error::new(
                ErrorKind::HolderUnavailable,
                format!("connect to {}", self.socket.display()),
            )
            .hint(
                "check who owns the state directory and its mode; see holder.log beside the socket",
            )
            .source(e)),
        }
    }
}

/// A capture that goes on while this is there.
#[derive(Debug)]
pub(crate) struct CaptureHold {
    frames: Frames,
}

impl CaptureHold {
    /// Ends it: how many frames it has, and how many were lost.
    pub(crate) async fn stop(mut self) -> Result<(u64, u64)> {
        self.frames.end().map_err(|e| died(Some(e)))?;
        match self.frames.receive().await {
            Ok(Some(Reply::Captured { frames, lost })) => Ok((frames, lost)),
            Ok(Some(Reply::Error(wire))) => Err(wire.into()),
            Ok(Some(other)) => Err(unexpected(&other)),
            Ok(None) => Err(died(None)),
            Err(e) => Err(died(Some(e))),
        }
    }
}

/// A member's outage, which goes on while this is there.
#[derive(Debug)]
pub(crate) struct OutageHold {
    frames: Frames,
}

impl OutageHold {
    /// Ends it, and returns when the member runs again.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.frames.end().map_err(|e| died(Some(e)))?;
        match self.frames.receive().await {
            Ok(Some(Reply::Done)) => Ok(()),
            Ok(Some(Reply::Error(wire))) => Err(wire.into()),
            Ok(Some(other)) => Err(unexpected(&other)),
            Ok(None) => Err(died(None)),
            Err(e) => Err(died(Some(e))),
        }
    }
}

/// A fault that is there while this is, or longer if it is kept.
#[derive(Debug)]
pub(crate) struct FaultHold {
    pub id: u64,
    pub seed: Option<u64>,
    _connection: Frames,
}

/// The right to a living holder: it ends when the last of these is dropped, unless detached.
#[derive(Debug)]
pub(crate) struct Hold {
    frames: Frames,
}

impl Hold {
    /// From the inherited connection of a holder this process just started: opens it.
    pub(crate) async fn open(socket: UnixStream, dir: &Path) -> Result<Self> {
        let mut frames = Frames::new(socket);
        let request = Request::Open { dir: dir.to_owned() };
        match exchange(&mut frames, request, dir).await? {
            Reply::Done => Ok(Self { frames }),
            other => Err(unexpected(&other)),
        }
    }

    /// The holder, in this process's numbering.
    pub(crate) fn holder_pid(&self) -> Option<u32> {
        self.frames.peer_pid()
    }

    /// Another hand on the connection: shutting it down lets go, whoever has the rest.
    pub(crate) fn socket(&self) -> Result<OwnedFd> {
        self.frames.socket().map_err(|e| {
            Error::new(ErrorKind::Internal, "keep a hand on the connection to the holder").source(e)
        })
    }

    /// The next event; the error says the holder died. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        match self.frames.receive().await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(died(None)),
            Err(e) => Err(died(Some(e))),
        }
    }
}

/// Where no holder is, a VM does not run, which says more.
fn about(vm: &Name, error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotRunning if error.vm_name().is_none() => Error::not_running(vm.as_str()),
        _ => error,
    }
}

/// Whoever boots or detaches holds the holder: if there is none, it died.
pub(crate) fn lost(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotRunning => died(None),
        _ => error,
    }
}

fn died(source: Option<io::Error>) -> Error {
    let error = Error::new(ErrorKind::HolderDied, "keep the holder: it ended, and its VMs with it")
        .hint("see holder.log in the cluster's directory; start the VM again");
    match source {
        Some(e) => error.source(e),
        None => error,
    }
}

async fn within(wait: Duration, frames: &mut Frames, request: Request, at: &Path) -> Result<Reply> {
    tokio::time::timeout(wait, exchange(frames, request, at)).await.map_err(|_| silent(at))?
}

fn silent(at: &Path) -> Error {
    Error::new(ErrorKind::HolderUnavailable, format!("hear from the holder at {}", at.display()))
        .hint("see holder.log beside the socket; end a hanging holder by its pid")
}

async fn exchange(frames: &mut Frames, request: Request, at: &Path) -> Result<Reply> {
    exchange_with(frames, request, None, at).await
}

async fn exchange_with(
    frames: &mut Frames,
    request: Request,
    fd: Option<BorrowedFd<'_>>,
    at: &Path,
) -> Result<Reply> {
    let envelope =
        Envelope { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned(), request };
    // A holder that refuses early closes its end while we still write; its reply says why.
    let sent = frames.send(&envelope, fd).await;
    match frames.receive().await {
        Ok(Some(Reply::Error(wire))) => Err(wire.into()),
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(died(sent.err())),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(Error::new(
            ErrorKind::ProtocolMismatch,
            format!("understand the holder at {}", at.display()),
        )
        .hint("it is of another release: stop its VMs with that release's `fleetbox down`, then start them again")
        .source(e)),
        Err(e) => Err(died(Some(e))),
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(ErrorKind::Internal, format!("make sense of the holder's reply {reply:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine's `destroy` failed when its holder was just about to end by itself.
    #[tokio::test]
    async fn a_holder_that_ends_with_us_in_its_queue_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("holder.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket);
        // Polled in this order: the connection is in the queue when the listener goes.
        let (dialled, ()) = tokio::join!(client.dial(), async { drop(listener) });
        assert_eq!(dialled.unwrap_err().kind(), ErrorKind::NotRunning);
    }
}
