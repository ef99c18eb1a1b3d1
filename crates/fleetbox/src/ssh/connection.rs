//! Owns one SSH connection: its settings, the check of the guest's key, logging in, and how its
//! failures are told apart. It must not know what runs over it.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::client::{self, AuthResult};
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Preferred, cipher, compression, kex};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::keys::{KeyPair, parse_public};
use crate::error::{Error, ErrorKind, Result};

/// The port of the guest's sshd.
const PORT: u16 = 22;
/// Commands at once on a shared connection. OpenSSH allows 10 (`MaxSessions`); the other two are
/// for ending commands when all places are taken.
pub(super) const COMMANDS_PER_CONNECTION: usize = 8;
pub(super) const RESERVE_PER_CONNECTION: usize = 2;
/// Silence after which the guest is asked for a sign of life; after `KEEPALIVE_MAX` unanswered
/// questions the connection is lost: 24 s in all.
const KEEPALIVE: Duration = Duration::from_secs(6);
const KEEPALIVE_MAX: usize = 3;
/// What the guest may send ahead on a channel. Larger ones brought no speed on loopback.
const WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// The largest packet russh accepts; sshd fills it, which halves the packets of a bulk transfer.
const PACKET_BYTES: u32 = 65_535;
/// Packets kept for a reader that stands still, before the connection does.
const PACKETS_AHEAD: usize = 32;

/// Dials a TCP port of the guest.
pub(crate) type Dial =
    Arc<dyn Fn(u16) -> Pin<Box<dyn Future<Output = Result<TcpStream>> + Send>> + Send + Sync>;

/// Whom to talk to and how to know it is them.
#[derive(Clone)]
pub(crate) struct Target {
    /// The VM's name, for errors.
    pub vm: String,
    pub user: String,
    pub client_key: Arc<KeyPair>,
    /// The guest's public host key on one line.
    pub host_key: String,
    pub dial: Dial,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({}@{})", self.user, self.vm)
    }
}

