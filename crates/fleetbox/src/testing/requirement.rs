//! Owns what a test may require of the host besides a backend, and whether the host has it. It must not
//! start a machine to find out.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::backend::nested::nested_virt_supported;
use crate::backend::{Accel, select};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::Arch;

/// What a test needs of the host. A test is skipped where the host does not have it, or fails if
/// `FLEETBOX_REQUIRE` names it.
///
/// ```
/// use fleetbox::testing::Requirement;
/// assert_eq!("kvm".parse::<Requirement>().unwrap(), Requirement::Kvm);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Requirement {
    /// KVM works inside guests; the test's machines [have it](crate::VmBuilder::nested_virt).
    Nested,
    /// Links between machines can be made slow or lossy: a kernel with packet sockets and namespaces.
    Netem,
    /// Guests run on a working KVM, at the speed of the processor.
    Kvm,
}

impl Requirement {
    const ALL: [Self; 3] = [Self::Nested, Self::Netem, Self::Kvm];

    /// As it is written in `requires(…)` and `FLEETBOX_REQUIRE`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Netem => "netem",
            Self::Kvm => "kvm",
        }
    }

    /// Why the host does not have it; `None` if it does.
    pub(super) fn lacking(self) -> Option<String> {
        match self {
            Self::Nested if nested_virt_supported() => None,
            Self::Nested => Some("KVM does not work inside guests here".to_owned()),
            // packet(7)
            Self::Netem if Path::new("/proc/net/packet").exists() => None,
            Self::Netem => Some("this kernel has no packet sockets".to_owned()),
            Self::Kvm => match select::accel(Arch::host()) {
                (Accel::Kvm, _) => None,
                (Accel::Tcg, why) => Some(why.unwrap_or_else(|| "there is no KVM".to_owned())),
            },
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Requirement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| {
            let message = format!("unknown requirement \"{}\"", text.escape_debug());
            Error::new(ErrorKind::InvalidSetting, message).hint("there are nested, netem and kvm")
        })
    }
}
