//! Owns what `#[fleetbox::test]` expands to: a VM with a name of its own, the body's result or
//! panic kept, the VM destroyed at the end, a skip with its reason where the host cannot. It is the
//! one place of the library that writes to standard error, as a skipped test has no other voice.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use crate::backend::Backend;
use crate::builder::VmBuilder;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::vm::Vm;

/// Destroying a VM is a kill and the removal of a directory.
const DESTROY_WAIT: Duration = Duration::from_mins(1);
/// How much of a test's name a VM's name keeps, leaving room for what makes it unique.
const NAME_PART_LENGTH: usize = 48;

/// What a test may return: `()` or a `Result` of it.
///
/// ```
/// fn accepts<T: fleetbox::testing::Outcome>() {}
/// accepts::<()>();
/// accepts::<fleetbox::Result<()>>();
/// ```
pub trait Outcome {
    /// What a skipped test returns.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for std::result::Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Runs `body` with a new VM made from a builder that `configure` may change; the start is
/// [warm](VmBuilder::warm) unless that says otherwise. Destroys the VM
/// whatever the body does; a panic goes on afterwards. Where this host cannot boot VMs, says why on
/// standard error and returns as if the test had passed, unless `FLEETBOX_REQUIRE` names the
/// backend.
///
/// This is what `#[fleetbox::test]` calls; it may be called by hand.
///
/// ```no_run
/// #[test]
/// fn kernel_is_linux() {
///     fleetbox::testing::run("kernel_is_linux", |vm| vm.memory_mib(1024), async |vm| {
///         assert_eq!(vm.ssh("uname").await.unwrap(), "Linux");
///     });
/// }
/// ```
///
/// # Panics
/// If the VM does not start for another reason, or with the body's own panic.
pub fn run<T, F>(
    test: &str,
    configure: impl FnOnce(VmBuilder) -> VmBuilder,
    body: impl FnOnce(Vm) -> F,
) -> T
where
    T: Outcome,
    F: Future<Output = T>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap_or_else(|e| panic!("failed to start a runtime for the test: {e}"));
    let builder = configure(Vm::builder(vm_name(test)).ephemeral(true).warm(true));
    let vm = match runtime.block_on(builder.start()) {
        Ok(vm) => vm,
        Err(error) => return skip_or_fail(test, &error),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(body(vm.clone()))));
    let destroyed =
        runtime.block_on(async { tokio::time::timeout(DESTROY_WAIT, vm.destroy()).await });
    match (outcome, destroyed) {
        (Err(panic), _) => resume_unwind(panic),
        (Ok(outcome), Ok(Ok(()))) => outcome,
        (Ok(_), Ok(Err(error))) => panic!("failed to destroy the test's VM: {}", error.report()),
        (Ok(_), Err(_)) => panic!("failed to destroy the test's VM within {DESTROY_WAIT:?}"),
    }
}

#[expect(clippy::print_stderr, reason = "libtest has no other way to say that a test was skipped")]
fn skip_or_fail<T: Outcome>(test: &str, error: &Error) -> T {
    let host_cannot =
        matches!(error.kind(), ErrorKind::HostUnsupported | ErrorKind::BackendUnavailable);
    let required = required(Backend::Qemu).unwrap_or(true);
    assert!(host_cannot && !required, "failed to start the test's VM: {}", error.report());
    eprintln!("{test} skipped: this host cannot boot a VM: {}", error.report());
    T::skipped()
}

/// Whether `FLEETBOX_REQUIRE`, a list separated by commas, names the backend: then a test that
/// cannot have it fails instead of being skipped.
///
/// # Errors
/// [`ErrorKind::InvalidSetting`] if the list has a word that is no backend.
pub fn required(backend: Backend) -> Result<bool> {
    let Some(list) = env::text(env::REQUIRE)? else { return Ok(false) };
    let mut found = false;
    for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
        found |= word.parse::<Backend>()? == backend;
    }
    Ok(found)
}

/// A VM's name made of the test's, and unique, so that tests, processes and checkouts never meet.
fn vm_name(test: &str) -> String {
    let mut name = String::new();
    for c in test.rsplit("::").next().unwrap_or(test).chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(NAME_PART_LENGTH);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let unique = hasher.finish() & 0xff_ffff;
    // The letter keeps the suffix from being taken for a member's number.
    let part = if name.is_empty() { "test" } else { name.trim_end_matches('-') };
    format!("{part}-t{unique:06x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Name;

    #[test]
    fn names_are_valid_unique_and_clusters_of_their_own() {
        for test in ["a::b::It_Works", "x", "::", &"long_".repeat(40), "ünï"] {
            let name = Name::new(&vm_name(test)).unwrap();
            assert_eq!(name.likely_cluster(), name);
        }
        assert!(vm_name("a::boots_twice").starts_with("boots-twice-t"));
        assert_ne!(vm_name("x"), vm_name("x"));
    }
}
