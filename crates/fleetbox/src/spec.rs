//! Owns what a caller may ask of a VM: names, sizes, architecture, and their checks.
//! It must not touch the disk or the network: every check here is pure.

mod fixture;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::fixture::Fixture;
pub(crate) use self::fixture::FixtureSpec;
use crate::error::{Error, ErrorKind, Result};

/// The image a VM gets when none is named.
pub const DEFAULT_IMAGE: &str = "debian-12";
/// Default number of virtual CPUs.
pub const DEFAULT_CPUS: u32 = 2;
/// Default memory in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 4096;
/// Default disk size in GiB.
pub const DEFAULT_DISK_GIB: u32 = 20;
/// The user every guest has, with passwordless sudo.
pub const DEFAULT_USER: &str = "fleetbox";

/// The longest name: a host name's label (RFC 1123).
const NAME_LENGTH_MAX: usize = 63;
const CPUS_MAX: u32 = 255;
/// What a guest needs at the least.
pub(crate) const MEMORY_MIB_MIN: u32 = 128;
const MEMORY_MIB_MAX: u32 = 4 * 1024 * 1024;
const DISK_GIB_MAX: u32 = 64 * 1024;

/// The name of a VM or a cluster: a host name label of lowercase letters, digits and inner hyphens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let problem = if name.is_empty() {
            "is empty"
        } else if name.len() > NAME_LENGTH_MAX {
            "is longer than 63 characters"
        } else if name.starts_with('-') || name.ends_with('-') {
            "begins or ends with a hyphen"
        } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            "has characters a host name cannot have"
        } else {
            return Ok(Self(name.to_owned()));
        };
        // `escape_debug` keeps control bytes of a hostile name away from terminals.
        let shown: String = name.chars().take(80).collect();
        Err(Error::new(
            ErrorKind::InvalidName,
            format!("the name \"{}\" {problem}", shown.escape_debug()),
        )
        .hint("use 1 to 63 lowercase letters, digits and inner hyphens, such as web or node-1"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The cluster a VM of this name is likely in, and is made in unless another is named: its name
    /// without a trailing `-<digits>`. `store::place` knows where it is.
    pub(crate) fn likely_cluster(&self) -> Name {
        match self.0.rsplit_once('-') {
            Some((prefix, digits))
                if !prefix.is_empty()
                    && !digits.is_empty()
                    && digits.bytes().all(|b| b.is_ascii_digit()) =>
            {
                // "a--1" would leave "a-", which is no name: such a VM is its own cluster.
                Name::new(prefix).unwrap_or_else(|_| self.clone())
            }
            _ => self.clone(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for Name {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        Name::new(&name).map_err(|e| e.to_string())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

/// The processor architecture of a guest.
///
/// ```
/// use fleetbox::Arch;
/// assert_eq!("arm64".parse::<Arch>().unwrap(), Arch::Aarch64);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Arch {
    /// 64-bit x86, Debian's `amd64`.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm, Debian's `arm64`.
    Aarch64,
}

impl Arch {
    /// The architecture of this host; hosts of any other kind count as x86-64 and emulate.
    #[must_use]
    pub fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 }
    }

    /// As QEMU and the kernel spell it: `x86_64`, `aarch64`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// As Debian spells it: `amd64`, `arm64`.
    #[must_use]
    pub fn debian(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Arch {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "x86_64" | "amd64" => Ok(Arch::X86_64),
            "aarch64" | "arm64" => Ok(Arch::Aarch64),
            _ => Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("unknown architecture \"{}\"", text.escape_debug()),
            )
            .hint("use x86_64 or aarch64")),
        }
    }
}

/// What a caller asks of one VM, checked; frozen into the VM's record when it is created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmSpec {
    pub image: String,
    pub arch: Arch,
    pub cpus: u32,
    pub memory_mib: u32,
    pub disk_gib: u32,
    #[serde(default)]
    pub nested_virt: bool,
    #[serde(default)]
    pub durable: bool,
    /// In the order of their drives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixtures: Vec<FixtureSpec>,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            image: DEFAULT_IMAGE.to_owned(),
            arch: Arch::host(),
            cpus: DEFAULT_CPUS,
            memory_mib: DEFAULT_MEMORY_MIB,
            disk_gib: DEFAULT_DISK_GIB,
            nested_virt: false,
            durable: false,
            fixtures: Vec::new(),
        }
    }
}

impl VmSpec {
    /// The places of the fixtures that its guest has mounted.
    pub(crate) fn mounted_fixtures(&self) -> impl Iterator<Item = usize> {
        let fixtures = self.fixtures.iter().enumerate();
        fixtures.filter(|(_, fixture)| !fixture.is_blank()).map(|(place, _)| place)
    }

    /// Refuses what no host can do, before any work.
    pub(crate) fn check(&self) -> Result<()> {
        within("cpus", self.cpus, 1, CPUS_MAX)?;
        within("memory_mib", self.memory_mib, MEMORY_MIB_MIN, MEMORY_MIB_MAX)?;
        within("disk_gib", self.disk_gib, 1, DISK_GIB_MAX)?;
        if self.image.trim().is_empty() {
            return Err(Error::new(ErrorKind::InvalidSpec, "the image's name is empty")
                .hint("leave it out for debian-12, or give an alias, a URL or a path"));
        }
        fixture::check(&self.fixtures)
    }
}

fn within(what: &str, value: u32, min: u32, max: u32) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidSpec, format!("{what} = {value} is out of range"))
        .hint(format!("give {what} from {min} to {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_name_labels() {
        for good in ["a", "web", "node-1", "0", &"x".repeat(63)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a/b",
            "..",
            ".",
            "a.b",
            "Web",
            "a b",
            "a\u{1b}[2J",
            "a\0b",
            "ä",
            &"x".repeat(64),
        ] {
            let error = Name::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{bad:?}");
            assert!(!error.report().contains('\u{1b}'), "{bad:?} reaches the terminal");
        }
    }

    #[test]
    fn the_cluster_is_the_name_without_its_number() {
        for (vm, cluster) in [
            ("web", "web"),
            ("web-1", "web"),
            ("a-b-22", "a-b"),
            ("a-1b", "a-1b"),
            ("1", "1"),
            ("a--1", "a--1"),
        ] {
            assert_eq!(Name::new(vm).unwrap().likely_cluster().as_str(), cluster);
        }
    }

    #[test]
    fn absurd_sizes_are_refused_with_the_range() {
        let default = VmSpec::default();
        default.check().unwrap();
        for bad in [
            VmSpec { cpus: 0, ..default.clone() },
            VmSpec { cpus: 100_000, ..default.clone() },
            VmSpec { memory_mib: 0, ..default.clone() },
            VmSpec { memory_mib: u32::MAX, ..default.clone() },
            VmSpec { disk_gib: 0, ..default.clone() },
            VmSpec { disk_gib: u32::MAX, ..default.clone() },
            VmSpec { image: "  ".to_owned(), ..default.clone() },
        ] {
            let error = bad.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec);
            assert!(error.hint_text().is_some());
        }
    }
}
