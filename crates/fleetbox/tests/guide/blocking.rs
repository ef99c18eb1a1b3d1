//! Without async.

use fleetbox::Vm;
use fleetbox::blocking::Block;
use fleetbox::wait::port;

#[fleetbox::test]
fn ssh_listens(vm: Vm) -> fleetbox::Result<()> {
    vm.wait(port(22)).block()?;
    assert_eq!(vm.ssh("uname").block()?, "Linux");
    Ok(())
}
