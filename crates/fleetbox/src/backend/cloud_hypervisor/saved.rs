//! Owns what cloud-hypervisor writes of a machine it saves, its configuration and its state, both JSON:
//! kept in one file, and given back in the words of the machine that is made of it. Pure.
//!
//! The memory of that machine is the saved one's file, mapped privately: it reads what it needs when it
//! needs it, shares that with all others, and has what it writes for itself. Version 52 offers this for
//! memory that a file was given for, and finds nothing left to load then.

use std::io;

use serde_json::{Map, Value, json};

use super::args::{self, DISK_ID, NET_ID, SEED_ID};
use crate::backend::{Boot, BootPlan};

/// What it calls memory that it was told no name for, and the part of its state that is about memory
/// (`DEFAULT_MEMORY_ZONE` and `MEMORY_MANAGER_SNAPSHOT_ID` in its source).
const MEMORY_ZONE: &str = "mem0";
const MEMORY_STATE: &str = "memory-manager";

/// The files it makes and reads.
pub(super) const CONFIG: &str = "config.json";
pub(super) const STATE: &str = "state.json";
pub(super) const MEMORY: &str = "memory-ranges";

/// One file of both, as they are to come back. Refuses what the state of another version may have.
pub(super) fn keep(config: &[u8], state: &[u8]) -> io::Result<Vec<u8>> {
    let config: Value = serde_json::from_slice(config)?;
    let mut state: Value = serde_json::from_slice(state)?;
    memory_from_file(&mut state).ok_or_else(|| odd("its state of memory"))?;
    Ok(json!({ "config": config, "state": state }).to_string().into_bytes())
}

/// Memory is in the file from its first byte to its last, without what lies between in the guest's
/// addresses; and nothing of it is to be loaded.
fn memory_from_file(state: &mut Value) -> Option<()> {
    let text = state.pointer_mut(&format!("/snapshots/{MEMORY_STATE}/snapshot_data/state"))?;
    let mut memory: Value = serde_json::from_str(text.as_str()?).ok()?;
    let ranges = memory.pointer("/memory_ranges/data")?.as_array()?.clone();
    let mut mapped = Vec::new();
    let mut file_offset = 0;
    for range in &ranges {
        let (gpa, length) = (range["gpa"].as_u64()?, range["length"].as_u64()?);
        mapped.push((gpa, length, file_offset));
        file_offset += length;
    }
    let mappings = memory["guest_ram_mappings"].as_array_mut()?;
    if mappings.len() != mapped.len() || mappings.is_empty() {
        return None;
    }
    for mapping in mappings {
        let (gpa, size) = (mapping["gpa"].as_u64()?, mapping["size"].as_u64()?);
        let (.., offset) = mapped.iter().find(|(at, length, _)| (*at, *length) == (gpa, size))?;
        if mapping["zone_id"] != MEMORY_ZONE || mapping["virtio_mem"] != false {
            return None;
        }
        mapping["file_offset"] = json!(offset);
    }
    memory["memory_ranges"]["data"] = json!([]);
    *text = Value::String(memory.to_string());
    Some(())
}

/// The configuration and the state of the plan's machine, which comes back from what was kept.
pub(super) fn come_back(kept: &[u8], plan: &BootPlan, landlock: bool) -> io::Result<[Vec<u8>; 2]> {
    let mut kept: Value = serde_json::from_slice(kept)?;
    let config = kept["config"].as_object_mut().ok_or_else(|| odd("its configuration"))?;
    configure(config, plan).ok_or_else(|| odd("its configuration"))?;
    confine(config, plan, landlock);
    Ok(["config", "state"].map(|part| kept[part].to_string().into_bytes()))
}

fn configure(config: &mut Map<String, Value>, plan: &BootPlan) -> Option<()> {
    config.insert("payload".to_owned(), payload(&plan.boot));
    named(config, "disks", DISK_ID)?.insert("path".to_owned(), json!(plan.disk));
    named(config, "disks", SEED_ID)?.insert("path".to_owned(), json!(plan.seed));
    for (number, drive) in plan.fixtures.iter().enumerate() {
        let disk = named(config, "disks", &args::fixture_id(number))?;
        disk.insert("path".to_owned(), json!(drive.image));
    }
    // What it has until it boots again is in its state.
    named(config, "net", NET_ID)?.insert("mac".to_owned(), json!(plan.mac));
    config.get_mut("serial")?.as_object_mut()?.insert("file".to_owned(), json!(plan.console));
    let memory = config.get_mut("memory")?.as_object_mut()?;
    let file = &plan.restore.as_ref()?.memory;
    let size_bytes = u64::from(plan.memory_mib) << 20;
    memory.insert("size".to_owned(), json!(0));
    memory.insert("shared".to_owned(), json!(false));
    memory.insert(
        "zones".to_owned(),
        json!([{ "id": MEMORY_ZONE, "size": size_bytes, "file": file, "shared": false }]),
    );
    Some(())
}

