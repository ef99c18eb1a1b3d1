//! Owns the connections to one VM: which are open, who uses them, when a lost one is replaced. It
//! must not run a request again once the guest may have begun it.
//!
//! ```text
//! shared: up to 4 connections with 8 commands each, their output always read
//! lone:   one command each, idle ones kept for the next; a shared one without use becomes one, and back
//! reset:  a new generation; what belongs to the old one is cut off
//! ```

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use russh::client;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::connection::{self, COMMANDS_PER_CONNECTION, Connection, Target};
use super::transcript::{Place, Transcript};
use crate::error::{Error, ErrorKind, Result};

/// Time to make a connection outside of a boot: a login to an emulated guest takes seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_mins(1);
const SHARED_CONNECTIONS: usize = 4;
/// Lone connections kept open without use.
const IDLE_CONNECTIONS: usize = 2;
/// Logins under way at once; from 10 on, sshd refuses some (`MaxStartups`).
const LOGINS_AT_ONCE: usize = 4;

/// The SSH connections to one VM. Cheap to clone; all clones share them. Nothing is connected
/// before the first use. Dropping the last clone cuts them off.
#[derive(Clone)]
pub(crate) struct Session {
    inner: Arc<Inner>,
}

/// A session that may be gone.
pub(crate) struct WeakSession(Weak<Inner>);

impl WeakSession {
    pub(crate) fn upgrade(&self) -> Option<Session> {
        self.0.upgrade().map(|inner| Session { inner })
    }
}

struct Inner {
    target: Target,
    config: Arc<client::Config>,
    shared: Mutex<Vec<Arc<Connection>>>,
    idle: Mutex<Vec<Arc<Connection>>>,
    /// Connections out on loan, to be cut off by a reset.
    lent: Mutex<Vec<Weak<Connection>>>,
    /// Held while a shared connection is made, so that there is one attempt at a time.
    connecting: tokio::sync::Mutex<()>,
    logins: Semaphore,
    /// A place on some shared connection.
    places: Arc<Semaphore>,
    generation: AtomicU64,
    /// Tells connections still being made that a generation ended.
    ended: Notify,
    closed: AtomicBool,
    transcript: OnceLock<Transcript>,
}

/// How often an sshd may refuse a session that it should have room for.
const REFUSALS_MAX: u32 = 10;

/// What a channel is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Its reader never stands still.
    Shared,
    /// Its reader may stand still, and with it the whole connection.
    Lone,
    /// Short work that must get through even when every place is taken.
    Reserve,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.inner.target).finish()
    }
}

impl Session {
    pub(crate) fn new(target: Target) -> Self {
        Self {
            inner: Arc::new(Inner {
                target,
                config: connection::config(),
                shared: Mutex::default(),
                idle: Mutex::default(),
                lent: Mutex::default(),
                connecting: tokio::sync::Mutex::default(),
                logins: Semaphore::new(LOGINS_AT_ONCE),
                places: Arc::new(Semaphore::new(SHARED_CONNECTIONS * COMMANDS_PER_CONNECTION)),
                generation: AtomicU64::new(0),
                ended: Notify::new(),
                closed: AtomicBool::new(false),
                transcript: OnceLock::new(),
            }),
        }
    }

    /// Has every command from now on written down there. The first to ask has it.
    pub(crate) fn write_down(&self, transcript: &Transcript) {
        self.inner.transcript.get_or_init(|| transcript.clone());
    }

    /// Notes in the transcript, if there is one, where a capture goes.
    pub(crate) fn note_capture(&self, path: &std::path::Path) {
        if let Some(transcript) = self.transcript() {
            transcript.capture(path);
        }
    }

    /// A place in the transcript, if there is one, for what is no command.
    pub(crate) fn note(&self, label: &str) -> Option<Place> {
        Some(self.transcript()?.begin(self.vm(), label))
    }

    pub(super) fn transcript(&self) -> Option<&Transcript> {
        self.inner.transcript.get()
    }

    pub(crate) fn vm(&self) -> &str {
        &self.inner.target.vm
    }

    /// Connects unless a live connection is there.
    #[cfg(all(test, feature = "unstable-fake"))]
    pub(crate) async fn connect(&self) -> Result<()> {
        self.try_connect(CONNECT_TIMEOUT).await
    }

    /// One attempt to connect, for a loop that waits for a guest to boot; at once `Ok` if a
    /// connection is there. [`ErrorKind::HostKeyMismatch`] is final, every other kind may pass with
    /// the guest's progress.
    ///
    /// Give an attempt 10 s or more: an sshd since OpenSSH 9.8 counts connections that break off
    /// before the login, and refused keys, and shuts out who has too many (`PerSourcePenalties`).
    pub(crate) async fn try_connect(&self, attempt_timeout: Duration) -> Result<()> {
        self.limited(attempt_timeout, async {
            let _one = self.inner.connecting.lock().await;
            if locked(&self.inner.shared).iter().any(|c| !c.is_closed()) {
                return Ok(());
            }
            self.add_shared().await.map(drop)
        })
        .await
    }

