//! Owns what the machines of a test are called.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// How much of a test's name a VM's name keeps, leaving room for what makes it unique.
const PART_LENGTH: usize = 48;

/// A VM's name made of the test's, and unique, so that tests, processes and checkouts never meet.
pub(super) fn vm_name(test: &str) -> String {
    let mut name = String::new();
    for c in test.rsplit("::").next().unwrap_or(test).chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(PART_LENGTH);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let unique = hasher.finish() & 0xff_ffff;
    // The letter keeps the suffix from being taken for a member's number.
    let part = if name.is_empty() { "test" } else { name.trim_end_matches('-') };
    format!("{part}-t{unique:06x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Name;

    #[test]
    fn names_are_valid_unique_and_clusters_of_their_own() {
        for test in ["a::b::It_Works", "x", "::", &"long_".repeat(40), "ünï"] {
            let name = Name::new(&vm_name(test)).unwrap();
            assert_eq!(name.likely_cluster(), name);
            assert!(Name::new(&format!("{name}-240")).is_ok());
        }
        assert!(vm_name("a::boots_twice").starts_with("boots-twice-t"));
        assert_ne!(vm_name("x"), vm_name("x"));
    }
}
