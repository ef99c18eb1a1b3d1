//! Owns preparation.