    /// Forgets every connection and cuts off what runs over them, as after a reboot; the next use
    /// connects anew.
    pub(crate) fn reset(&self) {
        self.end_all(|_| ());
    }

    /// [`Session::reset`], and tells whoever uses a connection why it is lost.
    pub(crate) fn cut_off(&self, why: &str) {
        self.end_all(|connection| connection.note_loss(why));
    }

    fn end_all(&self, first: impl Fn(&Connection)) {
        self.inner.generation.fetch_add(1, Ordering::SeqCst);
        let lent: Vec<_> = locked(&self.inner.lent).drain(..).collect();
        let shared: Vec<_> = locked(&self.inner.shared).drain(..).collect();
        for connection in shared.into_iter().chain(lent.iter().filter_map(Weak::upgrade)) {
            first(&connection);
            connection.abort();
        }
        locked(&self.inner.idle).clear();
        self.inner.ended.notify_waiters();
    }

    /// For whoever watches the machine without keeping its connections.
    pub(crate) fn downgrade(&self) -> WeakSession {
        WeakSession(Arc::downgrade(&self.inner))
    }

    /// [`Session::reset`], and refuses any further use.
    pub(crate) fn close(&self) {
        self.inner.closed.store(true, Ordering::SeqCst);
        self.reset();
    }

    /// Opens a channel. When the connection turns out to be lost, a new one is made and used: a
    /// channel that was never open has run nothing.
    pub(super) async fn open(&self, wanted: Use) -> Result<Open> {
        let mut retried = false;
        let mut refusals = 0;
        loop {
            let lease = self.lease(wanted).await?;
            match lease.connection.handle.channel_open_session().await {
                Ok(channel) => return Ok(Open(Some((channel, lease)))),
                // sshd counts a closed session until its next turn; an answer says it had one.
                Err(russh::Error::ChannelOpenFailure(_)) if refusals < REFUSALS_MAX => {
                    refusals += 1;
                    // An error means that the connection is lost, as the next attempt finds.
                    let _ = lease.connection.handle.send_ping().await;
                }
                Err(russh::Error::ChannelOpenFailure(reason)) => {
                    return Err(Error::new(
                        ErrorKind::Connect,
                        format!("open a session: the guest's sshd refused it ({reason:?})"),
                    )
                    .vm(self.vm())
                    .hint("fleetbox needs MaxSessions 10, sshd's default"));
                }
                Err(e) => {
                    lease.connection.abort();
                    // Whatever else lies idle is as old as this one was.
                    locked(&self.inner.idle).clear();
                    if std::mem::replace(&mut retried, true) {
                        return Err(Error::new(
                            ErrorKind::ConnectionLost,
                            format!("open a session: {}", lease.connection.loss()),
                        )
                        .vm(self.vm())
                        .source(e));
                    }
                }
            }
        }
    }

    async fn lease(&self, wanted: Use) -> Result<Lease> {
        let generation = self.inner.generation.load(Ordering::SeqCst);
        let (connection, permits) = match wanted {
            Use::Shared => self.shared_place().await?,
            Use::Reserve => {
                let connection = self.any_shared().await?;
                let permit = connection.reserve.clone().acquire_owned().await;
                (connection, permit.ok().into_iter().collect())
            }
            Use::Lone => (self.lone().await?, Vec::new()),
        };
        let session = (wanted == Use::Lone).then(|| self.clone());
        Ok(Lease { connection, session, generation, reusable: false, _permits: permits })
    }

    async fn shared_place(&self) -> Result<(Arc<Connection>, Vec<OwnedSemaphorePermit>)> {
        let Ok(place) = self.inner.places.clone().acquire_owned().await else {
            return Err(self.refused());
        };
        if let Some((connection, slot)) = self.free_place() {
            return Ok((connection, vec![place, slot]));
        }
        let _one = self.inner.connecting.lock().await;
        // Somebody may have connected, or left, while we waited.
        if let Some((connection, slot)) = self.free_place() {
            return Ok((connection, vec![place, slot]));
        }
        let connection = self.limited(CONNECT_TIMEOUT, self.add_shared()).await?;
        match connection.places.clone().acquire_owned().await {
            Ok(slot) => Ok((connection, vec![place, slot])),
            Err(_) => Err(self.refused()),
        }
    }

    fn free_place(&self) -> Option<(Arc<Connection>, OwnedSemaphorePermit)> {
        let mut shared = locked(&self.inner.shared);
        shared.retain(|c| !c.is_closed());
        shared.iter().find_map(|c| Some((c.clone(), c.places.clone().try_acquire_owned().ok()?)))
    }

