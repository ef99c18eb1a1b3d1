//! Owns one command of the fake guest: its streams, its signals, how it ended. It must not start it;
//! `guest` does.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use bytes::Bytes;
use russh::server::{self, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;

use super::gate::Paused;

const CHUNK_BYTES: usize = 32 * 1024;
const STDERR: u32 = 1;

/// A command and whatever it starts in its process group; dropping it kills them.
struct Group {
    child: Child,
    pid: Option<Pid>,
}

impl Group {
    fn of(child: Child) -> Self {
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self { child, pid }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // The group may be gone.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Plays sshd for one command: streams, signals, and how it ended.
pub(super) async fn run(
    child: Child,
    channel: Channel<Msg>,
    handle: server::Handle,
    mut paused: Paused,
) {
    let mut group = Group::of(child);
    let id = channel.id();
    let (mut read, write) = channel.split();
    let (input, chunks) = mpsc::unbounded_channel();
    let stdin = group.child.stdin.take();
    let feeding = tokio::spawn(feed(stdin, chunks));
    let (stdout, stderr) = (group.child.stdout.take(), group.child.stderr.take());
    let mut input = Some(input);
    {
        let pumping =
            async { tokio::join!(pump(stdout, &write, None), pump(stderr, &write, Some(STDERR))) };
        tokio::pin!(pumping);
        loop {
            tokio::select! {
                _ = &mut pumping => break,
                Ok(()) = paused.changed() => {
                    let stands_still = *paused.borrow_and_update();
                    group.signal(if stands_still { Signal::STOP } else { Signal::CONT });
                }
                message = read.wait() => match message {
                    Some(ChannelMsg::Data { data }) => {
                        if let Some(input) = &input {
                            // A command that closed its input ignores the rest.
                            let _ = input.send(data);
                        }
                    }
                    Some(ChannelMsg::Eof) => input = None,
                    Some(ChannelMsg::Signal { signal }) => {
                        if let Some(signal) = signal_of(&signal) {
                            group.signal(signal);
                        }
                    }
                    Some(ChannelMsg::Close) | None => {
                        feeding.abort();
                        return;
                    }
                    Some(_) => {}
                },
            }
        }
    }
    // Its output is closed; what it may still do is end. A client that hangs up kills it.
    let status = tokio::select! {
        status = group.child.wait() => status,
        () = gone(&mut read) => return feeding.abort(),
    };
    feeding.abort();
    // What it left running in the background is not ours to kill, as with sshd.
    group.pid = None;
    if let Ok(status) = status {
        // Errors mean that the client is gone.
        let _ = write.eof().await;
        report(status, id, &write, &handle).await;
        let _ = write.close().await;
    }
}

async fn gone(read: &mut russh::ChannelReadHalf) {
    while !matches!(read.wait().await, Some(ChannelMsg::Close) | None) {}
}

async fn feed(stdin: Option<ChildStdin>, mut chunks: mpsc::UnboundedReceiver<Bytes>) {
    let Some(mut stdin) = stdin else {
        return;
    };
    while let Some(chunk) = chunks.recv().await {
        if stdin.write_all(&chunk).await.is_err() {
            return;
        }
    }
}

/// Copies a stream at the pace the client's window allows.
async fn pump(
    stream: Option<impl AsyncRead + Unpin>,
    write: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
) {
    let Some(mut stream) = stream else {
        return;
    };
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        if !matches!(stream.read_buf(&mut chunk).await, Ok(count) if count > 0) {
            return;
        }
        let sent = match extended {
            None => write.data_bytes(chunk).await,
            Some(code) => write.extended_data_bytes(code, chunk).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn report(
    status: ExitStatus,
    id: ChannelId,
    write: &ChannelWriteHalf<Msg>,
    handle: &server::Handle,
) {
    // Errors mean that the client is gone.
    if let Some(code) = status.code() {
        let _ = write.exit_status(code.cast_unsigned()).await;
    } else if let Some(number) = status.signal() {
        let name = SIGNALS
            .iter()
            .find(|(signal, _)| signal.as_raw() == number)
            .map_or_else(|| Sig::Custom(number.to_string()), |(_, name)| name.clone());
        let core = status.core_dumped();
        let _ = handle.exit_signal_request(id, name, core, String::new(), String::new()).await;
    }
}

const SIGNALS: &[(Signal, Sig)] = &[
    (Signal::ABORT, Sig::ABRT),
    (Signal::ALARM, Sig::ALRM),
    (Signal::FPE, Sig::FPE),
    (Signal::HUP, Sig::HUP),
    (Signal::ILL, Sig::ILL),
    (Signal::INT, Sig::INT),
    (Signal::KILL, Sig::KILL),
    (Signal::PIPE, Sig::PIPE),
    (Signal::QUIT, Sig::QUIT),
    (Signal::SEGV, Sig::SEGV),
    (Signal::TERM, Sig::TERM),
    (Signal::USR1, Sig::USR1),
];

fn signal_of(asked: &Sig) -> Option<Signal> {
    let same = |name: &Sig| format!("{name:?}") == format!("{asked:?}");
    SIGNALS.iter().find(|(_, name)| same(name)).map(|(signal, _)| *signal)
}
