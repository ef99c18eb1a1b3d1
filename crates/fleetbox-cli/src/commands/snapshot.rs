//! `snapshot`: save, revert, list, delete.

use std::io::Write;
use std::time::{Duration, SystemTime};

use fleetbox::{Cluster, Error, ErrorKind, Snapshot, Vm};
use serde::Serialize;

use super::printed;
use crate::args::Format;
use crate::args::snapshot::SnapshotCommand;
use crate::{Outcome, render};

pub(super) async fn run(command: SnapshotCommand) -> Outcome {
    match command {
        SnapshotCommand::Save { source, name } => {
            let snapshot = save(&source, &name).await?;
            let mib = snapshot.disk_bytes()? >> 20;
            let members = snapshot.members().join(" ");
            printed(writeln!(std::io::stdout(), "{name} {members} {mib} MiB"))
        }
        SnapshotCommand::Revert { names } => {
            super::each(&names, |vm| async move { vm.revert().await }).await
        }
        SnapshotCommand::Ls(args) => list(args.output),
        SnapshotCommand::Rm { names } => remove(&names),
    }
}

async fn save(source: &str, name: &str) -> Result<Snapshot, Error> {
    match Vm::find(source) {
        Ok(vm) => vm.snapshot(name).await,
        Err(e) if e.kind() == ErrorKind::NotFound => match Cluster::find(source) {
            Ok(cluster) => cluster.snapshot(name).await,
            // The VM's error has the nearest name of both.
            Err(_) => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// One snapshot as it is listed.
#[derive(Serialize)]
struct Row {
    name: String,
    kind: &'static str,
    members: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    image: String,
    disk_bytes: u64,
    created_at: String,
    last_used_at: String,
}

fn list(format: Format) -> Outcome {
    let (mut rows, mut worst) = (Vec::new(), 0);
    for snapshot in fleetbox::snapshots()? {
        match snapshot.and_then(|snapshot| row(&snapshot)) {
            Ok(row) => rows.push(row),
            Err(error) => {
                render::complain(&error);
                worst = crate::code_of(&error);
            }
        }
    }
    printed(match format {
        Format::Json => render::json(&rows),
        Format::Text => table(&rows),
    })?;
    Ok(worst)
}

fn row(snapshot: &Snapshot) -> Result<Row, Error> {
    Ok(Row {
        name: snapshot.name().to_owned(),
        kind: if snapshot.is_golden() { "golden" } else { "snapshot" },
        members: snapshot.members().into_iter().map(str::to_owned).collect(),
        cluster: snapshot.cluster().map(str::to_owned),
        image: snapshot.image().to_owned(),
        disk_bytes: snapshot.disk_bytes()?,
        created_at: snapshot.created_at().to_owned(),
        last_used_at: humantime::format_rfc3339_seconds(snapshot.last_used()).to_string(),
    })
}

fn table(rows: &[Row]) -> std::io::Result<()> {
    render::rows(
        &["NAME", "KIND", "IMAGE", "MIB", "AGE", "USED", "MEMBERS"],
        rows.iter().map(|row| {
            let members = if row.kind == "golden" { "-".to_owned() } else { row.members.join(" ") };
            vec![
                row.name.clone(),
                row.kind.to_owned(),
                row.image.clone(),
                (row.disk_bytes >> 20).to_string(),
                ago(&row.created_at),
                ago(&row.last_used_at),
                members,
            ]
        }),
    )
}

/// How long ago that was, in its largest unit.
fn ago(at: &str) -> String {
    let Ok(at) = humantime::parse_rfc3339(at) else { return "-".to_owned() };
    let ago = SystemTime::now().duration_since(at).unwrap_or(Duration::ZERO).as_secs();
    match ago {
        0..60 => format!("{ago}s"),
        60..3600 => format!("{}m", ago / 60),
        3600..86_400 => format!("{}h", ago / 3600),
        _ => format!("{}d", ago / 86_400),
    }
}

fn remove(names: &[String]) -> Outcome {
    let mut worst = 0;
    for name in names {
        let removed = found(name).and_then(|snapshot| snapshot.remove());
        if let Err(error) = removed {
            render::complain(&error);
            worst = worst.max(crate::code_of(&error));
        }
    }
    Ok(worst)
}

/// By its name, or a golden machine by the beginning of its number.
fn found(name: &str) -> Result<Snapshot, Error> {
    match Snapshot::find(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let golden = fleetbox::snapshots()?
                .into_iter()
                .flatten()
                .find(|s| s.is_golden() && name.len() >= 4 && s.name().starts_with(name));
            golden.ok_or(e)
        }
        found => found,
    }
}