    async fn any_shared(&self) -> Result<Arc<Connection>> {
        // The one with most room: many commands may end at once.
        let live = || {
            let shared = locked(&self.inner.shared);
            let live = shared.iter().filter(|c| !c.is_closed());
            live.max_by_key(|c| c.reserve.available_permits()).cloned()
        };
        if let Some(connection) = live() {
            return Ok(connection);
        }
        let _one = self.inner.connecting.lock().await;
        if let Some(connection) = live() {
            return Ok(connection);
        }
        self.limited(CONNECT_TIMEOUT, self.add_shared()).await
    }

    async fn lone(&self) -> Result<Arc<Connection>> {
        let idle = locked(&self.inner.idle).pop().filter(|c| !c.is_closed());
        let connection = match idle.or_else(|| self.unused()) {
            Some(connection) => connection,
            None => self.limited(CONNECT_TIMEOUT, self.dial()).await?,
        };
        let mut lent = locked(&self.inner.lent);
        lent.retain(|c| c.strong_count() > 0);
        lent.push(Arc::downgrade(&connection));
        Ok(connection)
    }

    /// A shared connection that nobody uses, no longer shared: a login costs more than anything else here.
    fn unused(&self) -> Option<Arc<Connection>> {
        let mut shared = locked(&self.inner.shared);
        // Whoever is about to use one has it already.
        let place = shared.iter().position(|c| Arc::strong_count(c) == 1 && !c.is_closed())?;
        Some(shared.swap_remove(place))
    }

    async fn add_shared(&self) -> Result<Arc<Connection>> {
        let idle = locked(&self.inner.idle).pop().filter(|c| !c.is_closed());
        let connection = match idle {
            Some(connection) => connection,
            None => self.dial().await?,
        };
        let mut shared = locked(&self.inner.shared);
        shared.retain(|c| !c.is_closed());
        shared.push(connection.clone());
        Ok(connection)
    }

    async fn dial(&self) -> Result<Arc<Connection>> {
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(self.refused());
        }
        // Before the generation is read: an end after that is not missed.
        let ended = self.inner.ended.notified();
        let generation = self.inner.generation.load(Ordering::SeqCst);
        let Ok(_login) = self.inner.logins.acquire().await else {
            return Err(self.refused());
        };
        let connection = tokio::select! {
            connection = connection::connect(&self.inner.target, self.inner.config.clone()) => {
                Some(connection?)
            }
            () = ended => None,
        };
        match connection {
            Some(connection) if generation == self.inner.generation.load(Ordering::SeqCst) => {
                Ok(Arc::new(connection))
            }
            _ => Err(Error::new(
                ErrorKind::ConnectionLost,
                "connect: the VM was reset or ended meanwhile",
            )
            .vm(self.vm())),
        }
    }

    async fn limited<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("connect: the guest's sshd did not answer within {limit:?}"),
            )
            .vm(self.vm())
            .hint("look at the VM's console: it may still boot, hang, or have no sshd")),
        }
    }

    fn refused(&self) -> Error {
        Error::new(ErrorKind::NotRunning, "connect: this handle of the VM was closed").vm(self.vm())
    }
}

/// An open channel and its connection. Dropped before it is taken, it is closed in a task of its
/// own: forgotten, it would keep its place in the guest for as long as the connection lives.
pub(super) struct Open(Option<(Channel, Lease)>);

type Channel = russh::Channel<client::Msg>;

impl Open {
    pub(super) fn take(mut self) -> Option<(Channel, Lease)> {
        self.0.take()
    }

    pub(super) fn channel(&mut self) -> Option<&mut Channel> {
        self.0.as_mut().map(|(channel, _)| channel)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let (Some((mut channel, mut lease)), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            // An error means that the connection is gone, and the channel with it.
            if channel.close().await.is_ok() {
                while let Some(message) = channel.wait().await {
                    if matches!(message, russh::ChannelMsg::Close) {
                        lease.clean();
                    }
                }
            }
        });
    }
}

/// A connection while one request uses it. A lone one goes back to the idle ones if its request
/// left it clean, and is cut off otherwise.
pub(super) struct Lease {
    pub(super) connection: Arc<Connection>,
    session: Option<Session>,
    generation: u64,
    reusable: bool,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl Lease {
    /// The request's channel was closed by both sides: nothing of it is under way.
    pub(super) fn clean(&mut self) {
        self.reusable = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let inner = &session.inner;
        let mut idle = locked(&inner.idle);
        let current = self.generation == inner.generation.load(Ordering::SeqCst);
        if self.reusable && current && !self.connection.is_closed() && idle.len() < IDLE_CONNECTIONS
        {
            idle.push(self.connection.clone());
        } else {
            self.connection.abort();
        }
    }
}

/// Every critical section leaves the data whole, so a panic in one is no reason to stop.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
