//! `run`: a VM for one command.

use crate::home::Home;

#[test]
fn a_command_has_a_vm_of_its_own_and_its_code_is_ours() {
    let home = Home::new();
    let said = home.ok(["run", "--backend", "fake", "--", "echo", "one;", "hostname"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0] == "one" && lines[1].starts_with("run-"), "{said}");
    home.run(["run", "-q", "--backend", "fake", "exit 7"]).fails(7, &[]);
    // Options of the command are the command's.
    assert_eq!(home.ok(["run", "-q", "--backend", "fake", "printf", "%s", "-q"]), "-q");
    assert!(home.rows().is_empty(), "a VM is left");
}

#[test]
fn what_cannot_be_run_is_no_code_of_the_commands() {
    let home = Home::new();
    home.run(["run", "-q", "--backend", "fake", "--memory", "1", "true"]).refused(255, &["range"]);
    home.run(["run", "--durable", "true"]).fails(2, &["--durable"]);
    home.assert_untouched();
}
