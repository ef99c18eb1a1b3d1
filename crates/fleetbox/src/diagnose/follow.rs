//! Owns following a console while its guest boots: reading what is new, line by line, and keeping the
//! stages seen and what went wrong. It must not wait; callers decide when to look again.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::BootStage;
use super::cause::{Shown, Suspicion};
use super::marks::{self, LastWord};
use crate::console::{self, uncoloured};
use crate::progress::Stage;

/// Longer lines prove nothing beyond this; it bounds what a hostile guest can make us keep.
const LINE_BYTES_MAX: usize = 8192;
/// What is read of a console at most in one go: a guest that floods it is not read for ever.
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Follows a console and tells the stage it shows.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    began: Instant,
    offset: u64,
    rest: Vec<u8>,
    stage: Stage,
    seen: Vec<BootStage>,
    suspicion: Suspicion,
    /// That there is no more to this boot.
    last_word: Option<LastWord>,
    /// When something was read the last time.
    heard: Instant,
}

impl Follower {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            began: Instant::now(),
            offset: 0,
            rest: Vec::new(),
            stage: Stage::Firmware,
            seen: Vec::new(),
            suspicion: Suspicion::default(),
            last_word: None,
            heard: Instant::now(),
        }
    }

    /// The furthest stage the console shows.
    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Every stage that was seen, with when.
    pub(crate) fn seen(&self) -> &[BootStage] {
        &self.seen
    }

    pub(crate) fn shown(&self) -> Option<&Shown> {
        self.suspicion.shown()
    }

    /// Whether the console's words say that the guest will not come up any more.
    pub(crate) fn is_over(&self) -> bool {
        self.suspicion.is_over()
    }

    /// Whether the boot is over, and nothing was said for so long.
    pub(crate) fn rests_for(&self, time: Duration) -> bool {
        self.has_finished() && self.heard.elapsed() >= time
    }

    /// Whether the boot came to its end, well or not.
    pub(crate) fn has_finished(&self) -> bool {
        match self.last_word {
            None => false,
            Some(LastWord::CloudInit) => true,
            Some(LastWord::Login) => {
                let cloud_init = [Stage::CloudInitLocal, Stage::CloudInit];
                !self.seen.iter().any(|seen| cloud_init.contains(&seen.stage))
            }
        }
    }

    pub(crate) fn has_read_nothing(&self) -> bool {
        self.offset == 0
    }

    /// Reads what is new and returns the stage if it moved on.
    pub(crate) fn advance(&mut self) -> io::Result<Option<Stage>> {
        let before = self.stage;
        let bytes = console::from(&self.path, &mut self.offset, READ_BYTES_MAX)?;
        if !bytes.is_empty() {
            self.heard = Instant::now();
        }
        self.take(&bytes);
        // A shell's prompt ends no line.
        let prompt = String::from_utf8_lossy(&self.rest).into_owned();
        self.suspicion.look(&prompt);
        self.last_word = self.last_word.max(marks::last_word(&prompt));
        Ok((self.stage != before).then_some(self.stage))
    }

    fn take(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.rest.len());
            self.rest.extend_from_slice(&line[..line.len().min(room)]);
            if line.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&self.rest).into_owned();
                self.line(&text);
                self.rest.clear();
            }
        }
    }

    fn line(&mut self, line: &str) {
        let line = &*uncoloured(line);
        self.suspicion.look(line);
        self.last_word = self.last_word.max(marks::last_word(line.trim_end()));
        let Some(mark) = marks::mark(line) else { return };
        if mark.stage == Stage::Kernel {
            // It boots once more.
            self.last_word = None;
        }
        if self.seen.iter().any(|seen| seen.stage == mark.stage) {
            return;
        }
        self.stage = self.stage.max(mark.stage);
        let since_power_on = Some(self.began.elapsed());
        self.seen.push(BootStage { stage: mark.stage, guest_clock: mark.guest, since_power_on });
    }
}

/// What a whole console shows of the boot it is about, without the host's times.
pub(super) fn read(console: &[u8]) -> (Vec<BootStage>, Option<Shown>) {
    let mut follower = Follower::new(PathBuf::new());
    follower.take(console);
    follower.take(b"\n");
    let mut seen = follower.seen;
    for stage in &mut seen {
        stage.since_power_on = None::<Duration>;
    }
    (seen, follower.suspicion.shown().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn stages_only_move_forward_and_lines_may_come_in_pieces() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut follower = Follower::new(file.path().to_owned());
        assert_eq!(follower.advance().unwrap(), None);
        file.write_all(b"[ 0.0] Linux version 6.1\n[ 1.0] syst").unwrap();
        assert_eq!(follower.advance().unwrap(), Some(Stage::Kernel));
        file.write_all(b"emd[1]: hello\n").unwrap();
        assert_eq!(follower.advance().unwrap(), Some(Stage::Init));
        file.write_all(b"Cloud-init v. 22.4 running 'init' at x\nLinux version 6.1\n").unwrap();
        assert_eq!(follower.advance().unwrap(), Some(Stage::CloudInit));
        assert_eq!(follower.stage(), Stage::CloudInit);
        assert_eq!(follower.seen().len(), 3);
        assert_eq!(follower.seen()[1].guest_clock, Some(Duration::from_secs(1)));
        assert!(!follower.is_over());
    }

    #[test]
    fn a_boot_is_over_with_its_last_words_unless_another_begins() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut follower = Follower::new(file.path().to_owned());
        let mut finished_after = |bytes: &[u8]| {
            file.write_all(bytes).unwrap();
            follower.advance().unwrap();
            follower.has_finished()
        };
        assert!(!finished_after(
            b"[ 0.0] Linux version 6.1\nDebian GNU/Linux 12 web ttyS0\n\nweb lo"
        ));
        assert!(finished_after(b"gin: "));
        assert!(!finished_after(b"\nCloud-init v. 22.4.2 running 'modules:final' at x\n"));
        assert!(!finished_after(b"[ 0.0] Linux version 6.1\n"));
        assert!(finished_after(
            b"[ 9.1] cloud-init[9]: Cloud-init v. 22.4.2 finished at x. Up 9.1 seconds\n"
        ));
        assert!(follower.rests_for(Duration::ZERO) && !follower.rests_for(Duration::from_mins(1)));
    }

    #[test]
    fn a_prompt_without_an_end_of_line_is_seen() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut follower = Follower::new(file.path().to_owned());
        file.write_all(b"BusyBox v1.35.0 built-in shell (ash)\n\n(initramfs) ").unwrap();
        follower.advance().unwrap();
        assert!(follower.is_over());
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![b'x'; 1 << 20]).unwrap();
        let mut follower = Follower::new(file.path().to_owned());
        follower.advance().unwrap();
        assert!(follower.rest.len() <= LINE_BYTES_MAX);
        file.write_all(b"\n[ 1.0] Linux version 6\n").unwrap();
        assert_eq!(follower.advance().unwrap(), Some(Stage::Kernel));
    }

    #[test]
    fn a_whole_console_is_read_without_the_hosts_times() {
        let (seen, shown) = read(b"[ 0.0] Linux version 6\r\n[ 2.0] Kernel panic - not syncing: x");
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].since_power_on, None);
        assert_eq!(shown.unwrap().cause, crate::BootCause::Panic);
    }
}
