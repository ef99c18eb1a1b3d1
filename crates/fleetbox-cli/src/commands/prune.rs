//! `prune`: removes what killed processes left, and prints it.

use std::io::Write;

use super::printed;
use crate::Outcome;
use crate::args::{Format, Output};

pub(super) async fn run(args: &Output) -> Outcome {
    let removed = fleetbox::prune().await?;
    let mut out = std::io::stdout().lock();
    printed(match args.output {
        Format::Json => serde_json::to_string_pretty(&removed)
            .map_err(std::io::Error::other)
            .and_then(|json| writeln!(out, "{json}")),
        Format::Text => removed.iter().try_for_each(|path| writeln!(out, "{}", path.display())),
    })
}
