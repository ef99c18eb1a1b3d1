//! Owns whether a guest may reach something outside its cluster: what a policy says of an address, a
//! name and a port. Pure, but for the memory of which names led to which addresses.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::plan;
use crate::error::{Error, ErrorKind, Result};

/// Addresses of which the names are remembered; the oldest go first.
const SEEN_MAX: usize = 8192;

/// What is outside the cluster for its members, changing over time.
pub(crate) type Rules = watch::Receiver<RuleSet>;

/// What is outside the cluster for its members.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RuleSet {
    /// They reach nothing at all.
    pub isolated: HashSet<Ipv4Addr>,
    pub members: HashMap<Ipv4Addr, Egress>,
    /// For the members that are not in the above.
    pub others: Egress,
}

/// A policy.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Egress {
    #[default]
    Allow,
    Deny,
    Only(Vec<Destination>),
}

/// Something in the world: a name, names below one, or a network; at one port or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    place: Place,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Name(String),
    Below(String),
    Network(Ipv4Addr, u32),
}

/// Which names the guests have been told lead to which addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<SeenNames>>);

#[derive(Debug, Default)]
struct SeenNames {
    names: HashMap<Ipv4Addr, BTreeSet<String>>,
    order: VecDeque<Ipv4Addr>,
}

impl RuleSet {
    fn of(&self, member: Ipv4Addr) -> &Egress {
        if self.isolated.contains(&member) {
            return &Egress::Deny;
        }
        self.members.get(&member).unwrap_or(&self.others)
    }

    /// Whether the member may connect there.
    pub(crate) fn allow(&self, member: Ipv4Addr, to: SocketAddrV4, seen: &Seen) -> bool {
        match self.of(member) {
            Egress::Allow => true,
            Egress::Deny => false,
            Egress::Only(allowed) => {
                let names = seen.names(*to.ip());
                allowed.iter().any(|destination| destination.includes(to, &names))
            }
        }
    }

    /// Whether the member may know where the name leads.
    pub(crate) fn allow_name(&self, member: Ipv4Addr, name: &str) -> bool {
        match self.of(member) {
            Egress::Allow => true,
            Egress::Deny => false,
            Egress::Only(allowed) => allowed.iter().any(|destination| destination.has_name(name)),
        }
    }
}

impl Destination {
    fn includes(&self, to: SocketAddrV4, names: &BTreeSet<String>) -> bool {
        if self.port.is_some_and(|port| port != to.port()) {
            return false;
        }
        match &self.place {
            Place::Network(network, mask) => u32::from(*to.ip()) & mask == u32::from(*network),
            _ => names.iter().any(|name| self.has_name(name)),
        }
    }

    fn has_name(&self, name: &str) -> bool {
        match &self.place {
            Place::Name(own) => own == name,
            Place::Below(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            Place::Network(..) => false,
        }
    }
}

impl FromStr for Destination {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |why: &str| {
            Error::new(
                ErrorKind::InvalidSpec,
                format!("allow \"{}\": {why}", text.escape_debug()),
            )
            .hint("name a host (example.org), all below one (*.example.org), an IPv4 address or a network (10.0.0.0/8), each with or without a port (:443)")
        };
        let (place, port) = match text.rsplit_once(':') {
            Some((place, _)) if place.contains(':') => {
                return Err(refused("guests have no way out by IPv6"));
            }
            Some((place, port)) => match port.parse::<u16>() {
                Ok(port) if port > 0 => (place, Some(port)),
                _ => return Err(refused("the port is not one from 1 to 65535")),
            },
            None => (text, None),
        };
        if let Some((address, length)) = place.split_once('/') {
            let address: Ipv4Addr =
                address.parse().map_err(|_| refused("the network is not an IPv4 one"))?;
            let length: u32 = match length.parse() {
                Ok(length) if length <= 32 => length,
                _ => return Err(refused("the prefix is not one from 0 to 32")),
            };
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            if u32::from(address) & !mask != 0 {
                return Err(refused("the address has bits outside its prefix"));
            }
            return Ok(Self { place: Place::Network(address, mask), port });
        }
        if let Ok(address) = place.parse() {
            return Ok(Self { place: Place::Network(address, u32::MAX), port });
        }
        let lower = place.trim_end_matches('.').to_ascii_lowercase();
        let (name, below) = match lower.strip_prefix("*.") {
            Some(parent) => (parent, true),
            None => (lower.as_str(), false),
        };
        if !is_host_name(name) {
            return Err(refused("it is no host's name"));
        }
        let place =
            if below { Place::Below(name.to_owned()) } else { Place::Name(name.to_owned()) };
        Ok(Self { place, port })
    }
}

