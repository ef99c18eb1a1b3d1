//! Owns the guest of the fake backend: an SSH server that runs commands on this host, in a private
//! directory. It exists to test coordination, not guests: it isolates nothing, has no terminals,
//! and keeps any amount of input its commands do not read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use russh::keys::{PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, Pty};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use super::command;
use super::gate::{Gated, Paused};

/// What a client may send ahead. Small, so that it fits the sockets' buffers: russh, on both ends
/// here, does not read while it cannot write.
const WINDOW_BYTES: u32 = 256 * 1024;

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
    ("journalctl", JOURNAL),
    ("dmesg", "exit 0\n"),
    ("ps", "echo no processes of its own\n"),
    ("ip", "echo no network of its own\n"),
    ("ss", "echo no sockets of its own\n"),
];
/// A test writes the guest's journal into its home.
const JOURNAL: &str = r#"from=0 show= lines=0
for word; do
    case $word in
    --show-cursor) show=y;;
    --after-cursor=*) from=${word#--after-cursor=line=};;
    esac
done
if [ -e "$HOME/journal" ]; then
    while read -r line; do
        lines=$((lines + 1))
        [ "$lines" -le "$from" ] || printf '%s\n' "$line"
    done <"$HOME/journal"
fi
[ -z "$show" ] || echo "-- cursor: line=$lines"
"#;
const HOST_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
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
    /// Paths that are elsewhere on this host.
    pub mounted: Vec<(String, PathBuf)>,
    /// While it says so, no byte goes in or out and every command stands still.
    pub paused: Paused,
}

/// Serves SSH until the listener fails; dropping the future ends the connections and the commands.
pub(crate) async fn serve(listener: TcpListener, guest: FakeGuest) -> std::io::Result<()> {
    let host_key =
        PrivateKey::from_openssh(&guest.host_key_private_openssh).map_err(std::io::Error::other)?;
    let authorized =
        PublicKey::from_openssh(&guest.authorized_key).map_err(std::io::Error::other)?;
    write_programs(&guest)?;
    write_boot_id(&guest)?;
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
        let paused = shared.guest.paused.clone();
        let handler = Connection { shared, channels: HashMap::new(), commands: Vec::new() };
        let stream = Gated::new(stream, paused);
        server::run_stream(config, stream, handler).await?.await
    };
    if let Err(error) = result.await {
        log::debug!("fake guest: {error}");
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

/// Every serving is a boot; this process's clock tells them apart.
fn write_boot_id(guest: &FakeGuest) -> std::io::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    std::fs::write(boot_id(guest), format!("{}\n", now.as_nanos()))
}

fn boot_id(guest: &FakeGuest) -> PathBuf {
    guest.home.join(".bin/boot_id")
}

/// The host's kernel would tell of the host's boot.
fn with_own_boot_id<'a>(guest: &FakeGuest, text: &'a [u8]) -> Cow<'a, [u8]> {
    match std::str::from_utf8(text) {
        Ok(line) if line.contains(HOST_BOOT_ID) => {
            let own = boot_id(guest).to_string_lossy().into_owned();
            Cow::Owned(line.replace(HOST_BOOT_ID, &own).into_bytes())
        }
        _ => Cow::Borrowed(text),
    }
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
                log::debug!("fake guest: {error}");
                return session.channel_failure(id);
            }
        };
        session.channel_success(id)?;
        let task = tokio::spawn(command::run(
            child,
            channel,
            session.handle(),
            self.shared.guest.paused.clone(),
        ));
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
    let text = with_own_boot_id(guest, text);
    let text = super::fixture::in_place(&guest.mounted, &text);
    command
        .arg("-c")
        .arg(std::ffi::OsStr::from_bytes(&text))
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
