//! Owns a cluster's network: its plan, and on Linux the namespace it lives in, the taps, what
//! is done to frames among them, and the proxy that lets guests out. It must not know what a monitor or an image is.

#[cfg(target_os = "linux")]
mod capture;
#[cfg(target_os = "linux")]
mod dns;
#[cfg(target_os = "linux")]
mod egress;
#[cfg(target_os = "linux")]
mod line;
#[cfg(target_os = "linux")]
mod linux;
pub(crate) mod plan;
#[cfg(target_os = "linux")]
mod plane;
mod policy;
#[cfg(target_os = "linux")]
mod relay;

pub(crate) use self::policy::{Destination, Egress};
#[cfg(target_os = "linux")]
pub(crate) use self::{
    capture::{Capture, Captured},
    dns::{Names, Resolver, serve as serve_dns},
    egress::serve as serve_egress,
    line::Line,
    linux::{Listeners, LocalName, Network, check_host_routable, remove_host_links},
    plane::{Plane, Wanted},
    policy::{RuleSet, Rules, Seen},
    relay::{Impairment, Mac, StagePlan},
};
