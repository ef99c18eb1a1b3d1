//! Owns the buttons of a [`Vm`]: stop, power cut, reboot, reset, pause, resume, balloon, clock. Starting
//! and destroying are not among them.

use std::time::{Duration, Instant};

use super::{State, Vm};
use crate::backend::{Backend, Capabilities};
use crate::control::message::Note;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::MEMORY_MIB_MIN;

/// How long a guest may take to shut down by itself: systemd stops most services well within this.
pub(crate) const STOP_GRACE: Duration = Duration::from_mins(1);
/// How long a guest may take from a reboot's request to its next login.
const REBOOT_WAIT: Duration = Duration::from_mins(10);
const POLL_FIRST: Duration = Duration::from_millis(100);
const POLL_LAST: Duration = Duration::from_secs(1);
/// A hundred years: a clock further off tests nothing but what a year is.
pub(crate) const JUMP_MS_MAX: u64 = 100 * 366 * 24 * 3600 * 1000;

impl Vm {
    /// Stops the VM: presses the power button, and after a grace time of 60 s cuts it off. The
    /// disk stays. A paused VM runs on to hear it. Does nothing if it is stopped.
    ///
    /// # Errors
    /// If the holder cannot be asked.
    pub async fn stop(&self) -> Result<()> {
        self.stop_within(STOP_GRACE).await
    }

    /// [`Vm::stop`] with a grace time of the caller's; zero cuts it off at once.
    ///
    /// # Errors
    /// As [`Vm::stop`].
    pub async fn stop_within(&self, grace: Duration) -> Result<()> {
        self.inner.session.close();
        let name = &self.inner.record.name;
        let stopped = if grace.is_zero() {
            self.inner.client.kill(name).await
        } else {
            self.inner.client.stop(name, grace).await
        };
        match stopped {
            Err(e) if is_gone(&e) => Ok(()),
            stopped => stopped.map_err(|e| self.mine(e)),
        }
    }

