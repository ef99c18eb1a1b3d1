//! Owns the nftables rules that redirect guests' connections (nft(8); attributes as in the kernel's
//! `linux/netfilter/nf_tables.h`), and what all batches of rules begin and end with. It acts on the
//! calling thread's network namespace.

use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    Chained, CmpOps, MetaKeys, Nfgenmsg, PayloadBase, Registers, Request,
};
use netlink_socket2::NetlinkSocket;

const TABLE: &CStr = c"fleetbox";
const CHAIN: &CStr = c"egress";
/// `NF_INET_PRE_ROUTING`.
const HOOK_PREROUTING: u32 = 0;
/// `NF_IP_PRI_NAT_DST`.
const PRIORITY_DSTNAT: i32 = -100;
/// `NFT_NAT_DNAT`.
pub(super) const NAT_DESTINATION: u32 = 1;
/// Every batch message names this subsystem: `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// Where the destination lies in an IPv4 header, and how much of it names the /24.
const DESTINATION_OFFSET: u32 = 16;
const SUBNET_BYTES: usize = 3;
/// Where the destination port lies in a TCP header.
const TCP_PORT_OFFSET: u32 = 2;

/// Every TCP connection that leaves the subnet of `gateway`, or asks the gateway for anything but
/// names, ends at `gateway:port` instead, with its destination to be had by `SO_ORIGINAL_DST`:
///
/// ```text
/// ip daddr != SUBNET meta l4proto tcp dnat to gateway:port
/// ip daddr gateway tcp dport != 53 dnat to gateway:port
/// ```
pub(super) fn redirect(
    netlink: &mut NetlinkSocket,
    gateway: Ipv4Addr,
    port: u16,
) -> io::Result<()> {
    let mut batch = begin(netlink, 16)?;
    batch.request().set_create().op_newtable_do(&ipv4_header()).encode().push_name(TABLE);
    batch
        .request()
        .set_create()
        .op_newchain_do(&ipv4_header())
        .encode()
        .push_table(TABLE)
        .push_name(CHAIN)
        .push_type(c"nat")
        .nested_hook()
        .push_num(HOOK_PREROUTING)
        .push_priority(PRIORITY_DSTNAT)
        .end_nested();
    push_rule(&mut batch, gateway, port, &OUTSIDE);
    push_rule(&mut batch, gateway, port, &HOST);
    end(netlink, batch)
}

/// Which connections a rule is about.
struct Match {
    /// How much of the gateway's address is compared, and how.
    bytes: usize,
    op: CmpOps,
    /// The destination port is not this one.
    not_port: Option<u16>,
}

const OUTSIDE: Match = Match { bytes: SUBNET_BYTES, op: CmpOps::Neq, not_port: None };
const HOST: Match = Match { bytes: 4, op: CmpOps::Eq, not_port: Some(53) };

fn push_rule(batch: &mut Chained<'static>, gateway: Ipv4Addr, port: u16, rule: &Match) {
    let (first, second) = (Registers::Reg1 as u32, Registers::Reg2 as u32);
    let mut request = batch.request().set_create().set_append().op_newrule_do(&ipv4_header());
    let mut expressions = request
        .encode()
        .push_table(TABLE)
        .push_chain(CHAIN)
        .nested_expressions()
        .nested_elem()
        .nested_data_payload()
        .push_dreg(first)
        .push_base(PayloadBase::NetworkHeader as u32)
        .push_offset(DESTINATION_OFFSET)
        .push_len(rule.bytes as u32)
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_cmp()
        .push_sreg(first)
        .push_op(rule.op as u32)
        .nested_data()
        .push_value(&gateway.octets()[..rule.bytes])
        .end_nested()
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_meta()
        .push_dreg(first)
        .push_key(MetaKeys::L4Proto as u32)
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_cmp()
        .push_sreg(first)
        .push_op(CmpOps::Eq as u32)
        .nested_data()
        .push_value(&[libc::IPPROTO_TCP as u8])
        .end_nested()
        .end_nested()
        .end_nested();
    if let Some(port) = rule.not_port {
        expressions = expressions
            .nested_elem()
            .nested_data_payload()
            .push_dreg(first)
            .push_base(PayloadBase::TransportHeader as u32)
            .push_offset(TCP_PORT_OFFSET)
            .push_len(2)
            .end_nested()
            .end_nested()
            .nested_elem()
            .nested_data_cmp()
            .push_sreg(first)
            .push_op(CmpOps::Neq as u32)
            .nested_data()
            .push_value(&port.to_be_bytes())
            .end_nested()
            .end_nested()
            .end_nested();
    }
    expressions
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(first)
        .nested_data()
        .push_value(&gateway.octets())
        .end_nested()
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(second)
        .nested_data()
        .push_value(&port.to_be_bytes())
        .end_nested()
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_nat()
        .push_type(NAT_DESTINATION)
        .push_family(libc::AF_INET as u32)
        .push_reg_addr_min(first)
        .push_reg_proto_min(second)
        .end_nested()
        .end_nested()
        .end_nested();
}

/// A batch of so many messages at most, to be sent by [`end`].
pub(super) fn begin(netlink: &mut NetlinkSocket, messages: u32) -> io::Result<Chained<'static>> {
    let generation = generation(netlink)?;
    let mut batch = Chained::new(netlink.reserve_seq(messages));
    batch.request().op_batch_begin_do(&batch_header()).encode().push_genid(generation);
    Ok(batch)
}

/// Sends the batch: all of it takes effect, or nothing.
pub(super) fn end(netlink: &mut NetlinkSocket, mut batch: Chained<'static>) -> io::Result<()> {
    batch.request().op_batch_end_do(&batch_header());
    let batch = batch.finalize();
    Ok(netlink.request_chained(&batch)?.recv_all()?)
}

/// The ruleset's generation: a batch for another one is refused.
fn generation(netlink: &mut NetlinkSocket) -> io::Result<u32> {
    let request = Request::new().op_getgen_do(&Nfgenmsg::new());
    let mut replies = netlink.request(&request)?;
    let (_, attributes) = replies.recv_one()?;
    attributes.get_id().map_err(io::Error::other)
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}

pub(super) fn ipv4_header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: libc::AF_INET as u8, ..Nfgenmsg::default() }
}
