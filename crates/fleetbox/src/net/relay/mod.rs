//! Owns the relay of a member whose link is at fault: a thread that carries frames between two taps,
//! by the queue's schedule. It must not know how the taps are wired, nor what a fault is called.

mod frame;
mod queue;
mod stage;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use self::frame::Way;
pub(crate) use self::frame::{HostSide, Mac};
use self::queue::Queue;
pub(crate) use self::stage::{Impairment, StagePlan};

/// A tap hands over frames of this size at most.
const FRAME_BYTES_MAX: usize = 65_536;
/// So many frames are read from one tap before anything else is looked at.
const BURST: usize = 64;

/// The two taps of a relay: neither has offloads, so each read is one frame as on a wire.
#[derive(Debug)]
pub(crate) struct Taps {
    pub guest: OwnedFd,
    pub bridge: OwnedFd,
}

/// A running relay. Dropping it delivers what is under way, and ends it.
#[derive(Debug)]
pub(crate) struct Relay {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Set(Vec<StagePlan>),
    /// Delivers at once what is under way; then says so.
    Flush(Sender<()>),
    End,
}

impl Relay {
    pub(crate) fn start(taps: Taps, host: HostSide, plans: Vec<StagePlan>) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, inbox) = mpsc::channel();
        let runner = Runner {
            taps,
            inbox,
            wake: wake.clone(),
            began: Instant::now(),
            queue: Queue::new(host, plans),
        };
        let thread = thread::Builder::new().name("relay".into()).spawn(move || runner.run())?;
        Ok(Self { orders, wake, thread: Some(thread) })
    }

    /// Other stages from here on.
    pub(crate) fn set(&self, plans: Vec<StagePlan>) {
        self.order(Order::Set(plans));
    }

    /// Without stages from here on, and with nothing under way any more.
    pub(crate) fn flush(&self) {
        let (done, flushed) = mpsc::channel();
        self.order(Order::Set(Vec::new()));
        self.order(Order::Flush(done));
        // An ended relay has nothing under way.
        let _ = flushed.recv();
    }

    fn order(&self, order: Order) {
        // The thread only ends when told to, or when a tap is gone and there is nothing to relay.
        drop(self.orders.send(order));
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.flush();
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Runner {
    taps: Taps,
    inbox: Receiver<Order>,
    wake: Arc<OwnedFd>,
    began: Instant,
    queue: Queue,
}

impl Runner {
    fn run(mut self) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(e) => {
                    log::warn!("a relay ended: {e}");
                    return;
                }
            };
            if !self.obey() {
                return;
            }
            for (way, readable) in [(Way::FromGuest, ready.0), (Way::ToGuest, ready.1)] {
                if readable && let Err(e) = self.read(way, &mut buffer) {
                    log::warn!("a relay's tap is gone: {e}");
                    return;
                }
            }
            let now = self.began.elapsed();
            while let Some((way, bytes)) = self.queue.leave(now) {
                self.write(way, &bytes);
            }
        }
    }

    /// Until a tap has a frame, an order is there, or a frame is due.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let timeout = self.queue.next_due().map(|at| at.saturating_sub(self.began.elapsed()));
        let timeout = timeout.map(timespec);
        let mut fds = [
            PollFd::new(&self.taps.guest, PollFlags::IN),
            PollFd::new(&self.taps.bridge, PollFlags::IN),
            PollFd::new(&*self.wake, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = fds.each_ref().map(|fd| !fd.revents().is_empty());
        if ready[2] {
            // Another order may have cleared it.
            let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        }
        Ok((ready[0], ready[1]))
    }

    /// False if it is told to end.
    fn obey(&mut self) -> bool {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Set(plans) => self.queue.set(plans),
                Order::Flush(done) => {
                    while let Some((way, bytes)) = self.queue.leave(Duration::MAX) {
                        self.write(way, &bytes);
                    }
                    // Whoever asked may not wait any more.
                    let _ = done.send(());
                }
                Order::End => return false,
            }
        }
        true
    }

    fn read(&mut self, way: Way, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..BURST {
            let tap = match way {
                Way::FromGuest => &self.taps.guest,
                Way::ToGuest => &self.taps.bridge,
            };
            let length = match rustix::io::read(tap, &mut *buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(e) => return Err(e.into()),
            };
            let frame = &buffer[..length];
            if !self.queue.take(self.began.elapsed(), way, frame) {
                self.write(way, frame);
            }
        }
        Ok(())
    }

    fn write(&self, way: Way, frame: &[u8]) {
        let tap = match way {
            Way::FromGuest => &self.taps.bridge,
            Way::ToGuest => &self.taps.guest,
        };
        // A full tap loses the frame, as any network card does.
        if let Err(e) = rustix::io::write(tap.as_fd(), frame) {
            log::debug!("a relay lost a frame: {e}");
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
