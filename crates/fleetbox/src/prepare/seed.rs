//! Owns the seed: the `NoCloud` volume that tells a stock guest its name, user, keys and address.
//! It must not depend on the distribution: one seed serves all.
//!
//! # What a first boot is spared
//! Emulated, Python is slow, and most of a first boot is cloud-init importing modules that find
//! nothing to do. So the seed
//! * brings the ed25519 host key along, so none is generated and no other kind is;
//! * names the modules to run: those this seed needs, those that run scripts a user or an image put
//!   there, and `apt_configure`, without which some images have no package sources. Left out are
//!   modules that only act on settings this seed does not make (ntp, timezone, keyboard, locale,
//!   `disk_setup`, `ca_certs`, rsyslog, snap, lxd, puppet, chef, …), `grub_dpkg`, since the guest's
//!   boot loader is not used, and the two that print key fingerprints to the console.
//!
//! Names of modules are those that every cloud-init from 20.4 on knows; one it does not know would
//! be a warning and a degraded state.

use std::io::{Cursor, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::json;

use crate::backend::Mount;
use crate::error::{Error, ErrorKind, Result};
use crate::store::whole::write_atomic;

const VOLUME_BYTES: usize = 1 << 20;
/// cloud-init looks for this label, in either case.
const VOLUME_LABEL: [u8; 11] = *b"CIDATA     ";

const BOOT_COMMANDS: &str = "bootcmd";
const INIT_MODULES: &[&str] = &[
    BOOT_COMMANDS,
    "write_files",
    "growpart",
    "resizefs",
    "mounts",
    "set_hostname",
    "update_hostname",
    "update_etc_hosts",
    "users_groups",
    "ssh",
];
const CONFIG_MODULES: &[&str] = &["apt_configure", "runcmd"];
const FINAL_MODULES: &[&str] = &[
    "package_update_upgrade_install",
    "scripts_vendor",
    "scripts_per_once",
    "scripts_per_boot",
    "scripts_per_instance",
    "scripts_user",
    "final_message",
];

/// Mounts fixtures in the guest, by the guest's own Python, which cloud-init is written in.
pub(crate) const MOUNT_PROGRAM: &str = include_str!("mount.py");
/// Enterprise Linux 8 keeps its own out of the way.
const PYTHON: &str =
    "exec \"$(command -v python3 || echo /usr/libexec/platform-python)\" -I -S -c \"$0\" \"$@\"";

/// What one guest is told.
#[derive(Debug, Clone)]
pub(crate) struct SeedSpec<'a> {
    /// A new one makes cloud-init configure the guest afresh.
    pub instance_id: &'a str,
    pub hostname: &'a str,
    pub user: &'a str,
    /// One line as in `authorized_keys`.
    pub authorized_key: &'a str,
    /// The guest's ed25519 host key, PEM of OpenSSH.
    pub host_key_private_openssh: &'a str,
    /// Its public half, one line.
    pub host_key_public: &'a str,
    pub network: NetworkSpec,
    /// In the order in which they are to be mounted.
    pub mounts: Vec<Mount>,
}

/// The guest's one interface.
#[derive(Debug, Clone)]
pub(crate) struct NetworkSpec {
    pub mac: String,
    pub address: Ipv4Addr,
    pub prefix_length: u8,
    pub gateway: Ipv4Addr,
    pub dns: Ipv4Addr,
    pub search: Option<String>,
}

/// The files of the volume, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeedFiles {
    pub meta_data: String,
    pub user_data: String,
    pub network_config: String,
}

/// The files for a guest. JSON is YAML too, and leaves nothing to escape by hand.
pub(crate) fn render(spec: &SeedSpec<'_>) -> SeedFiles {
    let meta_data = json!({
        "instance-id": spec.instance_id,
        "local-hostname": spec.hostname,
    });
    SeedFiles {
        meta_data: format!("{meta_data:#}\n"),
        user_data: format!("#cloud-config\n{:#}\n", user_data(spec)),
        network_config: format!("{:#}\n", network_config(&spec.network)),
    }
}

fn user_data(spec: &SeedSpec<'_>) -> serde_json::Value {
    let mut data = user_data_without_mounts(spec);
    if !spec.mounts.is_empty() {
        // After the user has a home, which a fixture may be in, and before anyone can log in.
        let modules = INIT_MODULES.iter().filter(|module| **module != BOOT_COMMANDS);
        data["cloud_init_modules"] = modules.chain([&BOOT_COMMANDS]).copied().collect();
        let mut mount = vec!["sh", "-c", PYTHON, MOUNT_PROGRAM];
        mount.extend(spec.mounts.iter().flat_map(|m| [m.serial.as_str(), m.path.as_str()]));
        data[BOOT_COMMANDS] = json!([mount]);
    }
    data
}

fn user_data_without_mounts(spec: &SeedSpec<'_>) -> serde_json::Value {
    let fqdn = match &spec.network.search {
        Some(domain) => format!("{}.{domain}", spec.hostname),
        None => spec.hostname.to_owned(),
    };
    json!({
        "hostname": spec.hostname,
        "fqdn": fqdn,
        // Adds the guest's own name to /etc/hosts and leaves the rest of the file alone.
        "manage_etc_hosts": "localhost",
        "users": [{
            "name": spec.user,
            "gecos": spec.user,
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "lock_passwd": true,
            "ssh_authorized_keys": [spec.authorized_key],
        }],
        "ssh_deletekeys": true,
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {
            "ed25519_private": spec.host_key_private_openssh,
            "ed25519_public": spec.host_key_public,
        },
        "cloud_init_modules": INIT_MODULES,
        "cloud_config_modules": CONFIG_MODULES,
        "cloud_final_modules": FINAL_MODULES,
    })
}