/// Not every host can what the one it was saved on could.
fn confine(config: &mut Map<String, Value>, plan: &BootPlan, landlock: bool) {
    let rule = |(path, access)| json!({ "path": path, "access": access });
    let rules: Vec<Value> = args::rules(plan).map(rule).collect();
    config.insert("landlock_enable".to_owned(), json!(landlock));
    config.insert("landlock_rules".to_owned(), if landlock { json!(rules) } else { Value::Null });
}

/// What it boots when it is reset.
fn payload(boot: &Boot) -> Value {
    match boot {
        Boot::Kernel { kernel, initrd, cmdline } => {
            json!({ "kernel": kernel, "initramfs": initrd, "cmdline": cmdline })
        }
        Boot::Firmware(files) => json!({ "firmware": files.code }),
        Boot::Nothing => Value::Null,
    }
}

fn named<'a>(
    config: &'a mut Map<String, Value>,
    devices: &str,
    id: &str,
) -> Option<&'a mut Map<String, Value>> {
    let devices = config.get_mut(devices)?.as_array_mut()?;
    devices.iter_mut().find(|device| device["id"] == id)?.as_object_mut()
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not like that of version 52"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Accel, Backend, FirmwareFiles, Identity, Restore};

    fn state(ranges: &Value, mappings: &Value) -> Vec<u8> {
        let memory = json!({
            "memory_ranges": { "data": ranges },
            "guest_ram_mappings": mappings,
            "boot_ram": u64::MAX,
        });
        let leaf = |state: Value| json!({ "snapshot_data": { "state": state.to_string() }, "snapshots": {} });
        let parts = json!({ MEMORY_STATE: leaf(memory), "cpu-manager": leaf(json!({ "tsc": 1 })) });
        json!({ "snapshot_data": null, "snapshots": parts }).to_string().into_bytes()
    }

    fn mapping(gpa: u64, size: u64) -> Value {
        json!({
            "slot": 0, "gpa": gpa, "size": size, "zone_id": "mem0", "virtio_mem": false,
            "file_offset": 0,
        })
    }

    fn config() -> Vec<u8> {
        json!({
            "cpus": { "boot_vcpus": 2 },
            "memory": { "size": 1 << 30, "shared": true, "thp": true, "zones": null },
            "payload": { "kernel": "/old-kernel", "cmdline": "old" },
            "disks": [
                { "id": "seed0", "path": "/old-seed", "readonly": true },
                { "id": "disk0", "path": "/old-disk", "backing_files": true },
            ],
            "net": [{ "id": "net0", "mac": "52:54:00:00:00:09", "fds": [10] }],
            "serial": { "mode": "File", "file": "/old-console" },
            "landlock_enable": true,
            "landlock_rules": [{ "path": "/old-image", "access": "r" }],
        })
        .to_string()
        .into_bytes()
    }

    fn plan() -> BootPlan {
        let identity = Identity::sample();
        let (memory, device) = ("/m/memory".into(), "/m/device".into());
        let restore = Restore { memory, device, identity, mounts: Vec::new() };
        BootPlan {
            restore: Some(Box::new(restore)),
            ..BootPlan::sample(Backend::CloudHypervisor, Accel::Kvm)
        }
    }

    fn memory_of(state: &[u8]) -> Value {
        let state: Value = serde_json::from_slice(state).unwrap();
        let memory = &state["snapshots"][MEMORY_STATE]["snapshot_data"]["state"];
        serde_json::from_str(memory.as_str().unwrap()).unwrap()
    }

    #[test]
    fn memory_lies_in_its_file_without_the_hole_in_the_guests_addresses() {
        let (low, high) = ((0, 3 << 30), (4_u64 << 30, 1 << 30));
        let range = |(gpa, length): (u64, u64)| json!({ "gpa": gpa, "length": length });
        let ranges = json!([range(low), range(high)]);
        let mappings = json!([mapping(high.0, high.1), mapping(low.0, low.1)]);
        let kept = keep(&config(), &state(&ranges, &mappings)).unwrap();
        let [_, state] = come_back(&kept, &plan(), false).unwrap();
        let memory = memory_of(&state);
        assert_eq!(memory["guest_ram_mappings"][0]["file_offset"], 3_u64 << 30);
        assert_eq!(memory["guest_ram_mappings"][1]["file_offset"], 0);
        assert_eq!(memory["memory_ranges"]["data"], json!([]), "nothing is to be loaded");
        assert_eq!(memory["boot_ram"], u64::MAX, "the rest stays as it is");
        let whole: Value = serde_json::from_slice(&state).unwrap();
        assert_eq!(whole["snapshots"]["cpu-manager"]["snapshot_data"]["state"], r#"{"tsc":1}"#);
    }

    #[test]
    fn a_state_of_another_kind_is_refused() {
        let ranges = json!([{ "gpa": 0, "length": 4096 }]);
        let zone = |zone: &str, moved: bool| {
            let mut mapping = mapping(0, 4096);
            mapping["zone_id"] = json!(zone);
            mapping["virtio_mem"] = json!(moved);
            state(&ranges, &json!([mapping]))
        };
        for (what, state) in [
            ("nothing", state(&json!([]), &json!([]))),
            ("memory that is not saved", state(&json!([]), &json!([mapping(0, 4096)]))),
            ("another place", state(&ranges, &json!([mapping(4096, 4096)]))),
            ("another zone", zone("mine", false)),
            ("memory that comes and goes", zone("mem0", true)),
            ("no parts", b"{}".to_vec()),
        ] {
            let refused = keep(&config(), &state).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{what}");
        }
        assert!(keep(&config(), &zone("mem0", false)).is_ok());
    }

    #[test]
    fn it_has_its_own_files_and_the_saved_memory() {
        let ranges = json!([{ "gpa": 0, "length": 4096 }]);
        let kept = keep(&config(), &state(&ranges, &json!([mapping(0, 4096)]))).unwrap();
        let [config, _] = come_back(&kept, &plan(), false).unwrap();
        assert!(!String::from_utf8_lossy(&config).contains("old"), "something is another's");
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["disks"][0]["path"], "/seed.img");
        assert_eq!(config["disks"][1]["path"], "/a,b/disk.qcow2");
        assert_eq!(config["disks"][1]["backing_files"], true);
        assert_eq!(config["net"][0]["mac"], "52:54:00:00:00:01");
        assert_eq!(config["serial"], json!({ "mode": "File", "file": "/console.log" }));
        assert_eq!(config["memory"]["size"], 0);
        assert_eq!(config["memory"]["thp"], true);
        let zone =
            json!([{ "id": "mem0", "size": 1_u64 << 30, "file": "/m/memory", "shared": false }]);
        assert_eq!(config["memory"]["zones"], zone);
        assert_eq!(config["payload"]["cmdline"], "root=/dev/vda1 console=ttyS0");
        assert_eq!(config["landlock_enable"], false);

        let code = "/CLOUDHV.fd".into();
        let boot = Boot::Firmware(FirmwareFiles { code, variables: None, format: "raw".into() });
        let layers = vec!["/a,b/layer-1.qcow2".into()];
        let [config, _] = come_back(&kept, &BootPlan { boot, layers, ..plan() }, true).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["payload"], json!({ "firmware": "/CLOUDHV.fd" }));
        assert_eq!(
            config["landlock_rules"],
            json!([
                { "path": "/a,b/layer-1.qcow2", "access": "r" },
                { "path": "/cache/debian.raw", "access": "r" },
                { "path": "/scratch", "access": "rw" },
            ])
        );
    }

    #[test]
    fn it_has_its_own_fixtures_and_as_many_as_were_saved() {
        let ranges = json!([{ "gpa": 0, "length": 4096 }]);
        let state = state(&ranges, &json!([mapping(0, 4096)]));
        let mut with: Value = serde_json::from_slice(&config()).unwrap();
        let fixture = json!({ "id": "fixture0", "path": "/old-fixture", "readonly": true });
        with["disks"].as_array_mut().unwrap().push(fixture);
        let kept = keep(with.to_string().as_bytes(), &state).unwrap();
        let [with, _] = come_back(&kept, &plan().with_fixture(), false).unwrap();
        let with: Value = serde_json::from_slice(&with).unwrap();
        assert_eq!(with["disks"][2]["path"], "/f,f/fixture-0.img");
        let without = keep(&config(), &state).unwrap();
        let refused = come_back(&without, &plan().with_fixture(), false).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_configuration_without_its_devices_is_refused() {
        let ranges = json!([{ "gpa": 0, "length": 4096 }]);
        let mut without: Value = serde_json::from_slice(&config()).unwrap();
        without["disks"] = json!([]);
        let state = state(&ranges, &json!([mapping(0, 4096)]));
        let kept = keep(without.to_string().as_bytes(), &state).unwrap();
        assert_eq!(
            come_back(&kept, &plan(), false).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
