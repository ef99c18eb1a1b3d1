//! Owns every environment variable fleetbox reads. No other file may name one.
//! It must not cache: tests and callers may change them between calls.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// Where all state lives; default `~/.fleetbox`.
pub(crate) const HOME: &str = "FLEETBOX_HOME";
/// The executable to run as holder instead of this one.
pub(crate) const HOLDER: &str = "FLEETBOX_HOLDER";
/// Anything but empty, `0` or `false`: never fetch.
pub(crate) const OFFLINE: &str = "FLEETBOX_OFFLINE";
/// The backend to use: `cloud-hypervisor`, `qemu` or, with the unstable feature, `fake`.
pub(crate) const BACKEND: &str = "FLEETBOX_BACKEND";
/// The cloud-hypervisor to use, instead of the one on PATH or the pinned release.
pub(crate) const CLOUD_HYPERVISOR: &str = "FLEETBOX_CLOUD_HYPERVISOR";
/// The firmware cloud-hypervisor starts images with that have no kernel that can be read here.
pub(crate) const CLOUD_HYPERVISOR_FIRMWARE: &str = "FLEETBOX_CLOUD_HYPERVISOR_FIRMWARE";
/// Backends a test run must have, separated by commas; a missing one fails instead of skipping.
pub(crate) const REQUIRE: &str = "FLEETBOX_REQUIRE";
/// How long a test's body may take that does not say so itself.
pub(crate) const TEST_TIMEOUT: &str = "FLEETBOX_TEST_TIMEOUT";
/// `failed`: the machines of a test that fails are left running.
pub(crate) const KEEP: &str = "FLEETBOX_KEEP";
/// Where tests that fail leave what is known of it; default `fleetbox` in cargo's target directory.
pub(crate) const BUNDLE_DIR: &str = "FLEETBOX_BUNDLE_DIR";
/// The package whose tests cargo runs.
pub(crate) const CARGO_PACKAGE: &str = "CARGO_PKG_NAME";
/// Where GitLab's runner has the project.
pub(crate) const CI_PROJECT_DIR: &str = "CI_PROJECT_DIR";
/// Set by cargo-nextest in the tests it runs.
const NEXTEST: &str = "NEXTEST";
/// Seconds a guest may take until it answers.
pub(crate) const IP_WAIT_TIMEOUT: &str = "FLEETBOX_IP_WAIT_TIMEOUT";
/// MiB that all machines of the state root together may be given, or `unlimited`.
pub(crate) const MEMORY_MIB: &str = "FLEETBOX_MEMORY_MIB";
/// A base URL put in place of the scheme and host of every catalog URL.
pub(crate) const MIRROR: &str = "FLEETBOX_MIRROR";
/// How many GiB snapshots may take together; the least recently used go.
pub(crate) const CACHE_GIB: &str = "FLEETBOX_CACHE_GIB";
/// Carries the one-time token from the spawner to its holder.
pub(crate) const HOLDER_TOKEN: &str = "FLEETBOX_HOLDER_TOKEN";
/// Directories of programs, separated by colons.
pub(crate) const SEARCH_PATH: &str = "PATH";
/// Where programs put large temporary files.
pub(crate) const TEMPORARY_DIR: &str = "TMPDIR";

pub(crate) fn os(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|v| !v.is_empty())
}

pub(crate) fn text(name: &str) -> Result<Option<String>> {
    os(name)
        .map(|v| {
            v.into_string().map_err(|_| {
                Error::new(ErrorKind::InvalidSetting, format!("{name} is not valid UTF-8"))
            })
        })
        .transpose()
}

pub(crate) fn path(name: &str) -> Option<PathBuf> {
    os(name).map(PathBuf::from)
}

pub(crate) fn offline() -> bool {
    os(OFFLINE).is_some_and(|v| v != "0" && v != "false")
}

/// The time a guest may take to answer, from [`IP_WAIT_TIMEOUT`] (whole seconds, or with a unit:
/// `90s`, `5m`).
pub(crate) fn ip_wait_timeout() -> Result<Option<Duration>> {
    duration(IP_WAIT_TIMEOUT)
}