fn network_config(network: &NetworkSpec) -> serde_json::Value {
    let search: Vec<&str> = network.search.as_deref().into_iter().collect();
    json!({
        "version": 2,
        "ethernets": {
            "primary": {
                "match": { "macaddress": network.mac.to_ascii_lowercase() },
                "dhcp4": false,
                "dhcp6": false,
                "accept-ra": false,
                "addresses": [format!("{}/{}", network.address, network.prefix_length)],
                // Not "default": older cloud-init knows no such route.
                "routes": [{ "to": "0.0.0.0/0", "via": network.gateway }],
                "nameservers": { "addresses": [network.dns], "search": search },
            },
        },
    })
}

/// Writes the volume at `path`, whole or not at all, readable by its owner only: it has a private
/// key in it.
pub(crate) fn write(path: &Path, spec: &SeedSpec<'_>) -> Result<()> {
    let files = render(spec);
    let volume = volume(&files).map_err(|e| {
        Error::new(ErrorKind::Internal, format!("make the seed {}", path.display())).source(e)
    })?;
    write_atomic(path, &volume)
}

/// The guest's private host key, as its seed has it.
pub(crate) fn host_key_private_openssh(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<Option<String>> {
        let volume = fatfs::FileSystem::new(std::fs::File::open(path)?, fatfs::FsOptions::new())?;
        let mut text = String::new();
        volume.root_dir().open_file("user-data")?.read_to_string(&mut text)?;
        let json = text.split_once('\n').map_or("", |(_, json)| json);
        let config: serde_json::Value = serde_json::from_str(json)?;
        Ok(config["ssh_keys"]["ed25519_private"].as_str().map(str::to_owned))
    };
    let key = read().map_err(|e| Error::io("read the seed", path, e))?;
    key.ok_or_else(|| {
        Error::new(ErrorKind::StateRoot, format!("find a host key in the seed {}", path.display()))
    })
}

fn volume(files: &SeedFiles) -> std::io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; VOLUME_BYTES]);
    let options = fatfs::FormatVolumeOptions::new().volume_label(VOLUME_LABEL);
    fatfs::format_volume(&mut disk, options)?;
    let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new())?;
    let content = [
        ("meta-data", &files.meta_data),
        ("user-data", &files.user_data),
        ("network-config", &files.network_config),
    ];
    for (name, text) in content {
        let mut file = volume.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    volume.unmount()?;
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn spec() -> SeedSpec<'static> {
        SeedSpec {
            instance_id: "web-1",
            hostname: "web",
            user: "fleetbox",
            authorized_key: "ssh-ed25519 AAAA it's: \"odd\" #key",
            host_key_private_openssh: "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END\n",
            host_key_public: "ssh-ed25519 BBBB",
            network: NetworkSpec {
                mac: "52:54:00:AB:CD:01".to_owned(),
                address: Ipv4Addr::new(10, 0, 2, 15),
                prefix_length: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: Ipv4Addr::new(10, 0, 2, 3),
                search: Some("fleet".to_owned()),
            },
            mounts: Vec::new(),
        }
    }

    #[test]
    fn fixtures_are_mounted_when_the_user_has_a_home() {
        let data = user_data(&spec());
        assert_eq!(data["cloud_init_modules"][0], BOOT_COMMANDS);
        assert!(data.get(BOOT_COMMANDS).is_none());
        let mount = Mount { serial: "fleetbox-0".into(), path: "/srv/it's \"odd\"\n".into() };
        let data = user_data(&SeedSpec { mounts: vec![mount.clone()], ..spec() });
        let modules = data["cloud_init_modules"].as_array().unwrap();
        assert_eq!(modules.len(), INIT_MODULES.len());
        assert_eq!(modules.last().unwrap(), BOOT_COMMANDS);
        let words = data[BOOT_COMMANDS][0].as_array().unwrap();
        assert_eq!(words[words.len() - 2..], [mount.serial, mount.path]);
    }

    #[test]
    fn what_was_given_reads_back_whatever_its_characters() {
        let spec = spec();
        let files = render(&spec);
        let text = files.user_data.strip_prefix("#cloud-config\n").unwrap();
        let user: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(user["users"][0]["ssh_authorized_keys"][0], spec.authorized_key);
        assert_eq!(user["ssh_keys"]["ed25519_private"], spec.host_key_private_openssh);
        assert_eq!(user["fqdn"], "web.fleet");
        let network: serde_json::Value = serde_json::from_str(&files.network_config).unwrap();
        let primary = &network["ethernets"]["primary"];
        assert_eq!(primary["match"]["macaddress"], "52:54:00:ab:cd:01");
        assert_eq!(primary["addresses"][0], "10.0.2.15/24");
        let meta: serde_json::Value = serde_json::from_str(&files.meta_data).unwrap();
        assert_eq!(meta["instance-id"], "web-1");
    }

    #[test]
    fn the_volume_has_its_label_and_files_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        write(&path, &spec()).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let volume = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label_as_bytes(), b"CIDATA");
        let mut text = String::new();
        volume.root_dir().open_file("user-data").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, render(&spec()).user_data);
        assert!(volume.root_dir().open_file("network-config").is_ok());
        assert!(volume.root_dir().open_file("meta-data").is_ok());
        assert_eq!(host_key_private_openssh(&path).unwrap(), spec().host_key_private_openssh);
    }

    #[test]
    fn the_same_guest_gets_the_same_bytes() {
        assert_eq!(volume(&render(&spec())).unwrap(), volume(&render(&spec())).unwrap());
    }
}
