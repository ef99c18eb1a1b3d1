//! Owns the arithmetic of addresses: which address, MAC and interface name the member with a given
//! index has. Pure. Every cluster lives in a namespace of its own, so all use the same plan.

use std::net::Ipv4Addr;

use crate::error::{Error, ErrorKind, Result};

/// Out of the way of the ranges homes, offices, Docker (172.17.0.0/16) and libvirt
/// (192.168.122.0/24) use, as guests must reach those.
const NETWORK: [u8; 3] = [10, 213, 77];
pub(crate) const PREFIX_LENGTH: u8 = 24;
/// The host's side: gateway and name server.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], 1);
/// The last byte of the first member's address.
const FIRST_HOST: u8 = 10;
/// How many members fit: hosts 10 to 249.
pub(crate) const MEMBERS_MAX: usize = 240;
/// The domain members' names are in.
pub(crate) const DOMAIN: &str = "fleetbox.internal";
/// What guests call the host.
#[cfg(target_os = "linux")]
pub(crate) const HOST_NAME: &str = "host.fleetbox.internal";

/// Where one member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub address: Ipv4Addr,
    pub mac: String,
}

/// The place of member `index`, the same at every start.
pub(crate) fn place(index: usize) -> Result<Place> {
    let Some(host) = u8::try_from(index)
        .ok()
        .filter(|i| usize::from(*i) < MEMBERS_MAX)
        .and_then(|i| i.checked_add(FIRST_HOST))
    else {
        return Err(Error::new(
            ErrorKind::InvalidSpec,
            format!("a cluster has at most {MEMBERS_MAX} members"),
        )
        .hint("remove members, or use several clusters"));
    };
    let [a, b, c] = NETWORK;
    Ok(Place {
        address: Ipv4Addr::new(a, b, c, host),
        // 52:54:00 is the prefix QEMU's documentation gives to virtual machines.
        mac: format!("52:54:00:{a:02x}:{b:02x}:{host:02x}"),
    })
}

/// The name of the tap with this number; at most 15 bytes (IFNAMSIZ).
#[cfg(target_os = "linux")]
pub(crate) fn tap_name(number: u32) -> String {
    format!("fbtap{number}")
}

/// The interfaces of a relay beside the tap with this number: the silent bridge the tap is moved
/// to, the relay's own port on it, and its port on the cluster's bridge.
#[cfg(target_os = "linux")]
pub(crate) fn relay_names(number: u32) -> [String; 3] {
    [format!("fbmid{number}"), format!("fbin{number}"), format!("fbout{number}")]
}

/// The subnet by which the host alone reaches one cluster's members, unlike [`NETWORK`] another for
/// each cluster. Out of 198.18.0.0/15, which is set aside for tests of network devices (RFC 2544) and
/// so is nobody's.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostSubnet {
    number: u8,
}

/// All of them, from `first` on.
#[cfg(target_os = "linux")]
pub(crate) fn host_subnets(first: u8) -> impl Iterator<Item = HostSubnet> {
    (0..=u8::MAX).map(move |step| HostSubnet { number: first.wrapping_add(step) })
}

#[cfg(target_os = "linux")]
impl HostSubnet {
    fn at(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.number, host)
    }

    pub(crate) fn network(self) -> Ipv4Addr {
        self.at(0)
    }

    /// The host's own address in it.
    pub(crate) fn host(self) -> Ipv4Addr {
        self.at(1)
    }

    /// Where the member with that address in the cluster is.
    pub(crate) fn of(self, member: Ipv4Addr) -> Ipv4Addr {
        self.at(member.octets()[3])
    }

    /// The host's end of the link; at most 15 bytes (IFNAMSIZ).
    pub(crate) fn link_name(self) -> String {
        format!("fbhost{}", self.number)
    }

    /// Whether that network has any address of this.
    pub(crate) fn overlaps(self, network: Ipv4Addr, prefix_length: u8) -> bool {
        let length = u32::from(prefix_length.min(PREFIX_LENGTH));
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        (network.to_bits() ^ self.network().to_bits()) & mask == 0
    }
}

/// The cluster's own subnet, for translation.
#[cfg(target_os = "linux")]
pub(crate) fn cluster_subnet() -> [Ipv4Addr; 2] {
    let [a, b, c] = NETWORK;
    [Ipv4Addr::new(a, b, c, 0), Ipv4Addr::new(a, b, c, u8::MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[cfg(target_os = "linux")]
    #[test]
    fn subnets_for_the_host_are_all_there_are_and_see_what_they_overlap() {
        let all: HashSet<_> = host_subnets(200).map(HostSubnet::network).collect();
        assert_eq!(all.len(), 256);
        let subnet = host_subnets(7).next().unwrap();
        assert_eq!(subnet.link_name(), "fbhost7");
        assert_eq!(subnet.of(place(0).unwrap().address), Ipv4Addr::new(198, 19, 7, 10));
        for (network, length, overlaps) in [
            ([198, 19, 7, 0], 24, true),
            ([198, 19, 7, 200], 32, true),
            ([198, 18, 0, 0], 15, true),
            ([0, 0, 0, 0], 0, true),
            ([198, 19, 8, 0], 24, false),
            ([198, 19, 6, 255], 32, false),
            ([10, 0, 0, 0], 8, false),
        ] {
            assert_eq!(subnet.overlaps(network.into(), length), overlaps, "{network:?}/{length}");
        }
    }

    #[test]
    fn places_are_distinct_and_inside_the_subnet() {
        let places: Vec<Place> = (0..MEMBERS_MAX).map(|i| place(i).unwrap()).collect();
        let addresses: HashSet<_> = places.iter().map(|p| p.address).collect();
        let macs: HashSet<_> = places.iter().map(|p| p.mac.clone()).collect();
        assert_eq!((addresses.len(), macs.len()), (MEMBERS_MAX, MEMBERS_MAX));
        assert!(addresses.iter().all(|a| a.octets()[..3] == NETWORK && *a != GATEWAY));
        assert!(place(MEMBERS_MAX).is_err());
        assert!(place(usize::MAX).is_err());
    }
}
