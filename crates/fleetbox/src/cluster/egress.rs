//! Owns [`Egress`], what of the world guests may reach, as its users write it. It must not enforce it.

use std::fmt;

use crate::control::message::Policy;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Destination;

/// What members may reach outside their cluster, over TCP and by name.
///
/// ```
/// use fleetbox::Egress;
/// let mirror = Egress::only(["deb.debian.org:80", "*.example.org", "192.0.2.0/24", "192.0.2.7:443"]);
/// assert_eq!(mirror.to_string(), "only deb.debian.org:80 *.example.org 192.0.2.0/24 192.0.2.7:443");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Egress {
    /// Everything the host reaches, and the host's own loopback as `host.fleetbox.internal`. The
    /// default.
    Allow,
    /// Nothing.
    Deny,
    /// Only these: a host's name, `*.` before a name for all below it, an IPv4 address or a network
    /// in CIDR form; each at every port, or at the one after a colon. `host.fleetbox.internal` is
    /// the host's loopback.
    ///
    /// A name stands for the addresses the cluster's name server has told for it, whichever service
    /// is behind them; names that are not listed do not resolve.
    Only(Vec<String>),
}

impl Egress {
    /// [`Egress::Only`] these.
    pub fn only<I: IntoIterator<Item: Into<String>>>(destinations: I) -> Self {
        Self::Only(destinations.into_iter().map(Into::into).collect())
    }

    /// Whether every destination is one.
    pub(super) fn check(&self) -> Result<()> {
        let Self::Only(destinations) = self else { return Ok(()) };
        if destinations.is_empty() {
            return Err(Error::new(ErrorKind::InvalidSpec, "allow only nothing")
                .hint("name what may be reached, or deny everything"));
        }
        for destination in destinations {
            destination.parse::<Destination>()?;
        }
        Ok(())
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny => f.write_str("deny"),
            Self::Only(destinations) => write!(f, "only {}", destinations.join(" ")),
        }
    }
}

impl From<Policy> for Egress {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Allow => Self::Allow,
            Policy::Deny => Self::Deny,
            Policy::Only(destinations) => Self::Only(destinations),
        }
    }
}

impl From<Egress> for Policy {
    fn from(egress: Egress) -> Self {
        match egress {
            Egress::Allow => Self::Allow,
            Egress::Deny => Self::Deny,
            Egress::Only(destinations) => Self::Only(destinations),
        }
    }
}