/// The settings of every connection.
///
/// Guests often run emulated, where sshd's cryptography is most of a login's and a copy's cost.
/// Under QEMU 7.2's TCG, `OpenSSL` 3.0 does `ChaCha20-Poly1305` at 98 MB/s, `AES-256-GCM` at 64 MB/s
/// and `AES-128-GCM` at 73 MB/s, while all three reach 5 GB/s natively: so `ChaCha20` first. The key
/// exchange is plain X25519: on a network that never leaves the host, the hybrid with ML-KEM buys
/// nothing for its extra work.
pub(super) fn config() -> Arc<client::Config> {
    Arc::new(client::Config {
        window_size: WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: PACKETS_AHEAD,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        nodelay: true,
        preferred: Preferred {
            kex: Cow::Borrowed(&[
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::MLKEM768X25519_SHA256,
                kex::ECDH_SHA2_NISTP256,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            // The only kind of host key that is ever pinned.
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            cipher: Cow::Borrowed(&[
                cipher::CHACHA20_POLY1305,
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::AES_256_CTR,
            ]),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    })
}

/// A connection that has logged in.
pub(super) struct Connection {
    pub(super) handle: client::Handle<Guard>,
    /// The same socket, to end the connection at once whatever russh is waiting for.
    socket: std::os::fd::OwnedFd,
    loss: Arc<OnceLock<String>>,
    /// Places for commands, and for what must get through when those are taken.
    pub(super) places: Arc<Semaphore>,
    pub(super) reserve: Arc<Semaphore>,
}

impl Connection {
    pub(super) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Ends the connection; whoever uses it sees it lost.
    pub(super) fn abort(&self) {
        // An error means that it has ended already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Says why it is about to be lost; only the first reason counts.
    pub(super) fn note_loss(&self, why: &str) {
        let _ = self.loss.set(why.to_owned());
    }

    /// Why it was lost, as far as is known.
    pub(super) fn loss(&self) -> &str {
        self.loss.get().map_or("the guest closed the connection", String::as_str)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.abort();
    }
}

/// One attempt: dial, key exchange, host key, login. The caller sets the time limit.
pub(super) async fn connect(target: &Target, config: Arc<client::Config>) -> Result<Connection> {
    let pinned = parse_public(&target.host_key).map_err(|e| e.vm(&target.vm))?;
    let stream = (target.dial)(PORT).await.map_err(|e| e.vm(&target.vm))?;
    let os = |e: std::io::Error| {
        Error::new(ErrorKind::Connect, "prepare the socket to the guest").vm(&target.vm).source(e)
    };
    // Without it every command waits some 40 ms for a delayed acknowledgement.
    stream.set_nodelay(true).map_err(os)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(&stream, 0).map_err(|e| os(e.into()))?;
    let loss = Arc::new(OnceLock::new());
    let guard = Guard { pinned, loss: loss.clone() };
    let mut handle = client::connect_stream(config, stream, guard)
        .await
        .map_err(|refusal| refusal.into_error(target))?;
    log_in(target, &mut handle, &loss).await?;
    Ok(Connection {
        handle,
        socket,
        loss,
        places: Arc::new(Semaphore::new(COMMANDS_PER_CONNECTION)),
        reserve: Arc::new(Semaphore::new(RESERVE_PER_CONNECTION)),
    })
}

async fn log_in(
    target: &Target,
    handle: &mut client::Handle<Guard>,
    loss: &OnceLock<String>,
) -> Result<()> {
    let key = PrivateKeyWithHashAlg::new(target.client_key.private(), None);
    let lost = || {
        let why = loss.get().map_or("the guest closed the connection", String::as_str);
        Error::new(ErrorKind::ConnectionLost, format!("log in as {}: {why}", target.user))
            .vm(&target.vm)
    };
    match handle.authenticate_publickey(&target.user, key).await {
        Ok(AuthResult::Success) => Ok(()),
        // russh reports a connection that ends here as a refusal that names no method.
        Ok(AuthResult::Failure { remaining_methods, .. })
            if remaining_methods.is_empty() && handle.is_closed() =>
        {
            Err(lost())
        }
        Ok(AuthResult::Failure { .. }) => Err(Error::new(
            ErrorKind::Authentication,
            format!("log in as {}: the guest refused the key", target.user),
        )
        .vm(&target.vm)
        .hint("while a guest boots, its user may not be there yet; later, look at ~/.ssh/authorized_keys and the log of sshd in the guest")),
        Err(e) => Err(lost().source(e)),
    }
}

/// What russh asks us: is this the guest's key; and tells us: why the connection ended.
pub(super) struct Guard {
    pinned: PublicKey,
    loss: Arc<OnceLock<String>>,
}

impl client::Handler for Guard {
    type Error = Refusal;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Refusal> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. }
                if key.key_data() == self.pinned.key_data() =>
            {
                Ok(true)
            }
            PublicKeyOrCertificate::PublicKey { key, .. } => Err(Refusal::HostKey {
                pinned: self.pinned.fingerprint(HashAlg::Sha256).to_string(),
                shown: key.fingerprint(HashAlg::Sha256).to_string(),
            }),
            PublicKeyOrCertificate::Certificate(_) => Err(Refusal::HostKey {
                pinned: self.pinned.fingerprint(HashAlg::Sha256).to_string(),
                shown: "a certificate".to_owned(),
            }),
        }
    }

    async fn disconnected(
        &mut self,
        reason: client::DisconnectReason<Refusal>,
    ) -> Result<(), Refusal> {
        let why = match reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                format!("the guest hung up: {}", super::output::label(info.message.as_bytes(), 200))
            }
            client::DisconnectReason::Error(Refusal::Ssh(russh::Error::KeepaliveTimeout)) => {
                "the guest stopped answering".to_owned()
            }
            client::DisconnectReason::Error(Refusal::Ssh(
                russh::Error::Disconnect | russh::Error::HUP,
            )) => return Ok(()),
            client::DisconnectReason::Error(refusal) => refusal.to_string(),
        };
        // Only the first reason counts.
        let _ = self.loss.set(why);
        Ok(())
    }
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the guest showed the host key {shown}, pinned is {pinned}")]
    HostKey { pinned: String, shown: String },
    #[error(transparent)]
    Ssh(#[from] russh::Error),
}

impl Refusal {
    fn into_error(self, target: &Target) -> Error {
        let error = match &self {
            Refusal::HostKey { .. } => {
                Error::new(ErrorKind::HostKeyMismatch, "trust the guest").hint(
                    "another machine answers at this address, or the guest made itself new host keys; remove the VM and start it again",
                )
            }
            Refusal::Ssh(
                russh::Error::IO(_) | russh::Error::HUP | russh::Error::Disconnect,
            ) => Error::new(ErrorKind::ConnectionLost, "greet the guest's sshd"),
            Refusal::Ssh(_) => Error::new(ErrorKind::Connect, "agree with the guest's sshd"),
        };
        error.vm(&target.vm).source(self)
    }
}
