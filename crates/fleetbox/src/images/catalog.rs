//! Owns the published images we know by alias: pinned URL and checksum for each architecture.
//! It must not fetch anything, nor know what is cached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, ErrorKind};
use crate::spec::Arch;

/// The facts, kept apart so that a refresh (`cargo xtask catalog`) touches no code: each image is
/// pinned to a dated snapshot and the sha256 of the file at its URL.
const CATALOG: &str = include_str!("catalog.json");

/// One published distribution.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    synonym: String,
    snapshot: String,
    amd64: Pinned,
    arm64: Pinned,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pinned {
    url: String,
    sha256: String,
}

/// A published image for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Published {
    pub alias: &'static str,
    pub snapshot: &'static str,
    pub url: &'static str,
    pub sha256: &'static str,
}

static ENTRIES: LazyLock<BTreeMap<String, Entry>> = LazyLock::new(|| {
    serde_json::from_str(CATALOG).expect("catalog.json is part of this build and covered by a test")
});

/// Every alias, in order.
pub(super) fn aliases() -> impl Iterator<Item = &'static str> + use<> {
    ENTRIES.keys().map(String::as_str)
}

/// The alias behind a name: `bookworm` is `debian-12`; a name we do not know is itself.
pub(super) fn canonical(name: &str) -> &str {
    ENTRIES
        .iter()
        .find(|(_, entry)| entry.synonym == name)
        .map_or(name, |(alias, _)| alias.as_str())
}

/// The published image of a canonical alias.
pub(super) fn find(alias: &str, arch: Arch) -> Option<Published> {
    let (alias, entry) = ENTRIES.get_key_value(alias)?;
    let pinned = match arch {
        Arch::X86_64 => &entry.amd64,
        Arch::Aarch64 => &entry.arm64,
    };
    Some(Published { alias, snapshot: &entry.snapshot, url: &pinned.url, sha256: &pinned.sha256 })
}

/// No image goes by `name`; the hint names those spelled nearly so, of the catalog and of `local`.
pub(super) fn unknown(name: &str, local: &[String]) -> Error {
    let shown: String = name.chars().take(80).collect();
    let published = ENTRIES.iter().flat_map(|(alias, entry)| [alias, &entry.synonym]);
    // An alias may be both published and here.
    let known: BTreeSet<&str> = published.chain(local).map(String::as_str).collect();
    let mut near: Vec<(f64, &str)> = known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&shown, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.truncate(3);
    let hint = if near.is_empty() {
        let all: Vec<&str> = aliases().collect();
        format!("use one of {}, a URL, or a path with a slash in it", all.join(", "))
    } else {
        let names: Vec<&str> = near.into_iter().map(|(_, known)| known).collect();
        format!("did you mean {}?", names.join(" or "))
    };
    Error::new(
        ErrorKind::UnknownImage,
        format!("find the image \"{}\": no image goes by that name", shown.escape_debug()),
    )
    .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_pinned_and_carries_its_snapshot() {
        assert_eq!(aliases().count(), 6);
        for alias in aliases() {
            for arch in [Arch::X86_64, Arch::Aarch64] {
                let published = find(alias, arch).unwrap();
                assert!(published.url.starts_with("https://"), "{alias}");
                assert!(published.url.contains(published.snapshot), "{alias}");
                assert!(published.url.contains(arch.debian()), "{alias}");
                assert_eq!(published.sha256.len(), 64);
                assert!(published.sha256.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
        assert!(find(crate::spec::DEFAULT_IMAGE, Arch::X86_64).is_some());
    }

    #[test]
    fn a_typing_error_gets_the_right_name_in_the_hint() {
        assert_eq!(canonical("bookworm"), "debian-12");
        let error = unknown("debain-12", &[]);
        assert_eq!(error.kind(), ErrorKind::UnknownImage);
        assert!(error.hint_text().unwrap().contains("debian-12"), "{error:?}");
        let twice = unknown("debain-12", &["debian-12".into()]);
        assert_eq!(twice.hint_text().unwrap().matches("debian-12").count(), 1, "{twice:?}");
        assert!(unknown("mine2", &["mine".into()]).hint_text().unwrap().contains("mine"));
        assert!(unknown("\u{1b}[2J", &[]).hint_text().unwrap().contains("ubuntu-24.04"));
        assert!(!unknown("\u{1b}[2J", &[]).report().contains('\u{1b}'));
    }
}
