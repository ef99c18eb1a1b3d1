//! Owns the question whether one more member may begin to boot, as cores go round. Whether there is
//! memory for it is settled before, by `launch::admission`. It must not start anything.

/// Two side by side are faster than one after the other even on one core: a boot waits for its disk
/// and clocks, too.
const BOOTS_MIN: usize = 2;
/// A restore takes little of a core's time.
const RESTORES_PER_BOOT: usize = 4;

/// How many members may boot at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    boots: usize,
}

impl Room {
    /// As the caller says, else as the host is, where all members are restored instead of booted if
    /// `restored` says so.
    pub(super) fn of(boots_at_once: Option<usize>, restored: bool) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let each = if restored { RESTORES_PER_BOOT } else { 1 };
        Self { boots: boots_at_once.unwrap_or_else(|| cores().max(BOOTS_MIN) * each) }
    }

    /// Whether one may boot beside those that do; else what to tell whoever has to wait.
    pub(super) fn admit(self, booting: usize) -> Result<(), String> {
        if booting < self.boots {
            return Ok(());
        }
        Err(format!("waiting for another member: {} boot at once", self.boots))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_limit_how_many_boot_at_once() {
        assert!(Room::of(None, false).admit(1).is_ok(), "two always may");
        assert!(Room::of(None, true).admit(7).is_ok(), "restores are quick");
        let room = Room::of(Some(3), true);
        assert_eq!(room.admit(2), Ok(()));
        assert!(room.admit(3).unwrap_err().contains("3 boot at once"));
    }
}
