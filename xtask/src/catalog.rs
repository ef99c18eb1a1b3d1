//! Owns refreshing the catalog of published images: which entries, and the file, which is written
//! whole or not at all. It must not change more of it than snapshots, URLs and checksums.

mod publisher;
mod site;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use self::publisher::Release;
use self::site::Site;
use crate::failure::{Failure, Outcome};

const CATALOG: &str = "crates/fleetbox/src/images/catalog.toml";

/// What to refresh.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Entries to refresh; all without one
    #[arg(value_name = "ALIAS")]
    aliases: Vec<String>,
    /// Write nothing; exit with 1 if anything newer is published
    #[arg(long)]
    check: bool,
    /// Fetch from here: it stands for scheme and host of every URL; the catalog keeps its own
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

/// One distribution, its values with their places in the file.
#[derive(Debug, Deserialize)]
struct Entry {
    snapshot: Spanned<String>,
    amd64: Pinned,
    arm64: Pinned,
}

#[derive(Debug, Deserialize)]
struct Pinned {
    url: Spanned<String>,
    sha256: Spanned<String>,
}

/// A string of the file and what stands there instead.
type Edit = (Range<usize>, String);

/// Refreshes; false if it was only to be checked and something newer is published.
pub(crate) fn run(root: &Path, args: &Args) -> Outcome<bool> {
    refresh(&root.join(CATALOG), args, &mut std::io::stdout().lock())
}

fn refresh(file: &Path, args: &Args, out: &mut impl Write) -> Outcome<bool> {
    let text = std::fs::read_to_string(file).map_err(Failure::io("read", file))?;
    let entries: BTreeMap<String, Entry> = toml::from_str(&text)
        .map_err(|e| Failure::new(format!("failed to read {}: {e}", file.display())))?;
    let site = Site::new(args.mirror.as_deref())?;
    let mut edits = Vec::new();
    let mut current = true;
    for (alias, entry) in chosen(&entries, &args.aliases)? {
        let old = entry.snapshot.get_ref();
        let urls = [&entry.amd64, &entry.arm64].map(|pinned| pinned.url.get_ref().as_str());
        let said = match publisher::newer(&site, old, urls)? {
            None => format!("{alias}: unchanged"),
            Some(release) => {
                current = false;
                if !args.check {
                    edits.extend(edits_of(entry, &site, &release)?);
                }
                format!("{alias}: {old} → {}", release.snapshot)
            }
        };
        writeln!(out, "{said}").map_err(|e| Failure::new(format!("failed to print: {e}")))?;
    }
    if !edits.is_empty() {
        write(file, &edited(text, edits)).map_err(Failure::io("write", file))?;
    }
    Ok(current || !args.check)
}

/// The entries asked for, in the file's order.
fn chosen<'a>(
    entries: &'a BTreeMap<String, Entry>,
    aliases: &[String],
) -> Outcome<Vec<(&'a String, &'a Entry)>> {
    if let Some(unknown) = aliases.iter().find(|alias| !entries.contains_key(*alias)) {
        let known: Vec<&str> = entries.keys().map(String::as_str).collect();
        return Err(Failure::new(format!("failed to find {unknown} in the catalog"))
            .hint(format!("it has {}", known.join(", "))));
    }
    let mut entries: Vec<_> =
        entries.iter().filter(|(alias, _)| aliases.is_empty() || aliases.contains(alias)).collect();
    entries.sort_by_key(|(_, entry)| entry.snapshot.span().start);
    Ok(entries)
}

fn edits_of(entry: &Entry, site: &Site, release: &Release) -> Outcome<Vec<Edit>> {
    let mut edits = vec![(entry.snapshot.span(), release.snapshot.clone())];
    for (pinned, file) in [&entry.amd64, &entry.arm64].into_iter().zip(&release.files) {
        edits.push((pinned.url.span(), file.url.clone()));
        edits.push((pinned.sha256.span(), file.sha256(site)?));
    }
    Ok(edits)
}

/// The text with each edit in its place; none overlap.
fn edited(mut text: String, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(place, _)| std::cmp::Reverse(place.start));
    for (place, value) in edits {
        // Neither snapshots nor URLs nor checksums have anything to escape: `publisher` checks.
        text.replace_range(place, &format!("\"{value}\""));
    }
    text
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let permissions = file.metadata()?.permissions();
    let mut new = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(permissions)?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|e| e.error)?;
    Ok(())
}
