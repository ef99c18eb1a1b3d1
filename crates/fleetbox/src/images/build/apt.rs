//! Owns finding out which of the host's apt sources serve a Debian release.
//! It must not change the host's configuration.

use std::path::{Path, PathBuf};

use super::super::cache::read_small;

const FALLBACK_MIRROR: &str = "http://deb.debian.org/debian";
const FALLBACK_SECURITY: &str = "http://deb.debian.org/debian-security";

/// The text of one-line and of deb822 sources; either may be empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    pub lines: String,
    pub stanzas: String,
}

impl Sources {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.stanzas.is_empty()
    }
}

/// The host's sources for `suite`, else Debian's own; with a mirror, only that.
pub(super) fn sources(etc_apt: &Path, suite: &str, mirror: Option<&str>) -> Sources {
    if let Some(mirror) = mirror {
        let lines = format!("deb {mirror} {suite} main\n");
        return Sources { lines, stanzas: String::new() };
    }
    let mut found = Sources::default();
    for path in files(etc_apt) {
        let text = read_small(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "sources") {
            stanzas(&text, suite, &mut found.stanzas);
        } else {
            one_line(&text, suite, &mut found.lines);
        }
    }
    if found.is_empty() {
        found.lines = format!(
            "deb {FALLBACK_MIRROR} {suite} main\ndeb {FALLBACK_MIRROR} {suite}-updates main\ndeb {FALLBACK_SECURITY} {suite}-security main\n"
        );
    }
    found
}

fn files(etc_apt: &Path) -> Vec<PathBuf> {
    let mut files = vec![etc_apt.join("sources.list")];
    // No directory, no further files.
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        let wanted = |path: &PathBuf| {
            path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
        };
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(wanted));
    }
    files.sort();
    files
}

/// A suite of the release itself; backports and proposed updates are no part of it.
fn belongs(candidate: &str, suite: &str) -> bool {
    candidate.strip_prefix(suite).is_some_and(|rest| matches!(rest, "" | "-updates" | "-security"))
}

/// Debian's archive has the component `main`; a vendor's that borrows the suite's name has not.
fn is_debian(components: &[&str]) -> bool {
    components.contains(&"main")
}

fn one_line(text: &str, suite: &str, out: &mut String) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb ").map(str::trim_start) else { continue };
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        if let [_, candidate, components @ ..] = words.as_slice()
            && belongs(candidate, suite)
            && is_debian(components)
        {
            out.push_str(line);
            out.push('\n');
        }
    }
}

fn stanzas(text: &str, suite: &str, out: &mut String) {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then_some(value.trim())
            })
        };
        let suites: Vec<&str> = field("Suites")
            .unwrap_or_default()
            .split_whitespace()
            .filter(|candidate| belongs(candidate, suite))
            .collect();
        let components: Vec<&str> =
            field("Components").unwrap_or_default().split_whitespace().collect();
        let is_binary = field("Types").unwrap_or_default().split_whitespace().any(|t| t == "deb");
        let is_off = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if suites.is_empty() || !is_debian(&components) || !is_binary || is_off {
            continue;
        }
        for line in stanza {
            // Only these two change: other releases and source packages have no place in the image.
            match line.split_once(':').map(|(key, _)| key.to_ascii_lowercase()).as_deref() {
                Some("suites") => {
                    out.push_str("Suites: ");
                    out.push_str(&suites.join(" "));
                }
                Some("types") => out.push_str("Types: deb"),
                _ => out.push_str(line),
            }
            out.push('\n');
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn both_formats_are_read_and_only_the_release_is_taken() {
        let dir = host(&[
            (
                "sources.list",
                "# comment\ndeb [signed-by=/k arch=amd64] http://m/debian bookworm main # x\n\
                 deb-src http://m/debian bookworm main\ndeb http://m/debian trixie main\n\
                 deb http://vendor/linux/debian bookworm stable\ndeb [broken\n",
            ),
            (
                "sources.list.d/debian.sources",
                "Types: deb deb-src\nURIs: http://m/debian\nSuites: bookworm bookworm-updates trixie bookworm-backports\n# why\nComponents: main contrib\nSigned-By:\n -----BEGIN\n .\n abc\n\n\
                 Types: deb\nURIs: http://m/s\nSuites: bookworm-security\nComponents: main\nEnabled: no\n",
            ),
            ("sources.list.d/old.list.disabled", "deb http://off/debian bookworm main\n"),
        ]);
        let found = sources(dir.path(), "bookworm", None);
        assert_eq!(found.lines, "deb [signed-by=/k arch=amd64] http://m/debian bookworm main\n");
        assert_eq!(
            found.stanzas,
            "Types: deb\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By:\n -----BEGIN\n .\n abc\n\n"
        );
    }

    #[test]
    fn a_release_the_host_does_not_have_comes_from_debian() {
        let dir = host(&[("sources.list", "deb http://m/debian bookworm main\n")]);
        let found = sources(dir.path(), "trixie", None);
        assert!(found.lines.contains("deb.debian.org/debian trixie main"));
        assert!(found.lines.contains("trixie-security"));
        let found = sources(dir.path(), "bookworm", Some("file:/mirror"));
        assert_eq!(found.lines, "deb file:/mirror bookworm main\n");
    }
}
