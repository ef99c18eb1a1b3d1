//! Owns the nftables rules that translate between the host's subnet for a cluster and the cluster's own
//! (nft(8); attributes as in the kernel's `linux/netfilter/nf_tables.h`). It acts on the calling
//! thread's network namespace.
//!
//! ```text
//! table ip fleetbox-host {
//!     chain in { type nat hook prerouting priority -101; iifname LINK dnat ip prefix to CLUSTER/24 }
//!     chain out { type nat hook postrouting priority 100; ip saddr HOST oifname BRIDGE snat to GATEWAY }
//!     chain through { type filter hook forward priority 0; iifname BRIDGE ct direction original drop }
//! }
//! ```

use std::ffi::CStr;
use std::io;

use netlink_bindings::nftables::{
    Chained, CmpOps, CtKeys, MetaKeys, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers,
    VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_socket2::NetlinkSocket;

use super::nft::{NAT_DESTINATION, begin, end, ipv4_header};
use crate::net::plan::{self, HostSubnet};

const TABLE: &CStr = c"fleetbox-host";
/// `NF_INET_PRE_ROUTING` with a priority before the redirection's, whose rules would take the host's
/// connections for a guest's.
const IN: (&CStr, &CStr, u32, i32) = (c"in", c"nat", 0, -101);
/// `NF_INET_POST_ROUTING`, `NF_IP_PRI_NAT_SRC`.
const OUT: (&CStr, &CStr, u32, i32) = (c"out", c"nat", 4, 100);
/// `NF_INET_FORWARD`, `NF_IP_PRI_FILTER`.
const THROUGH: (&CStr, &CStr, u32, i32) = (c"through", c"filter", 2, 0);
/// `NFT_NAT_SNAT`.
const NAT_SOURCE: u32 = 0;
/// `NF_NAT_RANGE_NETMAP` (`linux/netfilter/nf_nat.h`, Linux 5.8): the address keeps its place in the
/// range.
const NETMAP: u32 = 1 << 6;
/// Where the source lies in an IPv4 header.
const SOURCE_OFFSET: u32 = 12;
/// `IP_CT_DIR_ORIGINAL`.
const ORIGINAL: u8 = 0;
/// `IFNAMSIZ`.
const NAME_BYTES: usize = 16;
const FIRST: u32 = Registers::Reg1 as u32;
const SECOND: u32 = Registers::Reg2 as u32;

/// Makes the table, for a host behind `link` and members behind `bridge`.
pub(super) fn make(
    netlink: &mut NetlinkSocket,
    link: &str,
    bridge: &str,
    subnet: HostSubnet,
) -> io::Result<()> {
    let mut batch = begin(netlink, 16)?;
    batch
        .request()
        .set_create()
        .set_excl()
        .op_newtable_do(&ipv4_header())
        .encode()
        .push_name(TABLE);
    for chain in [IN, OUT, THROUGH] {
        add_chain(&mut batch, chain);
    }
    rule(&mut batch, IN.0, |rule| {
        let [first, last] = plan::cluster_subnet().map(|address| address.octets());
        let rule = interface(rule, MetaKeys::Iifname, link);
        let rule = immediate(immediate(rule, FIRST, &first), SECOND, &last);
        rule.nested_elem()
            .nested_data_nat()
            .push_type(NAT_DESTINATION)
            .push_family(libc::AF_INET as u32)
            .push_reg_addr_min(FIRST)
            .push_reg_addr_max(SECOND)
            .push_flags(NETMAP)
            .end_nested()
            .end_nested()
    });
    rule(&mut batch, OUT.0, |rule| {
        let rule = rule
            .nested_elem()
            .nested_data_payload()
            .push_dreg(FIRST)
            .push_base(PayloadBase::NetworkHeader as u32)
            .push_offset(SOURCE_OFFSET)
            .push_len(4)
            .end_nested()
            .end_nested();
        let rule = equal(rule, &subnet.host().octets());
        let rule = interface(rule, MetaKeys::Oifname, bridge);
        immediate(rule, FIRST, &plan::GATEWAY.octets())
            .nested_elem()
            .nested_data_nat()
            .push_type(NAT_SOURCE)
            .push_family(libc::AF_INET as u32)
            .push_reg_addr_min(FIRST)
            .end_nested()
            .end_nested()
    });
    rule(&mut batch, THROUGH.0, |rule| {
        let rule = interface(rule, MetaKeys::Iifname, bridge)
            .nested_elem()
            .nested_data_ct()
            .push_dreg(FIRST)
            .push_key(CtKeys::Direction as u32)
            .end_nested()
            .end_nested();
        equal(rule, &[ORIGINAL])
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(Registers::RegVerdict as u32)
            .nested_data()
            .nested_verdict()
            .push_code(VerdictCode::Drop as u32)
            .end_nested()
            .end_nested()
            .end_nested()
            .end_nested()
    });
    end(netlink, batch)
}

fn add_chain(batch: &mut Chained<'static>, chain: (&CStr, &CStr, u32, i32)) {
    let (name, kind, hook, priority) = chain;
    batch
        .request()
        .set_create()
        .op_newchain_do(&ipv4_header())
        .encode()
        .push_table(TABLE)
        .push_name(name)
        .push_type(kind)
        .nested_hook()
        .push_num(hook)
        .push_priority(priority)
        .end_nested();
}

/// A rule in construction: what its expressions are pushed to.
type Rule<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

fn rule(
    batch: &mut Chained<'static>,
    chain: &CStr,
    expressions: impl FnOnce(Rule<'_>) -> Rule<'_>,
) {
    let mut request = batch.request().set_create().set_append().op_newrule_do(&ipv4_header());
    let rule = request.encode().push_table(TABLE).push_chain(chain).nested_expressions();
    expressions(rule).end_nested();
}

fn interface<P: Pusher>(
    rule: PushExprListAttrs<P>,
    key: MetaKeys,
    name: &str,
) -> PushExprListAttrs<P> {
    let mut padded = [0; NAME_BYTES];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    let rule = rule
        .nested_elem()
        .nested_data_meta()
        .push_dreg(FIRST)
        .push_key(key as u32)
        .end_nested()
        .end_nested();
    equal(rule, &padded)
}

/// Goes on if the first register holds that.
fn equal<P: Pusher>(rule: PushExprListAttrs<P>, value: &[u8]) -> PushExprListAttrs<P> {
    rule.nested_elem()
        .nested_data_cmp()
        .push_sreg(FIRST)
        .push_op(CmpOps::Eq as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn immediate<P: Pusher>(
    rule: PushExprListAttrs<P>,
    register: u32,
    value: &[u8],
) -> PushExprListAttrs<P> {
    rule.nested_elem()
        .nested_data_immediate()
        .push_dreg(register)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}
