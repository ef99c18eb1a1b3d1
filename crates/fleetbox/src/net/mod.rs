//! Owns a cluster's network: its plan, and on Linux the namespace it lives in, the taps, and the
//! proxy that lets guests out. It must not know what a monitor or an image is.

#[cfg(target_os = "linux")]
mod dns;
#[cfg(target_os = "linux")]
mod egress;
#[cfg(target_os = "linux")]
mod linux;
pub(crate) mod plan;

#[cfg(target_os = "linux")]
pub(crate) use self::{
    dns::{Names, serve as serve_dns},
    egress::serve as serve_egress,
    linux::{Listeners, LocalName, Network},
};
