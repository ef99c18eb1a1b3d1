//! Owns the figure of how much foreign code a user of the library takes in.

use std::collections::BTreeSet;

use super::report::{Bound, Row};
use super::stage::Stage;
use crate::failure::Outcome;
use crate::process;

/// What testcontainers 0.28 draws, counted the same way.
const PEER: u32 = 229;

pub(super) fn crates(stage: &Stage) -> Outcome<Vec<Row>> {
    let mut tree = process::cargo(&stage.root);
    tree.args(["tree", "--package", "fleetbox", "--edges", "normal,build"]);
    tree.args(["--prefix", "none", "--no-dedupe"]);
    let output = process::run(&mut tree)?;
    let ours = count(&String::from_utf8_lossy(&output.stdout));
    let note = "packages by name and version, our own left out; peer: testcontainers 0.28";
    let pair = (f64::from(ours), Some(f64::from(PEER)));
    let bound = Bound::AtMost(f64::from(PEER));
    Ok(vec![Row::new("crates", pair, "crates", bound, 1, note)])
}

fn count(tree: &str) -> u32 {
    let packages: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap_or(rest)))
        .filter(|(name, _)| !name.starts_with("fleetbox"))
        .collect();
    u32::try_from(packages.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_repetitions_and_our_own_do_not() {
        let tree = "fleetbox v0.1.0 (/x)\nsyn v2.0.1\nsyn v2.0.1\nsyn v1.0.9\n\
                    fleetbox-macros v0.1.0 (proc-macro) (/x)\nctor v1.0.0 (proc-macro)\n";
        assert_eq!(count(tree), 3);
    }
}
