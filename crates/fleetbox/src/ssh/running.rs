//! Owns one command while it runs: the task that reads everything its channel brings, feeds its
//! input, and ends it when nobody wants it any more. It must not know how a command was described.
//!
//! ```text
//! opening ──► running ──► closed            → status, or connection lost
//!                │ dropped, killed, too late, too much output
//!                └──► ending ──► closed     → that reason
//! ```
//!
//! The task reads the channel at all times unless the reader of a stream stands still, which only
//! happens on a connection of its own: russh stops a whole connection for one full channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::begin::begin;
use super::command::{Signal, Terminal};
use super::end::{self, Mark};
use super::input::{Feeder, Input};
use super::output::ExitStatus;
use super::session::{Lease, Session, Use};
use super::sink::{Held, Sink};
use crate::error::{Error, ErrorKind, Result};

/// How long a channel may stay open after its command was ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A command ready to be sent.
pub(super) struct Request {
    pub text: Vec<u8>,
    pub mark: Mark,
    pub label: String,
    pub terminal: Option<Terminal>,
    pub input: Input,
    pub stdout: Sink,
    pub stderr: Sink,
    pub deadline: Option<(Instant, Duration)>,
    /// On a connection of its own even if no reader can stand still.
    pub alone: bool,
    /// Our own business: not for the transcript.
    pub unwritten: bool,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Control {
    Resize {
        columns: u32,
        rows: u32,
    },
    /// TERM, and KILL after a grace.
    End,
    Kill,
}

/// A handle to the task. Dropping it before the command's end ends the command.
#[derive(Debug)]
pub(super) struct Running {
    control: mpsc::UnboundedSender<Control>,
    ended: oneshot::Receiver<Result<Ended>>,
    started: Option<oneshot::Receiver<()>>,
    lost: Arc<AtomicBool>,
}

impl Running {
    pub(super) fn start(session: Session, request: Request) -> Self {
        let (control, commands) = mpsc::unbounded_channel();
        let (ended_sender, ended) = oneshot::channel();
        let (started_sender, started) = oneshot::channel();
        let lost = Arc::new(AtomicBool::new(false));
        let flag = lost.clone();
        let written = session.transcript().filter(|_| !request.unwritten);
        let place = written.map(|transcript| transcript.begin(session.vm(), &request.label));
        tokio::spawn(async move {
            let result = run(session, request, commands, started_sender, &flag).await;
            if let Some(place) = place {
                place.end(&result);
            }
            // Nobody may be waiting any more.
            let _ = ended_sender.send(result);
        });
        Self { control, ended, started: Some(started), lost }
    }

    /// Waits until the guest has accepted the command, or for the error it ended with before.
    pub(super) async fn started(&mut self) -> Result<()> {
        let Some(started) = self.started.take() else {
            return Ok(());
        };
        match started.await {
            Ok(()) => Ok(()),
            Err(_) => self.ended().await.map(drop),
        }
    }

    /// Waits for the end. May be awaited again after having been dropped, not after its result.
    pub(super) async fn ended(&mut self) -> Result<Ended> {
        match (&mut self.ended).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorKind::Internal, "the command's task is gone")),
        }
    }

    pub(super) fn send(&self, control: Control) {
        // A command that has ended needs nothing.
        let _ = self.control.send(control);
    }

    /// Set before the streams end, if they end because the connection was lost.
    pub(super) fn lost(&self) -> Arc<AtomicBool> {
        self.lost.clone()
    }
}

