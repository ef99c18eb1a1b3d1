//! A systemd unit.

use fleetbox::Vm;
use fleetbox::wait::unit;

#[fleetbox::test(fixture = "target/release:/opt/web", allow_health = "web\\.service")]
async fn the_service_is_started_again_when_it_dies(vm: Vm) -> fleetbox::Result<()> {
    vm.copy_to("units/web.service", "/tmp/").await?;
    vm.ssh("sudo cp /tmp/web.service /etc/systemd/system/ && sudo systemctl enable --now web")
        .await?;
    vm.wait(unit("web").active()).await?;
    let first = vm.ssh("systemctl show -p MainPID --value web").await?;
    vm.ssh("sudo systemctl kill -s SEGV web").await?;
    vm.wait(unit("web").active()).await?;
    assert_ne!(vm.ssh("systemctl show -p MainPID --value web").await?, first);
    Ok(())
}
