//! Owns the few rtnetlink requests fleetbox makes: bridge, address, up, enslave (rtnetlink(7)). It
//! acts on the calling thread's network namespace.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, IfinfoFlags, Ifinfomsg};
use netlink_socket2::NetlinkSocket;

pub(super) fn index(netlink: &mut NetlinkSocket, name: &str) -> io::Result<u32> {
    let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
    request.encode().push_ifname(&CString::new(name)?);
    let mut replies = netlink.request(&request)?;
    let (header, _) = replies.recv_one()?;
    u32::try_from(header.ifi_index).map_err(io::Error::other)
}

pub(super) fn add_bridge(netlink: &mut NetlinkSocket, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request =
        rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
    request
        .encode()
        .push_ifname(&CString::new(name)?)
        .push_address(&mac)
        .nested_linkinfo()
        .push_kind(c"bridge")
        .nested_data_bridge()
        // Snooping holds back multicast until a querier is heard, and there is none.
        .push_mcast_snooping(0);
    Ok(netlink.request(&request)?.recv_ack()?)
}

pub(super) fn add_address(
    netlink: &mut NetlinkSocket,
    index: u32,
    address: Ipv4Addr,
    prefix_length: u8,
) -> io::Result<()> {
    let header = Ifaddrmsg {
        ifa_family: libc::AF_INET as u8,
        ifa_index: index,
        ifa_prefixlen: prefix_length,
        ..Ifaddrmsg::default()
    };
    let mut request = rt_addr::Request::new().set_create().set_change().op_newaddr_do(&header);
    request.encode().push_local(IpAddr::V4(address)).push_address(IpAddr::V4(address));
    Ok(netlink.request(&request)?.recv_ack()?)
}

pub(super) fn up(netlink: &mut NetlinkSocket, index: u32) -> io::Result<()> {
    let request = rt_link::Request::new().op_newlink_do(&up_header(index)?);
    Ok(netlink.request(&request)?.recv_ack()?)
}

pub(super) fn enslave_up(netlink: &mut NetlinkSocket, index: u32, bridge: u32) -> io::Result<()> {
    let mut request = rt_link::Request::new().op_newlink_do(&up_header(index)?);
    request.encode().push_master(bridge);
    Ok(netlink.request(&request)?.recv_ack()?)
}

fn up_header(index: u32) -> io::Result<Ifinfomsg> {
    Ok(Ifinfomsg {
        ifi_index: i32::try_from(index).map_err(io::Error::other)?,
        ifi_flags: IfinfoFlags::Up as u32,
        ifi_change: IfinfoFlags::Up as u32,
        ..Ifinfomsg::default()
    })
}
