//! Owns running long, blocking work beside the async runtime, and ending it when nobody waits for
//! it any more. It must not know what the work is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Tells a thread that its result is no longer wanted.
#[derive(Debug, Default)]
pub(crate) struct Cancel {
    raised: AtomicBool,
    gate: Mutex<()>,
    changed: Condvar,
}

impl Cancel {
    pub(crate) fn raise(&self) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.raised.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.raised
    }

    /// Ends the work with an error once the flag is raised; nobody is left to read it.
    pub(crate) fn check(&self) -> Result<()> {
        if self.raised.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, "finish: cancelled"));
        }
        Ok(())
    }

    /// Waits until the flag is raised (true), or `ended` is set and [`Cancel::wake`] called (false).
    pub(crate) fn raised_before(&self, ended: &AtomicBool) -> bool {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let _gate = self
            .changed
            .wait_while(gate, |()| {
                !self.raised.load(Ordering::Relaxed) && !ended.load(Ordering::Relaxed)
            })
            .unwrap_or_else(PoisonError::into_inner);
        !ended.load(Ordering::Relaxed)
    }

    /// Whether `ended` comes to be set within `limit`.
    pub(crate) fn ended_within(&self, ended: &AtomicBool, limit: Duration) -> bool {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let _gate = self
            .changed
            .wait_timeout_while(gate, limit, |()| !ended.load(Ordering::Relaxed))
            .unwrap_or_else(PoisonError::into_inner);
        ended.load(Ordering::Relaxed)
    }

    /// Makes those who wait look again.
    pub(crate) fn wake(&self) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Lets `delay` pass, less if the flag is raised meanwhile.
    pub(crate) fn wait(&self, delay: Duration) -> Result<()> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(gate, delay, |()| !self.raised.load(Ordering::Relaxed))
            .unwrap_or_else(PoisonError::into_inner);
        drop(waited);
        self.check()
    }
}

struct RaiseOnDrop(Arc<Cancel>);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// Runs `work` on a thread of its own. Dropping the future raises the work's flag; the thread ends
/// at its next look at it. Not the runtime's blocking pool: that would keep a runtime from shutting
/// down for as long as a silent server is waited for.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancel = Arc::new(Cancel::default());
    let guard = RaiseOnDrop(cancel.clone());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // A failed send means that the waiting future was dropped.
            drop(sender.send(work(&cancel)));
        })
        .map_err(|e| Error::new(ErrorKind::Io, format!("start a thread to {name}")).source(e))?;
    let result = receiver
        .await
        .map_err(|_| Error::new(ErrorKind::Internal, format!("{name}: its thread panicked")))?;
    drop(guard);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_the_future_ends_the_work() {
        let (started, is_started) = std::sync::mpsc::channel();
        let (ended, is_ended) = std::sync::mpsc::channel();
        let future = run("wait", move |cancel| {
            started.send(()).unwrap();
            let result = cancel.wait(Duration::from_mins(10));
            ended.send(result.is_err()).unwrap();
            result
        });
        let task = tokio::spawn(future);
        while is_started.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        task.abort();
        assert!(task.await.is_err());
        assert!(is_ended.recv_timeout(Duration::from_mins(1)).unwrap());
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let error = run::<()>("fall over", |_| panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
}
