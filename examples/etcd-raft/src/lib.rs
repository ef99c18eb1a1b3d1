//! There is nothing here: the tests are in `tests/raft`.
