//! Owns the holder's socket: who may ask, reading a request, sending the reply, and when the
//! holder's life is over. It must not do what is asked itself.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{WaitOptions, waitpid};
use tokio::net::{TcpListener, UdpSocket, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::Ready;
use super::state::State;
use crate::control::frame::Frames;
use crate::control::message::{Fault, Outage, Reply, Request, WireError};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{self, Captured, Listeners, Names, Rules};
use crate::spec::Name;
use crate::store::paths::ClusterPaths;
use crate::store::timeline::What;
use crate::sys::orphan::ended_child;

/// A peer that connects and says nothing is dropped.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// tokio reaps its own children at once; a zombie still there after this is an orphan that pid 1
/// inherited.
const ORPHAN_WAIT: Duration = Duration::from_secs(1);
/// Replies on their way when the holder ends.
const FAREWELL_WAIT: Duration = Duration::from_millis(200);

/// Serves until the holder's life is over, then ends its machines.
pub(super) async fn serve(
    dir: &ClusterPaths,
    label: String,
    ready: Ready,
    opener: std::os::unix::net::UnixStream,
) -> Result<()> {
    let Ready { _lock, listener, network, listeners, timeline } = ready;
    let internal = |e| Error::new(ErrorKind::Internal, "start serving").source(e);
    let names = Names::default();
    let state = State::new(dir.clone(), label, network, names.clone(), timeline);
    serve_guests(listeners, names, state.rules()).map_err(internal)?;
    let listener = UnixListener::from_std(listener).map_err(internal)?;
    opener.set_nonblocking(true).map_err(internal)?;
    let opener = Frames::new(UnixStream::from_std(opener).map_err(internal)?);
    tokio::spawn(reap_orphans());
    let mut life = state.life();
    let mut terminate = signal(SignalKind::terminate()).map_err(internal)?;
    // The spawner's connection holds from the start.
    if let Some(holding) = state.hold(None) {
        tokio::spawn(hold_connection(opener, state.clone(), holding));
    }
    log::info!("holds {}", dir.dir().display());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    tokio::spawn(connection(Frames::new(socket), state.clone()));
                }
                Err(e) => {
                    log::warn!("accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            _ = life.wait_for(|life| life.is_over()) => break,
            _ = terminate.recv() => break,
        }
    }
    log::info!("ends");
    // No new caller finds us from here on, and one that just did cannot hold us any more.
    state.close();
    drop(listener);
    drop(std::fs::remove_file(dir.socket()));
    state.kill_all().await;
    state.leave_host().await;
    state.note(None, What::HolderEnded);
    tokio::time::sleep(FAREWELL_WAIT).await;
    Ok(())
}

fn serve_guests(listeners: Listeners, names: Names, rules: Rules) -> std::io::Result<()> {
    let seen = net::Seen::default();
    let udp = UdpSocket::from_std(listeners.dns_udp)?;
    let tcp = TcpListener::from_std(listeners.dns_tcp)?;
    let resolver = net::Resolver { names, rules: rules.clone(), seen: seen.clone() };
    tokio::spawn(net::serve_dns(udp, tcp, resolver));
    match listeners.egress {
        Ok(listener) => {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(net::serve_egress(listener, rules, seen));
        }
        Err(why) => log::warn!(
            "guests cannot reach the world: this kernel cannot redirect their connections ({why})"
        ),
    }
    Ok(())
}

