//! The README's example, compiled and run as it stands there.

use fleetbox::Vm;

#[fleetbox::test(memory_mib = 1024)]
async fn the_journal_is_persistent_after_a_reboot(vm: Vm) -> fleetbox::Result<()> {
    vm.command("mkdir").arg("-p").arg("/var/log/journal").sudo().run().await?;
    vm.ssh("echo marker | systemd-cat && sudo journalctl --flush && sudo journalctl --sync")
        .await?;
    vm.reboot().await?;
    assert!(vm.ssh("sudo journalctl --boot=-1").await?.contains("marker"));
    Ok(())
}

#[test]
fn the_readme_shows_this_very_example() {
    let file = include_str!("readme.rs");
    let from = file.find("use fleetbox::Vm;").unwrap();
    let to = file.find("\n#[test]\n").unwrap();
    let readme = include_str!("../../../../README.md");
    assert!(readme.contains(file[from..to].trim_end()), "README and readme.rs differ");
}
