//! Owns the figure of how much code of others a user of the library takes in.

use super::report::{Bound, Row};
use super::stage::Stage;
use super::user::{Crate, Dependency, PEER};
use crate::failure::Outcome;

/// Boots machines for tests, too.
const OTHER: &str = "qlean";

pub(super) fn crates(stage: &Stage) -> Outcome<Vec<Row>> {
    let packages = |name: &str, dependency: &Dependency| {
        Crate::new(stage, name, dependency)?.packages().map(f64::from)
    };
    let ours = packages("count-ours", &Dependency::Ours)?;
    let peer = packages("count-peer", &Dependency::Published(PEER))?;
    let other = packages("count-other", &Dependency::Published(OTHER))?;
    let note = format!(
        "packages by name and version in an empty crate's tests, the library's own included; peer: {PEER}; \
         {OTHER} draws {other}"
    );
    let bound = Bound::TimesAsLong(1.0);
    Ok(vec![Row::new("crates", (ours, Some(peer)), "crates", bound, 1, note)])
}
