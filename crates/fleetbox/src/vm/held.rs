//! Owns a handle's hold on its running machine: it keeps the hold, and cuts the machine's connections
//! off as soon as the machine or its holder ends, so that no call waits for a guest that is gone. It
//! must not ask the holder for anything.

use std::os::fd::OwnedFd;

use crate::control::client::Hold;
use crate::control::message::Event;
use crate::error::Result;
use crate::spec::Name;
use crate::ssh::{Session, WeakSession};

/// A hold that is watched. Dropping it lets go.
pub(super) struct Held {
    socket: OwnedFd,
}

impl Held {
    /// Watches in a task of this runtime.
    pub(super) fn new(hold: Hold, vm: Name, session: &Session) -> Result<Self> {
        let socket = hold.socket()?;
        tokio::spawn(watch(hold, vm, session.downgrade()));
        Ok(Self { socket })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The task may belong to a runtime that nobody drives any more: the holder hears of it all
        // the same. An error means that the holder is gone.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

async fn watch(mut hold: Hold, vm: Name, session: WeakSession) {
    loop {
        let why = match hold.next().await {
            Ok(Event::Ended { vm: ended, why }) if ended == vm => Some(why),
            Ok(Event::Ended { .. }) => continue,
            Err(_) => None,
        };
        // Without one there is nobody to tell.
        let Some(session) = session.upgrade() else { return };
        match why {
            // It may be started again under the same hold.
            Some(why) => session.cut_off(&format!("the machine ended: {why}")),
            None => return session.cut_off("the machine's holder ended"),
        }
    }
}
