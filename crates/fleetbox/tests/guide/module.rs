//! A kernel module.

use fleetbox::{Image, Vm};

#[fleetbox::test(image = "module-base", fixture = "module:/src/module")]
async fn the_module_loads_and_unloads(vm: Vm) -> fleetbox::Result<()> {
    vm.ssh("cp -r /src/module /tmp/ && make -C /lib/modules/$(uname -r)/build M=/tmp/module")
        .await?;
    vm.ssh("sudo insmod /tmp/module/shiny.ko").await?;
    assert!(vm.ssh("sudo dmesg").await?.contains("shiny: hello"));
    vm.ssh("sudo rmmod shiny").await?;
    Ok(())
}

/// Once, by `cargo run --example images`, or `fleetbox image build -f FILE --as module-base`.
async fn module_base() -> fleetbox::Result<()> {
    Image::from("debian-12")
        .run("apt-get update && apt-get install -y build-essential linux-headers-cloud-amd64")
        .name("module-base")
        .build()
        .await?;
    Ok(())
}
