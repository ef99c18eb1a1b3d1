//! Owns what is told of a [`Vm`] to whoever looks into a failure: logs, facts, its transcript. It must not
//! ask the guest.

use std::path::Path;

use super::Vm;
use crate::error::{Error, Result};
use crate::ssh::{Place, Transcript};

impl Vm {
    /// Lets the VM live on when nobody holds it any more, as one that was started
    /// [detached](crate::VmBuilder::detached), until it is stopped. Does nothing if it does already.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`](crate::ErrorKind::NotRunning).
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.detach().await?;
    /// println!("look into it: fleetbox ssh {}", vm.name());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn detach(&self) -> Result<()> {
        self.inner.client.detach(&self.inner.record.name).await.map_err(|e| self.mine(e))
    }

    /// Whether it came from a snapshot when it was made.
    pub(crate) fn is_from_snapshot(&self) -> bool {
        self.inner.record.machine_id.is_some()
    }

    /// The last bytes of its console.
    pub(crate) fn console_end(&self, bytes_max: u64) -> Result<Vec<u8>> {
        self.end_of(&self.member().console(), bytes_max)
    }

    /// Has its commands from now on written down there.
    pub(crate) fn write_down(&self, transcript: &Transcript) {
        self.inner.session.write_down(transcript);
    }

    /// Has a capture's file kept with the transcript.
    pub(crate) fn note_capture(&self, path: &Path) {
        self.inner.session.note_capture(path);
    }

    /// A place in the transcript for a wait.
    pub(crate) fn note_wait(&self, label: &str) -> Option<Place> {
        self.inner.session.note(label)
    }

    /// The name of its cluster.
    pub(crate) fn cluster_name(&self) -> &str {
        self.inner.record.cluster.as_str()
    }

    /// The end of what its monitor said; it begins with the command line.
    pub(crate) fn monitor_log(&self, bytes_max: u64) -> Result<Vec<u8>> {
        self.end_of(&self.member().vmm_log(), bytes_max)
    }

    /// The end of what its holder said.
    pub(crate) fn holder_log(&self, bytes_max: u64) -> Result<Vec<u8>> {
        self.end_of(&self.inner.cluster.holder_log(), bytes_max)
    }

    /// What it was made of.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let record = &self.inner.record;
        vec![
            ("image", record.spec.image.clone()),
            ("digest", record.image_digest.clone()),
            ("backend", record.backend.map_or("-".to_owned(), |backend| backend.to_string())),
            ("arch", record.spec.arch.to_string()),
            ("cpus", record.spec.cpus.to_string()),
            ("memory MiB", record.spec.memory_mib.to_string()),
            ("disk GiB", record.spec.disk_gib.to_string()),
            ("address", record.address.to_string()),
        ]
    }

    fn end_of(&self, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
        crate::console::end(path, bytes_max).map_err(|e| self.mine(Error::io("read", path, e)))
    }
}