/// RFC 1123, with the underscore that service names have. Digits alone would be a mistyped address.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253
        && name.split('.').all(label)
        && !name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

impl Seen {
    /// A guest was told that `name` leads to `address`.
    pub(crate) fn note(&self, name: &str, address: Ipv4Addr) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.names.contains_key(&address) {
            if seen.order.len() >= SEEN_MAX
                && let Some(oldest) = seen.order.pop_front()
            {
                seen.names.remove(&oldest);
            }
            seen.order.push_back(address);
        }
        let names = seen.names.entry(address).or_default();
        if names.len() < SEEN_MAX {
            names.insert(name.to_owned());
        }
    }

    fn names(&self, address: Ipv4Addr) -> BTreeSet<String> {
        if address == plan::GATEWAY {
            return BTreeSet::from([plan::HOST_NAME.to_owned()]);
        }
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.names.get(&address).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 10);

    fn only(allowed: &[&str]) -> RuleSet {
        let allowed = allowed.iter().map(|text| text.parse().unwrap()).collect();
        RuleSet { others: Egress::Only(allowed), ..RuleSet::default() }
    }

    fn to(address: [u8; 4], port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(address.into(), port)
    }

    #[test]
    fn networks_addresses_and_ports_are_matched() {
        let seen = Seen::default();
        let rules = only(&["192.0.2.0/24:443", "198.51.100.7"]);
        assert!(rules.allow(MEMBER, to([192, 0, 2, 9], 443), &seen));
        assert!(!rules.allow(MEMBER, to([192, 0, 2, 9], 80), &seen));
        assert!(!rules.allow(MEMBER, to([192, 0, 3, 9], 443), &seen));
        assert!(rules.allow(MEMBER, to([198, 51, 100, 7], 1), &seen));
        assert!(!rules.allow(MEMBER, to([198, 51, 100, 8], 1), &seen));
        assert!(only(&["0.0.0.0/0"]).allow(MEMBER, to([9, 9, 9, 9], 9), &seen));
    }

    #[test]
    fn a_name_allows_the_addresses_it_led_to() {
        let seen = Seen::default();
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let rules = only(&["deb.example.org:80", "*.pool.example.org", "host.fleetbox.internal"]);
        assert!(!rules.allow(MEMBER, SocketAddrV4::new(address, 80), &seen));
        seen.note("deb.example.org", address);
        assert!(rules.allow(MEMBER, SocketAddrV4::new(address, 80), &seen));
        assert!(!rules.allow(MEMBER, SocketAddrV4::new(address, 443), &seen));
        assert!(rules.allow_name(MEMBER, "a.pool.example.org"));
        assert!(!rules.allow_name(MEMBER, "pool.example.org"));
        assert!(!rules.allow_name(MEMBER, "evilpool.example.org"));
        assert!(rules.allow(MEMBER, SocketAddrV4::new(plan::GATEWAY, 8080), &seen));
    }

    #[test]
    fn a_members_own_rule_goes_before_the_clusters_and_isolation_before_both() {
        let seen = Seen::default();
        let world = to([9, 9, 9, 9], 9);
        let mut rules = RuleSet { others: Egress::Deny, ..RuleSet::default() };
        rules.members.insert(MEMBER, Egress::Allow);
        assert!(rules.allow(MEMBER, world, &seen));
        assert!(!rules.allow(Ipv4Addr::new(10, 213, 77, 11), world, &seen));
        rules.isolated.insert(MEMBER);
        assert!(!rules.allow(MEMBER, world, &seen));
        assert!(!rules.allow_name(MEMBER, "example.org"));
    }

    #[test]
    fn what_is_no_destination_is_refused_with_the_forms_there_are() {
        for text in [
            "",
            "*",
            "a b",
            "http://x.org",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "example.org:0",
            "example.org:x",
            "::1",
            "[::1]:80",
            "1.2.3",
            "-x.org",
            "*.*.org",
            "256.1.1.1",
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{text}");
        }
    }

    #[test]
    fn the_memory_of_names_is_finite() {
        let seen = Seen::default();
        for number in 0..2 * SEEN_MAX as u32 {
            seen.note("a.example.org", Ipv4Addr::from(number + 1));
        }
        assert!(seen.names(Ipv4Addr::from(1)).is_empty());
        assert_eq!(seen.0.lock().unwrap().names.len(), SEEN_MAX);
    }
}
