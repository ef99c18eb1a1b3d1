//! Owns refreshing the catalog of published images: which entries, and the file, which is written
//! whole or not at all. It must not change more of it than snapshots, URLs and checksums.

mod publisher;
mod site;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use self::publisher::Release;
use self::site::Site;
use crate::failure::{Failure, Outcome};

const CATALOG: &str = "crates/fleetbox/src/images/catalog.json";

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

/// By alias, in the file's order.
type Catalog = BTreeMap<String, Entry>;

/// One distribution. It has no other fields, so writing it loses none.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    synonym: String,
    snapshot: String,
    amd64: Pinned,
    arm64: Pinned,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Pinned {
    url: String,
    sha256: String,
}

/// Refreshes; false if it was only to be checked and something newer is published.
pub(crate) fn run(root: &Path, args: &Args) -> Outcome<bool> {
    refresh(&root.join(CATALOG), args, &mut std::io::stdout().lock())
}

fn refresh(file: &Path, args: &Args, out: &mut impl Write) -> Outcome<bool> {
    let text = std::fs::read_to_string(file).map_err(Failure::io("read", file))?;
    let mut catalog: Catalog = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("failed to read {}: {e}", file.display())))?;
    let site = Site::new(args.mirror.as_deref())?;
    let mut current = true;
    for (alias, entry) in chosen(&mut catalog, &args.aliases)? {
        let urls = [&entry.amd64, &entry.arm64].map(|pinned| pinned.url.as_str());
        let said = match publisher::newer(&site, &entry.snapshot, urls)? {
            None => format!("{alias}: unchanged"),
            Some(release) => {
                current = false;
                let said = format!("{alias}: {} → {}", entry.snapshot, release.snapshot);
                if !args.check {
                    entry.pin(&site, release)?;
                }
                said
            }
        };
        writeln!(out, "{said}").map_err(|e| Failure::new(format!("failed to print: {e}")))?;
    }
    if !current && !args.check {
        write(file, &written(&catalog)?).map_err(Failure::io("write", file))?;
    }
    Ok(current || !args.check)
}

/// The entries asked for, in the file's order.
fn chosen<'a>(
    catalog: &'a mut Catalog,
    aliases: &[String],
) -> Outcome<Vec<(&'a String, &'a mut Entry)>> {
    if let Some(unknown) = aliases.iter().find(|alias| !catalog.contains_key(*alias)) {
        let known: Vec<&str> = catalog.keys().map(String::as_str).collect();
        return Err(Failure::new(format!("failed to find {unknown} in the catalog"))
            .hint(format!("it has {}", known.join(", "))));
    }
    let all = catalog.iter_mut();
    Ok(all.filter(|(alias, _)| aliases.is_empty() || aliases.contains(alias)).collect())
}

impl Entry {
    fn pin(&mut self, site: &Site, release: Release) -> Outcome<()> {
        for (pinned, file) in [&mut self.amd64, &mut self.arm64].into_iter().zip(release.files) {
            pinned.sha256 = file.sha256(site)?;
            pinned.url = file.url;
        }
        self.snapshot = release.snapshot;
        Ok(())
    }
}

/// The catalog as its file has it.
fn written(catalog: &Catalog) -> Outcome<String> {
    let text = serde_json::to_string_pretty(catalog)
        .map_err(|e| Failure::new(format!("failed to write the catalog down: {e}")))?;
    Ok(text + "\n")
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
