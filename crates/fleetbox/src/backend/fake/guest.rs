//! Owns the guest of the fake backend: an SSH server that runs commands on this host, in a private
//! directory. It exists to test coordination, not guests: it isolates nothing, has no terminals,
//! and keeps any amount of input its commands do not read.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelMsg, ChannelWriteHalf, Pty, Sig};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;

/// What a client may send ahead. Small, so that it fits the sockets' buffers: russh, on both ends
/// here, does not read while it cannot write.
const WINDOW_BYTES: u32 = 256 * 1024;
const CHUNK_BYTES: usize = 32 * 1024;
const STDERR: u32 = 1;

/// Stands in for programs of a guest that this host must not run, or would answer wrongly.
const PROGRAMS: &[(&str, &str)] = &[
    (
        "sudo",
        "while [ $# -gt 0 ]; do case $1 in --) shift; break;; -*) shift;; *) break;; esac; done\nexec \"$@\"\n",
    ),
    ("hostname", "printf '%s\\n' \"$HOSTNAME\"\n"),
    ("poweroff", REFUSE),
    ("reboot", REFUSE),
    ("shutdown", REFUSE),
    ("halt", REFUSE),
    ("init", REFUSE),
    ("systemctl", REFUSE),
];
const REFUSE: &str = "echo \"${0##*/}: the fake guest has no machine to do this to\" >&2; exit 1\n";

/// Who the guest is and where it lives.
#[derive(Debug, Clone)]
pub(crate) struct FakeGuest {
    pub host_key_private_openssh: String,
    /// The one public key that may log in.
    pub authorized_key: String,
    pub user: String,
    pub hostname: String,
    /// A private directory: HOME and working directory of every command.
    pub home: PathBuf,
}

/// Serves SSH until the listener fails; dropping the future ends the connections and the commands.
pub(crate) async fn serve(listener: TcpListener, guest: FakeGuest) -> std::io::Result<()> {
    let host_key =
        PrivateKey::from_openssh(&guest.host_key_private_openssh).map_err(std::io::Error::other)?;
    let authorized =
        PublicKey::from_openssh(&guest.authorized_key).map_err(std::io::Error::other)?;
    write_programs(&guest)?;
    let config = Arc::new(server::Config {
        keys: vec![host_key],
        auth_rejection_time: Duration::ZERO,
        window_size: WINDOW_BYTES,
        inactivity_timeout: None,
        nodelay: true,
        ..server::Config::default()
    });
    let shared = Arc::new(Shared { guest, authorized });
    // Dropped with this future, and every connection with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(converse(config.clone(), stream, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(config: Arc<server::Config>, stream: TcpStream, shared: Arc<Shared>) {
    let result = async {
        stream.set_nodelay(true)?;
        let _hang_up =
            HangUp(rustix::io::fcntl_dupfd_cloexec(&stream, 0).map_err(std::io::Error::from)?);
        let handler = Connection { shared, channels: HashMap::new(), commands: Vec::new() };
        server::run_stream(config, stream, handler).await?.await
    };
    if let Err(error) = result.await {
        tracing::debug!("fake guest: {error}");
    }
}

/// Cuts the connection when it is dropped: russh runs it in a task of its own.
struct HangUp(std::os::fd::OwnedFd);

impl Drop for HangUp {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

fn write_programs(guest: &FakeGuest) -> std::io::Result<()> {
    let dir = guest.home.join(".bin");
    std::fs::create_dir_all(&dir)?;
    for (name, script) in PROGRAMS {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

struct Shared {
    guest: FakeGuest,
    authorized: PublicKey,
}

/// One client. Dropped when its connection ends, and its commands with it.
struct Connection {
    shared: Arc<Shared>,
    /// Opened, nothing asked of them yet.
    channels: HashMap<ChannelId, Channel<Msg>>,
    commands: Vec<tokio::task::AbortHandle>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        for command in &self.commands {
            command.abort();
        }
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        let known = user == self.shared.guest.user
            && key.public_key.key_data() == self.shared.authorized.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channels.remove(&channel);
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        text: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(channel) = self.channels.remove(&id) else {
            return session.channel_failure(id);
        };
        let child = match spawn(&self.shared.guest, text) {
            Ok(child) => child,
            Err(error) => {
                tracing::debug!("fake guest: {error}");
                return session.channel_failure(id);
            }
        };
        session.channel_success(id)?;
        let task = tokio::spawn(run(Group::of(child), channel, session.handle()));
        self.commands.retain(|command| !command.is_finished());
        self.commands.push(task.abort_handle());
        Ok(())
    }
}

fn spawn(guest: &FakeGuest, text: &[u8]) -> std::io::Result<Child> {
    let mut path = guest.home.join(".bin").into_os_string();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    #[expect(clippy::disallowed_methods, reason = "the fake guest's commands run on the host")]
    let mut command = std::process::Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(std::ffi::OsStr::from_bytes(text))
        .env_clear()
        .env("PATH", path)
        .env("HOME", &guest.home)
        .env("USER", &guest.user)
        .env("HOSTNAME", &guest.hostname)
        .current_dir(&guest.home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    crate::sys::session::lead_new_session(&mut command);
    // In a holder, but not in a test that serves from its own process.
    if std::process::id() == 1 {
        crate::sys::session::see_own_processes(&mut command);
    }
    tokio::process::Command::from(command).kill_on_drop(true).spawn()
}

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
async fn run(mut group: Group, channel: Channel<Msg>, handle: server::Handle) {
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
