//! A test, and what it may say.

use fleetbox::{Cluster, Vm};

#[fleetbox::test(memory_mib = 1024, timeout = "2m")]
async fn a_file_survives_a_reboot(vm: Vm) -> fleetbox::Result<()> {
    vm.ssh("echo kept > kept && sync").await?;
    vm.reboot().await?;
    assert_eq!(vm.ssh("cat kept").await?, "kept");
    Ok(())
}

#[fleetbox::test]
async fn the_web_server_finds_its_database(web: Vm, db: Vm) -> fleetbox::Result<()> {
    assert_eq!(web.ssh("getent hosts db | cut -d ' ' -f 1").await?, db.address().to_string());
    Ok(())
}

#[fleetbox::test(vms = 5, cpus = 1, requires(netem))]
async fn all_five_answer(nodes: Cluster) -> fleetbox::Result<()> {
    for node in &nodes {
        node.ssh("true").await?;
    }
    Ok(())
}
