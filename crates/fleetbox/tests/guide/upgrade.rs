//! An upgrade across distributions.

use std::time::Duration;

use fleetbox::Vm;
use fleetbox::wait::{boot_finished, unit};

#[fleetbox::test(image = "debian-12", memory_mib = 2048, disk_gib = 30, timeout = "1h")]
async fn the_package_survives_the_upgrade(vm: Vm) -> fleetbox::Result<()> {
    vm.copy_to("target/debian/web.deb", "/tmp/").await?;
    vm.ssh("sudo apt-get update && sudo apt-get install -y /tmp/web.deb").await?;
    vm.ssh(
        "sudo sed -i s/bookworm/trixie/ /etc/apt/sources.list.d/* /etc/apt/sources.list || true",
    )
    .await?;
    let upgrade =
        "sudo DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update && apt-get -y full-upgrade'";
    vm.shell(upgrade).timeout(Duration::from_secs(3000)).run().await?;
    vm.reboot().await?;
    vm.wait(boot_finished()).await?;
    vm.wait(unit("web").active()).await
}
