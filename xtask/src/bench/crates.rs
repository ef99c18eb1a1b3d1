//! Owns the figure of how much code of others a user of the library takes in.

use super::report::{Bound, Row};
use super::stage::Stage;
use super::user::{Crate, Dependency, PEER};
use crate::failure::{Failure, Outcome};

/// Boots machines for tests, too.
const OTHER: &str = "qlean";

pub(super) fn crates(stage: &Stage) -> Outcome<Vec<Row>> {
    let drawn = |name: &str, dependency: &Dependency| {
        let user = Crate::new(stage, name, dependency)?;
        Ok::<_, Failure>((f64::from(user.packages()?), user.locked()?))
    };
    let (ours, ours_locked) = drawn("count-ours", &Dependency::Ours)?;
    let (peer, peer_locked) = drawn("count-peer", &Dependency::Published(PEER))?;
    let (other, other_locked) = drawn("count-other", &Dependency::Published(OTHER))?;
    let note = format!(
        "packages by name and version in an empty crate's tests, the library's own included; peer: {PEER}; \
         {OTHER} draws {other}; locked for all systems: {ours_locked}, {peer_locked}, {other_locked}"
    );
    let bound = Bound::TimesAsLong(1.0);
    Ok(vec![Row::new("crates", (ours, Some(peer)), "crates", bound, 1, note)])
}
