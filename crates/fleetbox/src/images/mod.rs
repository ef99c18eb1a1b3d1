//! Owns images.