async fn reap_orphans() {
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    while children.recv().await.is_some() {
        while let Some(pid) = ended_child() {
            tokio::time::sleep(ORPHAN_WAIT).await;
            if ended_child() == Some(pid) {
                // Gone already is as good.
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }
}

async fn connection(mut frames: Frames, state: Arc<State>) {
    // In a user namespace only our own user maps to our id.
    let own = rustix::process::geteuid().as_raw();
    if frames.peer_uid().ok() != Some(own) {
        return;
    }
    let said = match tokio::time::timeout(REQUEST_WAIT, frames.receive()).await {
        Ok(Ok(Some(said))) => super::envelope(said),
        Ok(Err(e)) => Err(super::not_understood(e)),
        Ok(Ok(None)) | Err(_) => return,
    };
    let envelope = match said {
        Ok(envelope) => envelope,
        Err(error) => {
            drop(frames.send(&Reply::Error(WireError::from(&error)), None).await);
            return;
        }
    };
    if let Request::Hold { vm } = envelope.request {
        // Hanging up says that we end.
        if let Some(holding) = state.hold(vm) {
            hold_connection(frames, state, holding).await;
        }
        return;
    }
    if let Request::Fault { fault } = envelope.request {
        fault_connection(frames, &state, fault).await;
        return;
    }
    if let Request::Outage { vm, outage } = envelope.request {
        outage_connection(frames, &state, &vm, outage).await;
        return;
    }
    if let Request::Capture { vm } = envelope.request {
        capture_connection(frames, &state, vm.as_ref()).await;
        return;
    }
    let (reply, fd) = match answer(envelope.request, &state).await {
        Ok((reply, fd)) => (reply, fd),
        Err(error) => (Reply::Error(WireError::from(&error)), None),
    };
    if let Err(e) = frames.send(&reply, fd.as_ref().map(AsFd::as_fd)).await {
        log::debug!("a caller left before its reply: {e}");
    }
}

async fn answer(
    request: Request,
    state: &Arc<State>,
) -> Result<(Reply, Option<std::os::fd::OwnedFd>)> {
    let reply = match request {
        Request::Open { .. }
        | Request::Hold { .. }
        | Request::Fault { .. }
        | Request::Outage { .. }
        | Request::Capture { .. } => {
            return Err(Error::new(ErrorKind::ProtocolMismatch, "open a holder twice"));
        }
        Request::Detach { vm } => {
            state.detach(&vm)?;
            Reply::Done
        }
        Request::Boot { plan } => Reply::Booted(state.boot(*plan).await?),
        Request::Status => Reply::Status(state.status()),
        Request::Stop { vm, grace_ms } => {
            state.stop(&vm, Duration::from_millis(grace_ms)).await?;
            Reply::Done
        }
        Request::Kill { vm } => {
            state.kill(&vm).await?;
            Reply::Done
        }
        Request::Reset { vm } => {
            state.reset(&vm).await?;
            Reply::Done
        }
        Request::Pause { vm } => {
            state.pause(&vm).await?;
            Reply::Done
        }
        Request::Resume { vm } => {
            state.resume(&vm).await?;
            Reply::Done
        }
        Request::Balloon { vm, mib } => {
            state.set_balloon(&vm, mib).await?;
            Reply::Done
        }
        Request::Connect { vm, port } => {
            return Ok((Reply::Connected, Some(state.connect(&vm, port).await?)));
        }
        Request::ConnectUdp { vm, port } => {
            return Ok((Reply::Connected, Some(state.connect_udp(&vm, port).await?)));
        }
        Request::Forward { vm, port, listen } => {
            Reply::Forwarded { address: state.forward(&vm, port, listen).await? }
        }
        Request::Publish { vm, port, listen } => {
            Reply::Forwarded { address: state.publish(&vm, port, listen).await? }
        }
        Request::KeepFault { id } => {
            state.keep_fault(id).await?;
            Reply::Done
        }
        Request::HealFault { id } => {
            state.heal_fault(id).await?;
            Reply::Done
        }
        Request::Heal { only } => {
            state.heal(only.as_ref()).await?;
            Reply::Done
        }
        Request::Faults => Reply::Faults(state.active_faults().await),
        Request::Note { vm, note } => {
            state.note_for(&vm, &note)?;
            Reply::Done
        }
        Request::RouteToHost => {
            state.route_to_host().await?;
            Reply::Done
        }
        Request::Save { members } => {
            let (paused, plans) = state.save(members).await?;
            Reply::Saved { paused_us: u64::try_from(paused.as_micros()).unwrap_or(u64::MAX), plans }
        }
        Request::CopyDisk { vm, target } => {
            state.copy_disk(&vm, &target).await?;
            Reply::Done
        }
        Request::Close => {
            state.close();
            Reply::Done
        }
    };
    Ok((reply, None))
}

/// Sends events down a hold connection until the peer closes it.
async fn hold_connection(mut frames: Frames, state: Arc<State>, holding: super::state::Holding) {
    let mut events = state.events();
    if frames.send(&Reply::Done, None).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    if frames.send(&event, None).await.is_err() {
                        break;
                    }
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => break,
            },
            // A holding peer says nothing: anything from it is its end.
            said = frames.receive::<serde_json::Value>() => {
                if !matches!(said, Ok(Some(_))) {
                    break;
                }
            }
        }
    }
    drop(holding);
}

/// Breaks the network or a disk until the peer closes the connection.
async fn fault_connection(mut frames: Frames, state: &Arc<State>, fault: Fault) {
    let (id, seed) = match state.fault(fault).await {
        Ok(caused) => caused,
        Err(error) => {
            drop(frames.send(&Reply::Error(WireError::from(&error)), None).await);
            return;
        }
    };
    if frames.send(&Reply::Fault { id, seed }, None).await.is_ok() {
        // The peer says nothing more: anything from it is its end.
        while let Ok(Some(_)) = frames.receive::<serde_json::Value>().await {}
    }
    state.let_fault_go(id).await;
}

/// Lets a member be away until the peer ends its side of the connection.
async fn outage_connection(mut frames: Frames, state: &Arc<State>, vm: &Name, outage: Outage) {
    let away = match state.begin_outage(vm, outage).await {
        Ok(away) => away,
        Err(error) => {
            drop(frames.send(&Reply::Error(WireError::from(&error)), None).await);
            return;
        }
    };
    if frames.send(&Reply::Done, None).await.is_ok() {
        // The peer says nothing more: anything from it is its end.
        drop(frames.receive::<serde_json::Value>().await);
    }
    let reply = match state.end_outage(vm, away).await {
        Ok(()) => Reply::Done,
        Err(error) => {
            log::warn!("end the outage of {vm}: {}", error.report());
            Reply::Error(WireError::from(&error))
        }
    };
    // Whoever dropped it does not listen any more.
    drop(frames.send(&reply, None).await);
}

/// Writes what passes until the peer ends its side of the connection, then says what that came to.
async fn capture_connection(mut frames: Frames, state: &State, vm: Option<&Name>) {
    let started = match frames.take_fd() {
        Some(file) => state.capture(vm, file).await,
        None => Err(Error::new(ErrorKind::ProtocolMismatch, "capture without a file")),
    };
    let mut capture = match started {
        Ok(capture) => capture,
        Err(error) => {
            drop(frames.send(&Reply::Error(WireError::from(&error)), None).await);
            return;
        }
    };
    if frames.send(&Reply::Done, None).await.is_err() {
        return;
    }
    let failed = tokio::select! {
        said = frames.receive::<serde_json::Value>() => {
            // The peer says nothing more: anything from it is its end.
            drop(said);
            None
        }
        failed = capture.failed() => Some(failed),
    };
    let outcome = match failed {
        None => capture.stop().await,
        Some(failed) => Err(failed),
    };
    let reply = match outcome {
        Ok(Captured { frames, lost }) => Reply::Captured { frames, lost },
        Err(e) => {
            let error = Error::new(ErrorKind::Io, "write the capture").source(e);
            Reply::Error(WireError::from(&error))
        }
    };
    // Whoever dropped it does not listen any more.
    drop(frames.send(&reply, None).await);
}
