//! `run`: a VM for one command.

use crate::home::Home;

#[test]
fn a_command_has_a_vm_of_its_own_and_its_code_is_ours() {
    let home = Home::new();
    let said = home.ok(["run", "--backend", "fake", "--", "echo one; hostname"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0] == "one" && lines[1].starts_with("run-"), "{said}");
    home.run(["run", "-q", "--backend", "fake", "exit 7"]).fails(7, &[]);
    // Options of the command are the command's.
    assert_eq!(home.ok(["run", "-q", "--backend", "fake", "printf", "%s", "-q"]), "-q");
    let said =
        home.ok(["run", "-q", "--backend", "fake", "--", "sh", "-c", "echo \"$0\"; pwd", "a  $b"]);
    assert!(said.starts_with("a  $b\n/"), "{said}");
    assert!(home.rows().is_empty(), "a VM is left");
}

#[test]
fn what_cannot_be_run_is_no_code_of_the_commands() {
    let home = Home::new();
    home.run(["run", "-q", "--backend", "fake", "--memory", "1", "true"]).refused(255, &["range"]);
    home.run(["run", "--durable", "true"]).fails(2, &["--durable"]);
    home.assert_untouched();
}

/// A program of this host in a VM: its arguments, variables, streams and code are kept.
#[cfg(feature = "unstable-fake")]
#[test]
fn a_program_of_the_host_runs_in_a_vm_of_its_own() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let program = home.path().join("say");
    let text = "#!/bin/sh\necho \"$(hostname) $RUST_WORD $OTHER $MINE $*\"\nexit 9\n";
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.to_str().unwrap();
    let mut command = home.command([
        "runner",
        "-q",
        "--backend",
        "fake",
        "--env",
        "MINE",
        program,
        "--exact",
        "a b",
    ]);
    let ran: crate::process::Ran = command
        .env("RUST_WORD", "rust")
        .env("OTHER", "other")
        .env("MINE", "mine")
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 9, "{ran:?}");
    assert!(
        ran.stdout.starts_with("runner-") && ran.stdout.contains(" rust  mine --exact a b"),
        "{ran:?}"
    );
    assert!(home.rows().is_empty(), "a VM is left");
    // What only names tests needs no machine.
    let listed = home.run(["runner", "--backend", "nonsense-is-never-looked-at", program]);
    assert_eq!(listed.code, 2, "{listed:?}");
    let listed = home.run(["runner", "-q", program, "--list"]);
    assert!(listed.code == 9 && !listed.stdout.starts_with("runner-"), "{listed:?}");
    home.run(["runner", "-q", "/no/such/program"]).fails(2, &["no program"]);
}
