//! Owns the seed others give a guest: a name, a user, a key and an address, and whatever cloud-init does
//! by itself. It must not spare anything.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use fleetbox::Vm;

use super::super::stage::Stage;
use crate::failure::{Failure, Outcome};

const VOLUME_BYTES: usize = 1 << 20;

/// A seed for the first member of a cluster, for whoever has this installation's key.
pub(super) fn seed(stage: &Stage, vm: &Vm) -> Outcome<PathBuf> {
    let config = vm.ssh_config("fleetbox".as_ref())?;
    let key = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("IdentityFile "))
        .map(|path| format!("{}.pub", path.trim_matches('"')))
        .ok_or_else(|| Failure::new("the ssh configuration names no key"))?;
    let key = std::fs::read_to_string(&key).map_err(Failure::io("read", key.as_ref()))?;
    let user = format!(
        "#cloud-config\nhostname: stock\nusers:\n- name: fleetbox\n  shell: /bin/bash\n  \
         sudo: ALL=(ALL) NOPASSWD:ALL\n  ssh_authorized_keys: [\"{}\"]\n",
        key.trim()
    );
    let network = format!(
        "version: 2\nethernets:\n  primary:\n    match: {{macaddress: \"{}\"}}\n    \
         addresses: [\"{}/24\"]\n    routes: [{{to: \"0.0.0.0/0\", via: 10.213.77.1}}]\n",
        "52:54:00:0a:d5:0a",
        vm.address()
    );
    let path = stage.file("stock-seed.img");
    let volume = volume(&[
        ("meta-data", "instance-id: stock\nlocal-hostname: stock\n"),
        ("user-data", &user),
        ("network-config", &network),
    ])
    .map_err(|e| Failure::new(format!("failed to make a seed: {e}")))?;
    std::fs::write(&path, volume).map_err(Failure::io("write", &path))?;
    Ok(path)
}

fn volume(files: &[(&str, &str)]) -> std::io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; VOLUME_BYTES]);
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
    fatfs::format_volume(&mut disk, options)?;
    let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new())?;
    for (name, text) in files {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}
