//! Owns how results look on standard output: tables for people, one JSON type per command for
//! programs. It must not fetch anything.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use fleetbox::host::Check;
use fleetbox::{Error, Fixture, ImageInfo, ImageState, VmInfo};
use serde::Serialize;

/// A row of `ls -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct VmRow {
    name: String,
    cluster: String,
    state: String,
    address: String,
    host_address: Option<String>,
    image: String,
    cpus: u32,
    memory_mib: u32,
    disk_gib: u32,
    nested_virt: bool,
    durable: bool,
    fixtures: Vec<FixtureRow>,
    created_at: String,
}

#[derive(Debug, Serialize)]
struct FixtureRow {
    host: String,
    guest: String,
    preserve_modes: bool,
}

impl From<&Fixture> for FixtureRow {
    fn from(fixture: &Fixture) -> Self {
        Self {
            host: fixture.host().display().to_string(),
            guest: fixture.guest().to_owned(),
            preserve_modes: fixture.preserves_modes(),
        }
    }
}

impl From<&VmInfo> for VmRow {
    fn from(vm: &VmInfo) -> Self {
        Self {
            name: vm.name.clone(),
            cluster: vm.cluster.clone(),
            state: vm.state.to_string(),
            address: vm.address.to_string(),
            host_address: vm.host_address.map(|address| address.to_string()),
            image: vm.image.clone(),
            cpus: vm.cpus,
            memory_mib: vm.memory_mib,
            disk_gib: vm.disk_gib,
            nested_virt: vm.nested_virt,
            durable: vm.durable,
            fixtures: vm.fixtures.iter().map(FixtureRow::from).collect(),
            created_at: vm.created_at.clone(),
        }
    }
}

/// A row of `doctor -o json`.
#[derive(Debug, Serialize)]
struct CheckRow<'a> {
    name: &'a str,
    verdict: &'a str,
    detail: &'a str,
    fix: Option<&'a str>,
}

/// Prints `value` as JSON, indented, with a final newline.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

pub(crate) fn vms_json(vms: &[VmInfo]) -> io::Result<()> {
    json(&vms.iter().map(VmRow::from).collect::<Vec<_>>())
}

pub(crate) fn vms_table(vms: &[VmInfo]) -> io::Result<()> {
    let mut table = table(&[
        "NAME", "STATE", "ADDRESS", "CLUSTER", "IMAGE", "CPUS", "MEMORY", "DISK", "CREATED",
    ]);
    for vm in vms {
        table.add_row([
            vm.name.clone(),
            vm.state.to_string(),
            match vm.host_address {
                Some(host) => format!("{} ({host})", vm.address),
                None => vm.address.to_string(),
            },
            vm.cluster.clone(),
            vm.image.clone(),
            vm.cpus.to_string(),
            format!("{} MiB", vm.memory_mib),
            format!("{} GiB", vm.disk_gib),
            vm.created_at.clone(),
        ]);
    }
    print_table(&table)
}

pub(crate) fn images_table(images: &[ImageInfo]) -> io::Result<()> {
    let mut table = table(&["IMAGE", "ARCH", "SNAPSHOT", "STATE", "SIZE", "ON DISK"]);
    for image in images {
        let state = match image.state {
            ImageState::Cached => "cached",
            ImageState::Built => "built here",
            ImageState::Imported => "imported",
            ImageState::Derived => "derived",
            ImageState::Available => "to be fetched",
            _ => "unknown",
        };
        table.add_row([
            image.reference.clone(),
            image.arch.to_string(),
            image.snapshot.clone(),
            state.to_owned(),
            image.size_bytes.map(mib).unwrap_or_default(),
            if image.disk_bytes > 0 { mib(image.disk_bytes) } else { String::new() },
        ]);
    }
    print_table(&table)
}

pub(crate) fn checks_table(checks: &[Check]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for check in checks {
        writeln!(out, "{:<12} {:<8} {}", check.name, check.verdict.as_str(), check.detail)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "{:<12} {:<8} {fix}", "", "fix:")?;
        }
    }
    Ok(())
}

pub(crate) fn checks_json(checks: &[Check]) -> io::Result<()> {
    let rows: Vec<CheckRow<'_>> = checks
        .iter()
        .map(|check| CheckRow {
            name: check.name,
            verdict: check.verdict.as_str(),
            detail: &check.detail,
            fix: check.fix.as_deref(),
        })
        .collect();
    json(&rows)
}

/// Reports an error. Paths and what a guest or a server said may hold anything.
pub(crate) fn complain(error: &Error) {
    eprintln!("fleetbox: {}", fleetbox::harmless(error.report().as_bytes()));
}

/// Reports what went wrong in words of our own.
pub(crate) fn complain_text(text: &str) {
    eprintln!("fleetbox: {text}");
}

/// Reports an error of this process's own streams.
pub(crate) fn complain_io(what: &str, error: &io::Error) {
    eprintln!("fleetbox: {what}: {error}");
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// A table of any rows.
pub(crate) fn rows(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut table = table(header);
    for row in rows {
        table.add_row(row);
    }
    print_table(&table)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

fn print_table(table: &Table) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in table.lines() {
        writeln!(out, "{}", line.trim())?;
    }
    Ok(())
}
