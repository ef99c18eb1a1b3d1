//! Owns the question which landlock this kernel has (landlock(7)). Linux only.

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: libc::c_uint = 1;

/// The version of its interface; 0 where there is none.
pub(crate) fn version() -> u32 {
    let (no_attributes, no_size): (*const libc::c_void, usize) = (std::ptr::null(), 0);
    // SAFETY: with this flag the call reads no memory and makes nothing; it only answers.
    let answer = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, no_attributes, no_size, VERSION)
    };
    u32::try_from(answer).unwrap_or(0)
}
