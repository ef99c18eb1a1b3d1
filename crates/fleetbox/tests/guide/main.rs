//! The guide's recipes, as they stand there, so that they compile. They are not run: they test what their readers
//! have.
#![expect(dead_code, reason = "recipes are read, not called")]

mod blocking;
mod first;
mod module;
mod nftables;
mod raft;
mod unit;
mod upgrade;
mod waiting;
