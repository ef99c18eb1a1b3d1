//! Owns who may create and boot members of a cluster. It must not do either.

use std::sync::{Arc, Weak};

use tokio::sync::OwnedMutexGuard;

use super::StartRequest;
use crate::error::Result;
use crate::holder::cleanup;
use crate::progress::Progress;
use crate::store::lock::{self, Lock};
use crate::store::paths::ClusterPaths;

/// The right to create and boot members of a cluster. One process has it at a time: a second start of the
/// same name waits and then joins. The starts of one caller share it, and take turns until their member is
/// made and its holder lives.
pub(super) struct Starter<'a> {
    cluster: &'a ClusterPaths,
    lock: Arc<Lock>,
    turn: Option<OwnedMutexGuard<Weak<Lock>>>,
}

impl<'a> Starter<'a> {
    pub(super) async fn new(cluster: &'a ClusterPaths, request: &StartRequest) -> Result<Self> {
        let mut turn = request.queue.clone().lock_owned().await;
        let lock = if let Some(lock) = turn.upgrade() {
            lock
        } else {
            let name = cluster.name()?;
            let waiting = || {
                let note = format!("waiting for another process that works on {name}");
                request.progress.send(Progress::Note(note));
            };
            Arc::new(lock::lock(&cluster.lock(), waiting).await?)
        };
        *turn = Arc::downgrade(&lock);
        Ok(Self { cluster, lock, turn: Some(turn) })
    }

    /// Whoever is next may make its member.
    pub(super) fn let_next(&mut self) {
        self.turn = None;
    }

    /// For a second try.
    pub(super) async fn take_turn(&mut self, request: &StartRequest) {
        if self.turn.is_none() {
            let mut turn = request.queue.clone().lock_owned().await;
            *turn = Arc::downgrade(&self.lock);
            self.turn = Some(turn);
        }
    }
}

impl Drop for Starter<'_> {
    fn drop(&mut self) {
        // A cluster without members, as a start that failed or was dropped leaves it, is not worth
        // a directory. What could not be removed is seen by the next start.
        let _ = cleanup::remove_if_empty(self.cluster);
    }
}
