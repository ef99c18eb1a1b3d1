//! Owns the QEMU Machine Protocol: JSON lines, commands answered by id, events in between
//! (qemu-qmp-ref(7)). It must not know what the commands mean.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{broadcast, oneshot};

use crate::backend::monitor::GuestShutdown;
use crate::sys;

/// QEMU answers its main loop's commands at once unless it hangs.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Far more than come between two looks at them.
const EVENTS_KEPT: usize = 256;

type Waiting = Arc<Mutex<Pending>>;

/// What QEMU tells unasked.
#[derive(Debug, Clone)]
pub(super) struct QmpEvent {
    pub name: String,
    pub data: Value,
    /// When it was read.
    pub at: Instant,
}

#[derive(Default)]
struct Pending {
    next_id: u64,
    by_id: HashMap<u64, oneshot::Sender<io::Result<Value>>>,
    closed: bool,
}

pub(super) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Waiting,
    events: broadcast::Sender<QmpEvent>,
}

impl Qmp {
    /// Takes the greeting and leaves negotiation mode.
    pub(super) async fn connect(stream: UnixStream, shutdown: GuestShutdown) -> io::Result<Self> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut greeting = String::new();
        if reader.read_line(&mut greeting).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let waiting = Waiting::default();
        let events = broadcast::channel(EVENTS_KEPT).0;
        tokio::spawn(read_all(reader, waiting.clone(), shutdown, events.clone()));
        let qmp = Self { writer: tokio::sync::Mutex::new(writer), waiting, events };
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Runs a command without arguments and waits for its answer.
    pub(super) async fn execute(&self, command: &str) -> io::Result<()> {
        self.execute_with(command, &json!({})).await
    }

    /// Runs a command and waits for its answer.
    pub(super) async fn execute_with(&self, command: &str, arguments: &Value) -> io::Result<()> {
        self.ask(command, arguments).await.map(drop)
    }

    /// Gives QEMU a copy of `fd`, which it knows by that name from then on.
    pub(super) async fn pass(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.say("getfd", &json!({ "fdname": name }), Some(fd)).await.map(drop)
    }

    /// What it tells from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    /// Runs a command and returns its answer.
    pub(super) async fn ask(&self, command: &str, arguments: &Value) -> io::Result<Value> {
        self.say(command, arguments, None).await
    }

    async fn say(
        &self,
        command: &str,
        arguments: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<Value> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut pending = lock(&self.waiting);
            if pending.closed {
                return Err(io::ErrorKind::NotConnected.into());
            }
            pending.next_id += 1;
            let id = pending.next_id;
            pending.by_id.insert(id, sender);
            id
        };
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        {
            let mut writer = self.writer.lock().await;
            let sent = match fd {
                Some(fd) => send_with(&writer, line.as_bytes(), fd).await?,
                None => 0,
            };
            writer.write_all(&line.as_bytes()[sent..]).await?;
        }
        let answer = tokio::time::timeout(ANSWER_WAIT, receiver).await;
        lock(&self.waiting).by_id.remove(&id);
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(io::ErrorKind::NotConnected.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Sends at least the first byte, and the fd with it.
async fn send_with(writer: &OwnedWriteHalf, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let socket: &UnixStream = writer.as_ref();
    loop {
        socket.writable().await?;
        let sent = || sys::fd::send(socket.as_fd(), line, Some(fd));
        match socket.try_io(Interest::WRITABLE, sent) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
    }
}

fn lock(waiting: &Waiting) -> std::sync::MutexGuard<'_, Pending> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_all(
    mut reader: impl tokio::io::AsyncBufRead + Unpin,
    waiting: Waiting,
    shutdown: GuestShutdown,
    events: broadcast::Sender<QmpEvent>,
) {
    let mut line = String::new();
    while matches!(reader.read_line(&mut line).await, Ok(n) if n > 0) {
        match serde_json::from_str::<Value>(&line) {
            Ok(message) => take(message, &waiting, &shutdown, &events),
            Err(e) => log::warn!("a line from QEMU is not JSON: {e}"),
        }
        line.clear();
    }
    let mut pending = lock(&waiting);
    pending.closed = true;
    // Dropping the senders tells everyone who waits.
    pending.by_id.clear();
}

fn take(
    mut message: Value,
    waiting: &Waiting,
    shutdown: &GuestShutdown,
    events: &broadcast::Sender<QmpEvent>,
) {
    if let Some(name) = message["event"].as_str() {
        log::debug!("QEMU event {name}");
        let by_guest = message["data"]["guest"].as_bool().unwrap_or(false);
        if name == "SHUTDOWN" && by_guest {
            // Nobody listens any more once the machine is gone.
            let _ = shutdown.send(());
        }
        let name = name.to_owned();
        // Mostly nobody listens.
        drop(events.send(QmpEvent { name, data: message["data"].take(), at: Instant::now() }));
        return;
    }
    let Some(sender) = message["id"].as_u64().and_then(|id| lock(waiting).by_id.remove(&id)) else {
        return;
    };
    let answer = match message["error"]["desc"].as_str() {
        Some(description) => Err(io::Error::other(description.to_owned())),
        None => Ok(message["return"].take()),
    };
    // The asker may have given up.
    drop(sender.send(answer));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;

    async fn talk(
        script: &'static [(&'static str, &'static str)],
    ) -> (Qmp, mpsc::UnboundedReceiver<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
            let mut buffer = [0; 1024];
            for (expected, answer) in script {
                let n = theirs.read(&mut buffer).await.unwrap();
                let text = std::str::from_utf8(&buffer[..n]).unwrap();
                assert!(text.contains(expected), "{text}");
                theirs.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let (sender, events) = mpsc::unbounded_channel();
        (Qmp::connect(ours, sender).await.unwrap(), events)
    }

    #[tokio::test]
    async fn answers_find_their_command_past_events_and_noise() {
        let (qmp, mut events) = talk(&[
            ("qmp_capabilities", "{\"return\": {}, \"id\": 1}\r\n"),
            (
                "system_powerdown",
                "noise\r\n{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\r\n{\"return\": {}, \"id\": 2}\r\n",
            ),
        ])
        .await;
        qmp.execute("system_powerdown").await.unwrap();
        assert_eq!(events.recv().await, Some(()));
    }

    #[tokio::test]
    async fn a_refusal_and_a_hang_up_are_errors() {
        let (qmp, _events) = talk(&[
            ("qmp_capabilities", "{\"return\": {}, \"id\": 1}\r\n"),
            ("bad", "{\"error\": {\"class\": \"X\", \"desc\": \"no such thing\"}, \"id\": 2}\r\n"),
        ])
        .await;
        assert_eq!(qmp.execute("bad").await.unwrap_err().to_string(), "no such thing");
        assert!(qmp.execute("anything").await.is_err());
    }
}