    /// Cuts the power: ends the VM at once, as if its plug were pulled. What the guest had synced is
    /// on the disk, what it had not may be lost or half written, and is lost for certain if the VM is
    /// [durable](crate::VmBuilder::durable); the next start boots this disk, of an
    /// [ephemeral](crate::VmBuilder::ephemeral) VM as long as somebody holds it. Does nothing if the VM is
    /// stopped.
    ///
    /// Dropped before it is done, the power is cut all the same once the request was sent.
    ///
    /// # Errors
    /// If the holder cannot be asked.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.ssh("echo kept > kept && sync && echo perhaps > perhaps").await?;
    /// vm.power_cut().await?;
    /// let vm = fleetbox::Vm::start(vm.name()).await?;
    /// assert_eq!(vm.ssh("cat kept").await?, "kept");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn power_cut(&self) -> Result<()> {
        self.stop_within(Duration::ZERO).await
    }

    /// Reboots the guest politely and waits until it answers again. A paused VM runs on first. Falls
    /// back to the reset button if the guest cannot be asked or refuses.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`]; [`ErrorKind::TimedOut`] if it does not come back within ten
    /// minutes.
    pub async fn reboot(&self) -> Result<()> {
        if self.state().await? == State::Paused {
            self.resume().await?;
        }
        let before = match self.boot_id().await {
            Ok(id) => id,
            Err(e) if e.kind() == ErrorKind::NotRunning => return Err(e),
            Err(_) => return self.reset().await,
        };
        match self.shell("sudo -n systemctl reboot").output().await {
            // Its own code says that it did not do it; a shutdown under way ends it by a signal.
            Ok(output) if output.status.code().is_some_and(|code| (1..128).contains(&code)) => {
                return self.reset().await;
            }
            // sshd may end the session before the answer: what counts is the next boot id.
            _ => {}
        }
        self.booted_again(Some(&before)).await
    }

    /// Presses the reset button and waits until the guest answers again. Nothing is asked of the
    /// guest: what it had not synced is lost, as after [`Vm::power_cut`]. A paused VM runs on.
    ///
    /// # Errors
    /// As [`Vm::reboot`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.reset().await?;
    /// assert_eq!(vm.ssh("systemctl is-system-running --wait").await?, "running");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn reset(&self) -> Result<()> {
        let name = &self.inner.record.name;
        self.inner.client.reset(name).await.map_err(|e| self.mine(e))?;
        self.booted_again(None).await
    }

    /// Waits until the guest answers from another boot than `before`.
    async fn booted_again(&self, before: Option<&str>) -> Result<()> {
        self.inner.session.reset();
        let deadline = Instant::now() + REBOOT_WAIT;
        let mut pause = POLL_FIRST;
        while Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_LAST);
            match self.boot_id().await {
                Ok(id) if before != Some(&id) => return Ok(()),
                Err(e)
                    if matches!(e.kind(), ErrorKind::NotRunning | ErrorKind::HostKeyMismatch) =>
                {
                    return Err(e);
                }
                // Still the old boot, or nobody there yet.
                _ => self.inner.session.reset(),
            }
        }
        Err(self.mine(
            Error::new(ErrorKind::TimedOut, "come back from the reboot")
                .detail(crate::console::tail(&self.member().console()))
                .hint(format!("read `fleetbox logs {}`", self.name())),
        ))
    }

    /// A value the kernel makes anew at each boot (random(4)).
    async fn boot_id(&self) -> Result<String> {
        self.ssh("cat /proc/sys/kernel/random/boot_id").await
    }

    /// Stops the VM's processors where they are; its memory stays as it is. Does nothing if it is
    /// paused. When this returns, the guest does nothing any more: calls to it wait, and go on after
    /// [`Vm::resume`] or end by their own time limits; SSH connections are given up after some 24 s
    /// of silence. [`Vm::stop`], [`Vm::reboot`], [`Vm::reset`] and a start of the same name let a
    /// paused VM run on first.
    ///
    /// The guest's clock may stand still with it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] before any work if the backend cannot
    /// ([`Capabilities::pause`]); [`ErrorKind::NotRunning`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.pause().await?;
    /// assert_eq!(vm.state().await?, fleetbox::State::Paused);
    /// // … how do the others take it? …
    /// vm.resume().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn pause(&self) -> Result<()> {
        self.able("pause", |can| can.pause)?;
        self.inner.client.pause(&self.inner.record.name).await.map_err(|e| self.mine(e))
    }

    /// Lets the processors of a [paused](Vm::pause) VM go on. Does nothing if it is not paused.
    ///
    /// # Errors
    /// As [`Vm::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.able("resume", |can| can.pause)?;
        self.inner.client.resume(&self.inner.record.name).await.map_err(|e| self.mine(e))
    }

    /// Takes that many MiB of the guest's memory away, as by a balloon blown up in it; 0 gives all
    /// back. It counts from the full memory, not from what an earlier call left, and lasts until the
    /// next call or the VM's end, reboots included.
    ///
    /// Returns once the monitor has taken the request: the guest's driver gives the memory up in the
    /// seconds that follow, as far as it can; `/proc/meminfo` in it shows how far. A guest left with
    /// too little kills processes.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] before any work if the backend cannot
    /// ([`Capabilities::balloon`]); [`ErrorKind::InvalidSpec`] before any work if less than 128 MiB
    /// would be left; [`ErrorKind::NotRunning`].
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let vm = fleetbox::Vm::builder("small").memory_mib(1024).start().await?;
    /// vm.set_balloon_mib(512).await?;
    /// // … the guest has half of its memory …
    /// vm.set_balloon_mib(0).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn set_balloon_mib(&self, mib: u32) -> Result<()> {
        self.able("take memory from it", |can| can.balloon)?;
        let memory_mib = self.inner.record.spec.memory_mib;
        let most_mib = memory_mib.saturating_sub(MEMORY_MIB_MIN);
        if mib > most_mib {
            return Err(self.mine(
                Error::new(
                    ErrorKind::InvalidSpec,
                    format!("take {mib} MiB of its {memory_mib} MiB: too little would be left"),
                )
                .hint(format!("take at most {most_mib} MiB")),
            ));
        }
        self.inner.client.set_balloon(&self.inner.record.name, mib).await.map_err(|e| self.mine(e))
    }

    /// Lets the guest's wall clock jump by that many milliseconds, back if negative, as after a bad
    /// correction. Its monotonic clocks go on. A time service in the guest may set it right again:
    /// systemd's is told not to (`timedatectl set-ntp false`); the guest has no other by default, nor
    /// a way to a time server.
    ///
    /// It is done in the guest, by `date` as root, within the few milliseconds that takes. It lasts
    /// until the next jump, or a boot: then the clock is the host's again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] before any work if it is more than a hundred years;
    /// [`ErrorKind::Unsupported`] before any work if the backend's guests have no clock of their own
    /// ([`Capabilities::clock`]); [`ErrorKind::CommandFailed`] if the guest refuses the result.
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// vm.clock_jump(-3_600_000).await?; // an hour back
    /// # Ok(())
    /// # }
    /// ```
    pub async fn clock_jump(&self, by_ms: i64) -> Result<()> {
        if by_ms.unsigned_abs() > JUMP_MS_MAX {
            return Err(self.mine(
                Error::new(ErrorKind::InvalidSpec, format!("let the clock jump by {by_ms} ms"))
                    .hint("a hundred years are the most"),
            ));
        }
        self.able("let the clock jump", |can| can.clock)?;
        // In nanoseconds, which a shell's 64 bits hold until 2262.
        let line = format!(
            "timedatectl set-ntp false 2>/dev/null; \
             ns=$(($(date +%s%N) + {by_ms} * 1000000)); \
             [ $ns -ge 0 ] && date -s \"@$((ns / 1000000000)).$(printf %09d $((ns % 1000000000)))\""
        );
        self.command("sh").args(["-c", &line]).sudo().run().await?;
        let note = Note::ClockJump { by_ms };
        self.inner.client.note(&self.inner.record.name, note).await.map_err(|e| self.mine(e))
    }

    /// Refuses what the VM's backend cannot do.
    pub(crate) fn able(&self, what: &str, asked: impl FnOnce(Capabilities) -> bool) -> Result<()> {
        if self.is_able(asked) {
            return Ok(());
        }
        let backend = self.backend();
        Err(self.mine(
            Error::new(ErrorKind::Unsupported, format!("{what}: the backend {backend} cannot"))
                .hint("use a VM of another backend; `Backend::capabilities` tells what each can"),
        ))
    }

    pub(crate) fn is_able(&self, asked: impl FnOnce(Capabilities) -> bool) -> bool {
        asked(self.backend().capabilities())
    }

    /// Records of old name no other than QEMU.
    pub(crate) fn backend(&self) -> Backend {
        self.inner.record.backend.unwrap_or(Backend::Qemu)
    }
}

/// Nobody is there to be asked, so nothing runs.
fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotRunning | ErrorKind::HolderDied)
}
