//! A cluster of three machines with etcd in them, whose leader is cut off and whose power is cut:
//!
//! ```console
//! $ fleetbox image build debian-12 --include etcd-server,etcd-client --as debian-12-etcd
//! $ cargo run --example etcd
//! ```

mod raft;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> raft::Outcome<()> {
    raft::survives("etcd", &|what| println!("{what}")).await
}
