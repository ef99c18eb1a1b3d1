//! Owns tests on machines: [`Test`], which `#[fleetbox::test]` expands to, and what it takes and returns.
//! `conduct` runs one. It is the one part of the library that writes to standard error, as a test that is
//! skipped, waits or fails has no other voice.

mod conduct;
mod end;
mod machines;
mod name;
mod notes;
mod outcome;
mod requirement;

use std::fmt;
use std::future::Future;
use std::time::Duration;

pub use self::machines::Machines;
pub use self::outcome::Outcome;
pub use self::requirement::Requirement;
use crate::backend::Backend;
use crate::builder::VmBuilder;
use crate::env;
use crate::error::Result;
use crate::vm::Vm;

type Options = Box<dyn FnOnce(VmBuilder) -> VmBuilder>;

/// A test on machines of its own, in the form of a builder: what `#[fleetbox::test]` expands to, for those who
/// dislike macros. The machines start [warm](VmBuilder::warm) and are [ephemeral](VmBuilder::ephemeral).
///
/// ```no_run
/// use fleetbox::Cluster;
/// use fleetbox::testing::Test;
///
/// #[test]
/// fn a_node_finds_its_fellow() {
///     Test::new("a_node_finds_its_fellow")
///         .vms(2)
///         .vm(|vm| vm.memory_mib(512))
///         .run(async |nodes: Cluster| {
///             let first = nodes.vms().remove(0);
///             first.ssh(&format!("ping -c 1 {}", nodes.vms()[1].name())).await.unwrap();
///         });
/// }
/// ```
#[must_use = "nothing happens until `run`"]
pub struct Test {
    name: String,
    options: Vec<Options>,
    names: Vec<String>,
    vms: Option<usize>,
    timeout: Option<Duration>,
    requires: Vec<Requirement>,
    allowed: Vec<String>,
}

impl Test {
    /// A test of that name, best with its module's path, as `module_path!()` has it: the machines' names come
    /// from its last part, and are unique.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            options: Vec::new(),
            names: Vec::new(),
            vms: None,
            timeout: None,
            requires: Vec::new(),
            allowed: Vec::new(),
        }
    }

    /// Options of every machine. May be called several times.
    pub fn vm(mut self, options: impl FnOnce(VmBuilder) -> VmBuilder + 'static) -> Self {
        self.options.push(Box::new(options));
        self
    }

    /// How many machines a [`Cluster`](crate::Cluster) has; default 3. A body that takes VMs has as many as it
    /// takes.
    pub fn vms(mut self, vms: usize) -> Self {
        self.vms = Some(vms);
        self
    }

    /// Names by which the machines of a body that takes several know each other, besides their own, in the
    /// order in which it takes them. A name that no host can have is left out.
    pub fn names<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.names = names.into_iter().map(Into::into).collect();
        self
    }

    /// How long the body may take, without the start of its machines; by default `FLEETBOX_TEST_TIMEOUT`, else
    /// for ever. A body that takes longer is dropped, and the test fails. One that does not yield, as it
    /// blocks its thread, cannot be dropped: its machines end all the same, so that its calls to them fail.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Skips the test where the host lacks it, saying so, unless `FLEETBOX_REQUIRE` names it: then the test
    /// fails. [`Requirement::Nested`] also makes KVM work inside the machines.
    pub fn requires(mut self, requirement: Requirement) -> Self {
        self.requires.push(requirement);
        self
    }

    /// Lets findings about the machines' [health](Vm::health) pass whose line, in the form of
    /// [`Finding`](crate::Finding)'s `Display`, the regular expression matches. May be called several times;
    /// `.` allows everything.
    pub fn allow_health(mut self, pattern: impl Into<String>) -> Self {
        self.allowed.push(pattern.into());
        self
    }

    /// Starts the machines, runs `body` with them, looks at their health, and destroys them, whatever the body
    /// does; a panic goes on afterwards. The machines die with the process, too, be it by `kill -9`.
    ///
    /// A test that fails leaves a *bundle*: a directory, named on standard error, with everything that is
    /// known of the failure, and a page `index.html` that shows it. With `FLEETBOX_KEEP=failed` it leaves its
    /// machines, too, and says how to look into them.
    ///
    /// Where this host cannot boot machines the test says why on standard error and returns as if it had
    /// passed, unless `FLEETBOX_REQUIRE` names a backend.
    ///
    /// # Panics
    /// If the machines do not start for another reason, or are not well afterwards, or the time is up; or with
    /// the body's own panic. If a setting or pattern cannot be used, before any work.
    pub fn run<M, T, F>(self, body: impl FnOnce(M) -> F) -> T
    where
        M: Machines,
        T: Outcome,
        F: Future<Output = T>,
    {
        conduct::run(self, body)
    }

    /// [`Test::run`] of a body that is no `async` one, and calls [`block`](crate::blocking::Block::block).
    ///
    /// # Panics
    /// As [`Test::run`]. A body that takes too long is not dropped: its machines end, so that its calls fail.
    ///
    /// ```no_run
    /// use fleetbox::blocking::Block;
    ///
    /// #[fleetbox::test]
    /// fn kernel_is_linux(vm: fleetbox::Vm) {
    ///     assert_eq!(vm.ssh("uname").block().unwrap(), "Linux");
    /// }
    /// # fn main() {}
    /// ```
    pub fn run_blocking<M, T>(self, body: impl FnOnce(M) -> T) -> T
    where
        M: Machines,
        T: Outcome,
    {
        conduct::run_blocking(self, body)
    }
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Test").field("name", &self.name).finish_non_exhaustive()
    }
}

/// [`Test`] of one VM in one call.
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
/// As [`Test::run`].
pub fn run<T, F>(
    test: &str,
    configure: impl FnOnce(VmBuilder) -> VmBuilder + 'static,
    body: impl FnOnce(Vm) -> F,
) -> T
where
    T: Outcome,
    F: Future<Output = T>,
{
    Test::new(test).vm(configure).run(body)
}

/// Whether `FLEETBOX_REQUIRE`, a list separated by commas, names the backend: then a test that
/// cannot have it fails instead of being skipped.
///
/// # Errors
/// [`ErrorKind::InvalidSetting`](crate::ErrorKind::InvalidSetting) if the list has a word that is neither a
/// backend nor a [`Requirement`].
pub fn required(backend: Backend) -> Result<bool> {
    Ok(Required::from_env()?.backends.contains(&backend))
}

/// What `FLEETBOX_REQUIRE` names.
#[derive(Debug, Default)]
struct Required {
    backends: Vec<Backend>,
    requirements: Vec<Requirement>,
}

impl Required {
    fn from_env() -> Result<Self> {
        Self::of(&env::text(env::REQUIRE)?.unwrap_or_default())
    }

    fn of(list: &str) -> Result<Self> {
        let mut required = Self::default();
        for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.parse() {
                Ok(requirement) => required.requirements.push(requirement),
                Err(_) => required.backends.push(word.parse()?),
            }
        }
        Ok(required)
    }

    /// Whether machines must boot here.
    fn machines(&self) -> bool {
        self.backends.iter().any(|backend| backend.has_guest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_required_is_a_list_of_backends_and_requirements() {
        let required = Required::of("fake, qemu,nested").unwrap();
        assert_eq!(required.backends, [Backend::Fake, Backend::Qemu]);
        assert_eq!(required.requirements, [Requirement::Nested]);
        assert!(required.machines() && !Required::of("fake,kvm").unwrap().machines());
        assert!(Required::of("qemu,qemo").is_err());
    }
}
