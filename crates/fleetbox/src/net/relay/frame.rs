//! Owns telling from an Ethernet frame whose traffic it is: the host's own, a peer's, the world's.
//! Pure. What it reads comes from a guest, so nothing in it is trusted to be whole.

use std::net::Ipv4Addr;

pub(crate) type Mac = [u8; 6];

/// The way a frame takes through the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    FromGuest,
    ToGuest,
}

/// At the other end of the guest's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The host itself: SSH, sockets, copies, names. No fault touches it.
    Host,
    /// Something else, through the host's proxy.
    World,
    /// Another member, or for a frame from the guest all of them.
    Member(Mac),
}

/// The bridge's own side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostSide {
    pub mac: Mac,
    pub address: Ipv4Addr,
}

const TYPE_OFFSET: usize = 12;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
/// In an IPv4 header behind an Ethernet header (RFC 791).
const IPV4_SOURCE: usize = 14 + 12;
const IPV4_DESTINATION: usize = 14 + 16;
/// In an ARP message for IPv4 over Ethernet behind an Ethernet header (RFC 826).
const ARP_TARGET: usize = 14 + 24;

/// Whose traffic `frame` is.
pub(crate) fn peer(frame: &[u8], way: Way, host: HostSide) -> Peer {
    let (Some(destination), Some(source)) = (mac_at(frame, 0), mac_at(frame, 6)) else {
        return Peer::Member([0; 6]);
    };
    let kind = frame.get(TYPE_OFFSET..TYPE_OFFSET + 2).unwrap_or_default();
    let (other, address) = match way {
        Way::FromGuest => (destination, IPV4_DESTINATION),
        Way::ToGuest => (source, IPV4_SOURCE),
    };
    // The guest asks everybody, but means the host.
    let asks_for_host = way == Way::FromGuest
        && kind == TYPE_ARP
        && address_at(frame, ARP_TARGET) == Some(host.address);
    if asks_for_host {
        return Peer::Host;
    }
    if other != host.mac {
        return Peer::Member(other);
    }
    match address_at(frame, address) {
        Some(end) if kind == TYPE_IPV4 && end != host.address => Peer::World,
        _ => Peer::Host,
    }
}

fn mac_at(frame: &[u8], offset: usize) -> Option<Mac> {
    frame.get(offset..offset + 6)?.try_into().ok()
}

fn address_at(frame: &[u8], offset: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = frame.get(offset..offset + 4)?.try_into().ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostSide = HostSide { mac: [2; 6], address: Ipv4Addr::new(10, 0, 0, 1) };
    const GUEST: Mac = [4; 6];
    const OTHER: Mac = [6; 6];

    fn frame(to: Mac, from: Mac, kind: [u8; 2], offset: usize, address: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
        frame[12..14].copy_from_slice(&kind);
        frame[offset..offset + 4].copy_from_slice(&address);
        frame
    }

    #[test]
    fn the_host_the_world_and_members_are_told_apart() {
        let cases = [
            (Way::FromGuest, HOST.mac, GUEST, IPV4_DESTINATION, [10, 0, 0, 1], Peer::Host),
            (Way::FromGuest, HOST.mac, GUEST, IPV4_DESTINATION, [9, 9, 9, 9], Peer::World),
            (Way::FromGuest, OTHER, GUEST, IPV4_DESTINATION, [10, 0, 0, 9], Peer::Member(OTHER)),
            (Way::ToGuest, GUEST, HOST.mac, IPV4_SOURCE, [10, 0, 0, 1], Peer::Host),
            (Way::ToGuest, GUEST, HOST.mac, IPV4_SOURCE, [9, 9, 9, 9], Peer::World),
            (Way::ToGuest, GUEST, OTHER, IPV4_SOURCE, [10, 0, 0, 9], Peer::Member(OTHER)),
        ];
        for (way, to, from, offset, address, expected) in cases {
            let bytes = frame(to, from, TYPE_IPV4, offset, address);
            assert_eq!(peer(&bytes, way, HOST), expected, "{way:?} {address:?}");
        }
    }

    #[test]
    fn a_question_for_the_hosts_address_is_the_hosts_though_all_hear_it() {
        let all = [0xff; 6];
        let ask = frame(all, GUEST, TYPE_ARP, ARP_TARGET, [10, 0, 0, 1]);
        assert_eq!(peer(&ask, Way::FromGuest, HOST), Peer::Host);
        let ask = frame(all, GUEST, TYPE_ARP, ARP_TARGET, [10, 0, 0, 9]);
        assert_eq!(peer(&ask, Way::FromGuest, HOST), Peer::Member(all));
        // A member that asks for the host does not become the host.
        let ask = frame(all, OTHER, TYPE_ARP, ARP_TARGET, [10, 0, 0, 1]);
        assert_eq!(peer(&ask, Way::ToGuest, HOST), Peer::Member(OTHER));
        let ask = frame(all, HOST.mac, TYPE_ARP, ARP_TARGET, [10, 0, 0, 9]);
        assert_eq!(peer(&ask, Way::ToGuest, HOST), Peer::Host);
    }

    #[test]
    fn a_fragment_of_a_frame_is_no_reason_to_fail() {
        for length in 0..60 {
            let whole = frame(HOST.mac, GUEST, TYPE_IPV4, IPV4_DESTINATION, [9, 9, 9, 9]);
            peer(&whole[..length], Way::FromGuest, HOST);
        }
    }
}
