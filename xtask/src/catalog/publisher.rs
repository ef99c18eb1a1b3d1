//! Owns what the publishers' sites look like: how a dated snapshot is named and listed, and where
//! its checksums are. It must not touch the catalog.

use super::site::{Digests, Site};
use crate::failure::{Failure, Outcome};

/// Whose scheme a snapshot follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Publisher {
    /// `20260601-2496`, with SHA512SUMS only.
    Debian,
    /// `release-20260515` or `release-20260515.1`, with SHA256SUMS.
    Ubuntu,
}

/// A snapshot's name taken apart; a later one is greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Snapshot {
    publisher: Publisher,
    date: u32,
    serial: u32,
    name: String,
}

/// A published snapshot with a file for each architecture asked for.
#[derive(Debug)]
pub(super) struct Release {
    pub snapshot: String,
    pub files: Vec<PublishedFile>,
}

/// A file and the checksum published beside it.
#[derive(Debug)]
pub(super) struct PublishedFile {
    pub url: String,
    publisher: Publisher,
    sum: String,
}

/// The newest snapshot later than `current` that has all files at `urls`, which are of `current`.
pub(super) fn newer(site: &Site, current: &str, urls: [&str; 2]) -> Outcome<Option<Release>> {
    let current = Snapshot::parse(current).ok_or_else(|| {
        Failure::new(format!("failed to understand the snapshot \"{current}\""))
            .hint("Debian's are like 20260601-2496, Ubuntu's like release-20260515")
    })?;
    let Some((base, _)) = urls[0].split_once(&format!("/{}/", current.name)) else {
        return Err(Failure::new(format!("failed to find {} in {}", current.name, urls[0]))
            .hint("an entry's URLs lead into the directory of its snapshot"));
    };
    let listed = site.text(&format!("{base}/"))?.ok_or_else(|| {
        Failure::new(format!("failed to list {base}/: there is no such page"))
            .hint("see whether the release was moved to an archive")
    })?;
    let mut later: Vec<Snapshot> = links(&listed)
        .filter_map(Snapshot::parse)
        .filter(|s| s.publisher == current.publisher && *s > current)
        .collect();
    later.sort();
    for snapshot in later.into_iter().rev() {
        if let Some(files) = files(site, base, &current, &snapshot, urls)? {
            return Ok(Some(Release { snapshot: snapshot.name, files }));
        }
    }
    Ok(None)
}

/// The files of `snapshot`, if it is complete: one that is still being published is not.
fn files(
    site: &Site,
    base: &str,
    current: &Snapshot,
    snapshot: &Snapshot,
    urls: [&str; 2],
) -> Outcome<Option<Vec<PublishedFile>>> {
    let publisher = snapshot.publisher;
    let Some(sums) = site.text(&format!("{base}/{}/{}", snapshot.name, publisher.sums()))? else {
        return Ok(None);
    };
    let file = |url: &str| {
        let url = url.replace(&current.name, &snapshot.name);
        let sum = published_sum(&sums, url.rsplit('/').next()?, publisher.sum_digits())?;
        Some(PublishedFile { url, publisher, sum })
    };
    Ok(urls.into_iter().map(file).collect())
}

/// Where an index leads to, one step down.
fn links(html: &str) -> impl Iterator<Item = &str> {
    html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()?.strip_suffix('/'))
}

/// The checksum of a file in what sha256sum and its like write.
fn published_sum(sums: &str, name: &str, digits: usize) -> Option<String> {
    let (sum, _) = sums
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(_, listed)| listed.trim().trim_start_matches('*') == name)?;
    let fits = sum.len() == digits && sum.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| sum.to_ascii_lowercase())
}

impl Publisher {
    fn sums(self) -> &'static str {
        match self {
            Self::Debian => "SHA512SUMS",
            Self::Ubuntu => "SHA256SUMS",
        }
    }

    fn sum_digits(self) -> usize {
        match self {
            Self::Debian => 128,
            Self::Ubuntu => 64,
        }
    }
}

impl Snapshot {
    fn parse(name: &str) -> Option<Self> {
        let (publisher, date, serial) = if let Some(rest) = name.strip_prefix("release-") {
            let (date, serial) = rest.split_once('.').unwrap_or((rest, "0"));
            (Publisher::Ubuntu, date, serial)
        } else {
            let (date, serial) = name.split_once('-')?;
            (Publisher::Debian, date, serial)
        };
        let number = |digits: &str| {
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
        };
        let (8, Some(date), Some(serial)) = (date.len(), number(date), number(serial)) else {
            return None;
        };
        Some(Self { publisher, date, serial, name: name.to_owned() })
    }
}

impl PublishedFile {
    /// The sha256 of the file. Where only a sha512 is published, the file is fetched to be sure of
    /// both.
    pub(super) fn sha256(&self, site: &Site) -> Outcome<String> {
        if self.publisher == Publisher::Ubuntu {
            return Ok(self.sum.clone());
        }
        let Digests { sha256, sha512 } = site.digests(&self.url)?;
        if sha512 == self.sum {
            return Ok(sha256);
        }
        Err(Failure::new(format!(
            "failed to verify {}: its sha512 is {sha512}, published is {}",
            self.url, self.sum
        ))
        .hint("try again; if it stays so, the site or the mirror serves another file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_told_from_other_links_and_sorted_by_age() {
        for other in ["..", "daily", "20260601", "2026060-1", "20260601-x", "release", "release-1"]
        {
            assert!(Snapshot::parse(other).is_none(), "{other}");
        }
        let html = r#"<a href="../">..</a> <a href="release-20260601/">a</a>
            <a href="release-20260515.1/">b</a> <a href="release-20260515.10/">c</a>
            <a href="release-20260515.2/">d</a> <a href="release-20260702.txt">e</a>"#;
        let mut found: Vec<Snapshot> = links(html).filter_map(Snapshot::parse).collect();
        found.sort();
        let names: Vec<&str> =
            found.iter().map(|s| s.name.trim_start_matches("release-")).collect();
        assert_eq!(names, ["20260515.1", "20260515.2", "20260515.10", "20260601"]);
    }

    #[test]
    fn sums_are_read_in_both_forms_and_only_whole() {
        let sum = "A0".repeat(32);
        let sums = format!("{sum} *a.img\n{sum}  b.raw\nabc  c.raw\n");
        for name in ["a.img", "b.raw"] {
            assert_eq!(published_sum(&sums, name, 64), Some(sum.to_lowercase()));
        }
        for name in ["c.raw", "img", "d.raw"] {
            assert_eq!(published_sum(&sums, name, 64), None, "{name}");
        }
    }
}