/// Why a command is ended from here.
enum Stop {
    Dropped,
    Killed,
    TooLate(Duration),
    TooMuch(&'static str, u64),
}

async fn run(
    session: Session,
    request: Request,
    mut control: mpsc::UnboundedReceiver<Control>,
    started: oneshot::Sender<()>,
    lost: &AtomicBool,
) -> Result<Ended> {
    let streams =
        matches!(request.stdout, Sink::Stream(_)) || matches!(request.stderr, Sink::Stream(_));
    let wanted = if streams || request.alone { Use::Lone } else { Use::Shared };
    let deadline = request.deadline;
    let too_late = |timeout: Duration| {
        Error::new(
            ErrorKind::TimedOut,
            format!("run `{}`: it did not end within {timeout:?}", request.label),
        )
        .vm(session.vm())
    };
    let begun = {
        let begin = begin(&session, &request, wanted);
        tokio::pin!(begin);
        loop {
            tokio::select! {
                begun = &mut begin => break begun?,
                () = at(deadline) => {
                    return Err(too_late(deadline.map_or(Duration::ZERO, |(_, timeout)| timeout)));
                }
                next = control.recv() => if !matches!(next, Some(Control::Resize { .. })) {
                    return Err(Error::new(ErrorKind::ConnectionLost, "the command was not begun"));
                },
            }
        }
    };
    let (read, write, lease) = begun;
    let write = Arc::new(write);
    let feeder = Feeder::start(request.input, write.clone());
    let mut task = Task {
        session: session.clone(),
        mark: request.mark,
        label: request.label.clone(),
        read,
        write,
        lease,
        stdout: request.stdout,
        stderr: request.stderr,
        held: None,
        started: Some(started),
        status: None,
        refused: false,
        closed: false,
    };
    let stop = task.drive(&mut control, deadline).await;
    drop(feeder);
    if let Some(stop) = &stop {
        task.end(stop).await;
    }
    if !task.closed {
        lost.store(true, Ordering::Release);
    }
    match stop {
        Some(Stop::TooLate(timeout)) => Err(too_late(timeout)),
        Some(Stop::TooMuch(stream, limit)) => Err(Error::new(
            ErrorKind::CommandFailed,
            format!("run `{}`: it wrote more than {limit} bytes to {stream}", request.label),
        )
        .vm(session.vm())
        .hint("raise output_limit_bytes, discard the stream, or spawn() the command and read as it writes")),
        Some(Stop::Killed | Stop::Dropped) | None => task.ended(),
    }
}

async fn at(deadline: Option<(Instant, Duration)>) {
    match deadline {
        Some((instant, _)) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

struct Task {
    session: Session,
    mark: Mark,
    label: String,
    read: ChannelReadHalf,
    write: Arc<ChannelWriteHalf<Msg>>,
    lease: Lease,
    stdout: Sink,
    stderr: Sink,
    /// Output its reader has no room for yet.
    held: Held,
    started: Option<oneshot::Sender<()>>,
    status: Option<ExitStatus>,
    refused: bool,
    closed: bool,
}

impl Task {
    /// Until the channel is closed or lost, or there is a reason to end it.
    async fn drive(
        &mut self,
        control: &mut mpsc::UnboundedReceiver<Control>,
        deadline: Option<(Instant, Duration)>,
    ) -> Option<Stop> {
        let deadline_passed = at(deadline);
        tokio::pin!(deadline_passed);
        loop {
            let reader = self.held.as_ref().map(|(reader, _)| reader.clone());
            let room = async move {
                match reader {
                    Some(reader) => reader.reserve_owned().await.ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                next = control.recv() => match next {
                    None | Some(Control::End) => return Some(Stop::Dropped),
                    Some(Control::Kill) => return Some(Stop::Killed),
                    Some(Control::Resize { columns, rows }) => {
                        // An error means that the channel is gone, which is noticed below.
                        let _ = self.write.window_change(columns, rows, 0, 0).await;
                    }
                },
                () = &mut deadline_passed => {
                    return Some(Stop::TooLate(deadline.map_or(Duration::ZERO, |(_, t)| t)));
                }
                permit = room => {
                    // Without a reader the rest is dropped.
                    if let (Some(permit), Some((_, bytes))) = (permit, self.held.take()) {
                        permit.send(bytes);
                    }
                }
                message = self.read.wait(), if self.held.is_none() => match message {
                    None => return None,
                    Some(message) => {
                        if let Some(stop) = self.take(message) {
                            return Some(stop);
                        }
                        if self.closed {
                            return None;
                        }
                    }
                },
            }
        }
    }

    fn take(&mut self, message: ChannelMsg) -> Option<Stop> {
        match message {
            ChannelMsg::Success => {
                if let Some(started) = self.started.take() {
                    // Only `spawn` waits for this.
                    let _ = started.send(());
                }
            }
            ChannelMsg::Failure => self.refused = true,
            ChannelMsg::Data { data } => {
                return self
                    .stdout
                    .put(&mut self.held, data)
                    .map(|limit| Stop::TooMuch("standard output", limit));
            }
            ChannelMsg::ExtendedData { data, .. } => {
                return self
                    .stderr
                    .put(&mut self.held, data)
                    .map(|limit| Stop::TooMuch("standard error", limit));
            }
            ChannelMsg::ExitStatus { exit_status } => {
                self.status = Some(ExitStatus::from_code(exit_status));
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                let name = match signal_name {
                    russh::Sig::Custom(name) => name,
                    known => format!("{known:?}"),
                };
                self.status = Some(ExitStatus::from_signal(&name));
            }
            ChannelMsg::Close => {
                self.closed = true;
                self.lease.clean();
            }
            _ => {}
        }
        None
    }

    /// Ends the command in the guest, reading on so that the connection does not stand still.
    async fn end(&mut self, stop: &Stop) {
        self.stdout = Sink::Discard;
        self.stderr = Sink::Discard;
        self.held = None;
        let (session, mark) = (self.session.clone(), self.mark.clone());
        let killed = matches!(stop, Stop::Killed);
        let ending = async {
            if killed {
                end::kill(&session, &mark).await
            } else {
                end::terminate(&session, &mark).await
            }
        };
        tokio::pin!(ending);
        let mut lost = false;
        let result = loop {
            tokio::select! {
                result = &mut ending => break result,
                message = self.read.wait(), if !self.closed && !lost => match message {
                    Some(message) => drop(self.take(message)),
                    None => lost = true,
                },
            }
        };
        if let Err(error) = result {
            log::debug!("{}: {}", self.label, error.report());
            self.ask(killed).await;
        }
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.read_to_close()).await;
        if !self.closed {
            // Its own connection is cut off by the lease; a shared one must lose the channel.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.write.close()).await;
        }
    }

    /// The second-best way to end a command: sshd's own, which root's commands never get.
    async fn ask(&mut self, killed: bool) {
        for signal in [Signal::Term, Signal::Kill] {
            if self.closed || (killed && signal == Signal::Term) {
                continue;
            }
            let name = if signal == Signal::Term { russh::Sig::TERM } else { russh::Sig::KILL };
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.write.signal(name)).await;
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.read_to_close()).await;
        }
    }

    async fn read_to_close(&mut self) {
        while !self.closed {
            match self.read.wait().await {
                Some(message) => drop(self.take(message)),
                None => return,
            }
        }
    }

    fn ended(self) -> Result<Ended> {
        if let Some(status) = self.status {
            return Ok(Ended {
                status,
                stdout: self.stdout.collected(),
                stderr: self.stderr.collected(),
            });
        }
        let vm = self.session.vm();
        if self.refused {
            let text = format!("run `{}`: the guest's sshd refused it", self.label);
            return Err(Error::new(ErrorKind::Connect, text).vm(vm));
        }
        let why = if self.closed {
            "the guest closed it without saying how it ended"
        } else {
            self.lease.connection.loss()
        };
        Err(Error::new(ErrorKind::ConnectionLost, format!("run `{}`: {why}", self.label))
            .vm(vm)
            .hint("it may have run, so it is not run again; if the VM did not restart, look at its console"))
    }
}
