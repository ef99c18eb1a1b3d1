//! The guide shows recipes that compile: each is a file of the test target `guide`, which the lints build.

use std::collections::BTreeSet;
use std::path::Path;

/// The files' code, without what they say of themselves.
fn recipes() -> BTreeSet<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guide");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| !path.ends_with("main.rs"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split_once("\n\n").expect("it says what it owns").1;
            code.trim().to_owned()
        })
        .collect()
}

#[test]
fn the_guide_shows_these_very_recipes() {
    let guide = include_str!("../../../../docs/guide.md");
    let shown: BTreeSet<String> = guide
        .split("```rust\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().trim().to_owned())
        .collect();
    assert_eq!(shown, recipes());
}
