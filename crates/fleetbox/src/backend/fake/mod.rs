//! Owns the fake backend: processes of this host in place of machines. It exists to test how the
//! parts of fleetbox work together, not how guests behave.

pub(crate) mod guest;
