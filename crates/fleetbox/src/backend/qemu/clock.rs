//! Owns the one thing that is wrong in the state which a QEMU writes whose machine never ran: the time of a
//! guest on KVM. It must not know of the rest of the state.
//!
//! As its state is written, QEMU reads the guest's clock anew from KVM, unless its machine ran and was
//! stopped (`kvmclock_pre_save` in its source). In the one that received a machine in order to save it KVM
//! was never told that clock, and says how old it is itself. A guest that came back with that would see its
//! time stand still until the clock is where it was. So the state says that the clock cannot be relied upon:
//! QEMU then takes it from the guest's memory, by the processor's counter, both as they were.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What says whether the clock can be relied upon, up to the byte that does: a subsection (QEMU's
/// `migration/vmstate.c`), its name with the length before it, its version.
const RELIABLE: &[u8] = b"\x05\x1akvmclock/clock_is_reliable\0\0\0\x01";

/// Has whoever comes back from that state take the clock from its memory. Without KVM there is none.
pub(super) fn take_from_memory(device: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let state = std::fs::read(device)?;
    let Some(at) = state.windows(RELIABLE.len()).position(|part| part == RELIABLE) else {
        return Ok(());
    };
    file.write_all_at(&[0], (at + RELIABLE.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(state: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        std::fs::write(&device, state).unwrap();
        take_from_memory(&device).unwrap();
        std::fs::read(&device).unwrap()
    }

    #[test]
    fn a_clock_of_a_machine_that_never_ran_is_not_relied_upon() {
        // As QEMU 7.2 and 11.1 write it: a section, its clock, the subsection, the section's footer.
        let state = |reliable: u8| {
            let clock = b"\x04\0\0\0\x2d\x08kvmclock\0\0\0\0\0\0\0\x01\0\0\0\0\x12\x34\x56\x78";
            [clock, RELIABLE, &[reliable], b"\x7e\0\0\0\x2d".as_slice()].concat()
        };
        assert_eq!(taken(&state(1)), state(0));
        assert_eq!(taken(&state(0)), state(0));
    }

    #[test]
    fn a_state_without_that_clock_stays_as_it_is() {
        let described =
            br#"{"name":"kvmclock","subsections":[{"vmsd_name":"kvmclock/clock_is_reliable"}]}"#;
        assert_eq!(taken(described), described);
        assert_eq!(taken(b""), b"");
    }
}
