//! Owns a guest of two instructions on KVM, as little as proves that guests run (Linux,
//! `Documentation/virt/kvm/api.rst` and `include/uapi/linux/kvm.h`). It must not judge the host.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Opcode, opcode};

const KVMIO: u8 = 0xae;
const CREATE_VM: Opcode = opcode::none(KVMIO, 0x01);
const CREATE_VCPU: Opcode = opcode::none(KVMIO, 0x41);

/// Calls that take a number and answer with one, which may be a new file descriptor's.
///
/// # Safety
/// Whatever the request makes of its argument, which may be an address, must be sound.
unsafe fn ioctl(fd: &impl AsRawFd, request: Opcode, argument: usize) -> io::Result<i32> {
    // SAFETY: as the caller says.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request.into(), argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// The same of requests whose argument, if they have one, is a mere number.
fn ask(fd: &impl AsRawFd, request: Opcode) -> io::Result<i32> {
    // SAFETY: neither reads nor writes memory of ours.
    unsafe { ioctl(fd, request, 0) }
}

fn made(fd: i32) -> OwnedFd {
    // SAFETY: KVM has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn device() -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm")
}

/// On other processors making a VM and a vCPU has to do; a boot without a console byte is noticed
/// later.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn run() -> io::Result<()> {
    let vm = made(ask(&device()?, CREATE_VM)?);
    ask(&vm, CREATE_VCPU).map(made).map(drop)
}

#[cfg(target_arch = "x86_64")]
pub(super) use self::x86_64::run;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::ffi::c_void;
    use std::ptr;

    use super::{
        AsRawFd, CREATE_VCPU, CREATE_VM, KVMIO, Opcode, OwnedFd, ask, device, io, ioctl, made,
        opcode,
    };

    const GET_VCPU_MMAP_SIZE: Opcode = opcode::none(KVMIO, 0x04);
    const SET_USER_MEMORY_REGION: Opcode = opcode::write::<MemoryRegion>(KVMIO, 0x46);
    const RUN: Opcode = opcode::none(KVMIO, 0x80);
    const EXIT_IO: u32 = 2;
    const EXIT_IO_OUT: u8 = 1;

    const PAGE_BYTES: usize = 4096;
    /// Where a processor begins after a reset, in real mode (Intel SDM 3A, 10.1.4 "First Instruction
    /// Executed"), so that no register need be set.
    const RESET_VECTOR: u64 = 0xffff_fff0;
    /// `out 0x80, al; hlt`: the port write must come back to us.
    const CODE: [u8; 3] = [0xe6, 0x80, 0xf4];
    const PORT: u16 = 0x80;

    /// `struct kvm_userspace_memory_region`.
    #[repr(C)]
    struct MemoryRegion {
        slot: u32,
        flags: u32,
        guest_address: u64,
        length_bytes: u64,
        host_address: u64,
    }

    /// The beginning of `struct kvm_run`, with the exit for a port.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Exit {
        request: [u8; 8],
        reason: u32,
        registers: [u32; 5],
        direction: u8,
        size: u8,
        port: u16,
    }

    pub(in super::super) fn run() -> io::Result<()> {
        let device = device()?;
        // Before the VM, so that it is dropped after it, however this ends.
        let page = Mapping::new(PAGE_BYTES, None)?;
        let vm = made(ask(&device, CREATE_VM)?);
        let place = (RESET_VECTOR as usize) % PAGE_BYTES;
        // SAFETY: the page is ours, writable, and has room for the code at that place.
        unsafe { page.address.cast::<u8>().add(place).copy_from(CODE.as_ptr(), CODE.len()) };
        let region = MemoryRegion {
            slot: 0,
            flags: 0,
            guest_address: RESET_VECTOR - place as u64,
            length_bytes: PAGE_BYTES as u64,
            host_address: page.address as u64,
        };
        // SAFETY: the region is read during the call; its page outlives the VM.
        unsafe { ioctl(&vm, SET_USER_MEMORY_REGION, ptr::from_ref(&region) as usize) }?;
        let vcpu = made(ask(&vm, CREATE_VCPU)?);
        let size = usize::try_from(ask(&device, GET_VCPU_MMAP_SIZE)?).unwrap_or(0);
        let shared = Mapping::new(size.max(size_of::<Exit>()), Some(&vcpu))?;
        ask(&vcpu, RUN)?;
        // SAFETY: the mapping is at least that long, page-aligned, and KVM writes to it only in RUN.
        let exit = unsafe { shared.address.cast::<Exit>().read() };
        if (exit.reason, exit.direction, exit.port) == (EXIT_IO, EXIT_IO_OUT, PORT) {
            return Ok(());
        }
        Err(io::Error::other(format!("unexpected exit {} from KVM", exit.reason)))
    }

    /// Memory of ours, or what KVM shares of a vCPU.
    struct Mapping {
        address: *mut c_void,
        length_bytes: usize,
    }

    impl Mapping {
        fn new(length_bytes: usize, vcpu: Option<&OwnedFd>) -> io::Result<Self> {
            let (flags, fd) = match vcpu {
                Some(vcpu) => (libc::MAP_SHARED, vcpu.as_raw_fd()),
                None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            };
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping anywhere has no precondition.
            let address =
                unsafe { libc::mmap(ptr::null_mut(), length_bytes, protection, flags, fd, 0) };
            if address == libc::MAP_FAILED {
                Err(io::Error::last_os_error())
            } else {
                Ok(Self { address, length_bytes })
            }
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: mapped by `new` with this length.
            unsafe { libc::munmap(self.address, self.length_bytes) };
        }
    }
}