/// The time a test's body may take, from [`TEST_TIMEOUT`], in the same form.
pub(crate) fn test_timeout() -> Result<Option<Duration>> {
    duration(TEST_TIMEOUT)
}

/// Whether the machines of a failed test are left running.
pub(crate) fn keep_failed() -> Result<bool> {
    match text(KEEP)?.as_deref() {
        None | Some("no") => Ok(false),
        Some("failed") => Ok(true),
        Some(value) => Err(Error::new(
            ErrorKind::InvalidSetting,
            format!("use {KEEP}={}", value.escape_debug()),
        )
        .hint("it is failed or no")),
    }
}

pub(crate) fn under_nextest() -> bool {
    os(NEXTEST).is_some()
}

/// What is set of ours that a user sets, for running something again as it was.
pub(crate) fn settings() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("FLEETBOX_") && name != HOLDER_TOKEN)
        .collect()
}

fn duration(name: &str) -> Result<Option<Duration>> {
    let Some(value) = text(name)? else {
        return Ok(None);
    };
    let (digits, unit) = match value.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => value.split_at(at),
        None => (value.as_str(), "s"),
    };
    let seconds_per_unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds_per_unit)) {
        Some(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(Error::new(ErrorKind::InvalidSetting, format!("{name}={value} is not a time"))
            .hint("give seconds or a unit, such as 300 or 5m")),
    }
}

/// What snapshots may take together in bytes, from [`CACHE_GIB`].
pub(crate) fn cache_bytes() -> Result<Option<u64>> {
    let Some(value) = text(CACHE_GIB)? else { return Ok(None) };
    match value.parse::<f64>() {
        Ok(gib) if gib.is_finite() && gib >= 0.0 => {
            #[expect(clippy::cast_sign_loss, reason = "it is not negative")]
            let bytes = (gib * f64::from(1 << 30)) as u64;
            Ok(Some(bytes))
        }
        _ => Err(Error::new(
            ErrorKind::InvalidSetting,
            format!("{CACHE_GIB}={value} is not a number of GiB"),
        )
        .hint("give a number such as 20 or 0.5, or unset it")),
    }
}

/// What all machines of the state root together may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryLimit {
    Mib(u64),
    /// None at all: nobody waits.
    Unlimited,
}

/// The limit of [`MEMORY_MIB`]; by default what the host has decides.
pub(crate) fn memory_limit() -> Result<Option<MemoryLimit>> {
    text(MEMORY_MIB)?.map(|value| memory_limit_of(&value)).transpose()
}

fn memory_limit_of(value: &str) -> Result<MemoryLimit> {
    if value == "unlimited" {
        return Ok(MemoryLimit::Unlimited);
    }
    // A sign is no digit.
    let digits = value.bytes().all(|b| b.is_ascii_digit());
    match value.parse().ok().filter(|mib| digits && *mib > 0) {
        Some(mib) => Ok(MemoryLimit::Mib(mib)),
        None => Err(Error::new(
            ErrorKind::InvalidSetting,
            format!("use {MEMORY_MIB}={}: it is no number of MiB", value.escape_debug()),
        )
        .hint("give a number above 0, such as 8192, or unlimited")),
    }
}

/// The proxy for URLs of `scheme`, by the customary variables. `HTTP_PROXY` in capitals is not
/// trusted by curl under CGI; no test runs there, so both spellings count.
pub(crate) fn proxy(scheme: &str) -> Result<Option<String>> {
    for name in [format!("{scheme}_proxy"), "all_proxy".to_owned()] {
        for spelling in [name.clone(), name.to_uppercase()] {
            if let Some(value) = text(&spelling)? {
                return Ok(Some(value));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_limit_is_a_number_or_none() {
        assert_eq!(memory_limit_of("5500").unwrap(), MemoryLimit::Mib(5500));
        assert_eq!(memory_limit_of("unlimited").unwrap(), MemoryLimit::Unlimited);
        for bad in ["0", "-1", "+1", "4G", "1.5", " 5", "99999999999999999999", "Unlimited"] {
            let error = memory_limit_of(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSetting, "{bad:?}");
            assert!(error.hint_text().is_some());
        }
    }
}
