//! What surrounds the commands: usage, help, versions, completion, manual pages, the host's check.

use crate::home::Home;

const COMMANDS: &[&str] = &[
    "up",
    "down",
    "ls",
    "ssh",
    "exec",
    "cp",
    "ssh-config",
    "logs",
    "port",
    "rm",
    "image",
    "doctor",
    "version",
    "completion",
];

#[test]
fn every_command_explains_itself() {
    let home = Home::new();
    let help = home.ok(["--help"]);
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "no {command} in {help}");
        let own = home.ok([command, "--help"]);
        assert!(own.contains("Usage: fleetbox ") && own.contains("--help"), "{own}");
    }
    for command in ["ls", "pull", "rm", "import", "build"] {
        assert!(home.ok(["image", command, "--help"]).contains("Usage: fleetbox image "));
    }
    assert!(!help.contains("proxy"), "{help}");
}

#[test]
fn wrong_usage_ends_with_2_and_does_nothing() {
    let home = Home::new();
    let wrong: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["up"],
        &["up", "web", "--no-such-flag"],
        &["up", "web", "--cpus", "many"],
        &["up", "web", "--memory", "2K"],
        &["up", "web", "--timeout", "0"],
        &["up", "web", "-n", "0"],
        &["up", "web", "-n", "241"],
        &["up", "web", "--backend", "vmware"],
        &["up", "web", "--arch", "riscv"],
        &["down"],
        &["rm"],
        &["ssh"],
        &["exec", "web"],
        &["cp", "one"],
        &["port", "web", "70000"],
        &["ls", "-q", "-o", "json"],
        &["ls", "-o", "yaml"],
        &["completion", "csh"],
    ];
    for words in wrong {
        let ran = home.run(*words);
        assert_eq!(ran.code, 2, "{words:?}: {ran:?}");
        assert!(!ran.stderr.is_empty(), "{words:?}");
    }
    home.assert_untouched();
}

#[test]
fn versions_are_told_in_words_and_in_json() {
    let home = Home::new();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(home.ok(["--version"]), format!("fleetbox {version}\n"));
    assert_eq!(home.ok(["version"]), format!("fleetbox {version}\n"));
    let json: serde_json::Value =
        serde_json::from_str(&home.ok(["version", "-o", "json"])).unwrap();
    assert_eq!(json["version"], version);
    assert_eq!(json["protocol"], fleetbox::PROTOCOL);
}

#[test]
fn doctor_tells_every_check_in_json_and_leaves_nothing() {
    let home = Home::new();
    let ran = home.run(["doctor", "-o", "json"]);
    assert!(ran.code == 0 || ran.code == 3, "{ran:?}");
    let checks: Vec<serde_json::Value> = serde_json::from_str(&ran.stdout).unwrap();
    let names: Vec<&str> = checks.iter().map(|c| c["name"].as_str().unwrap()).collect();
    for name in ["state", "disk", "namespaces", "tun", "kvm", "qemu"] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    let missing = checks.iter().any(|check| check["verdict"] == "missing");
    assert_eq!(missing, ran.code == 3, "{ran:?}");
    for check in &checks {
        let good = check["verdict"] == "good";
        assert_eq!(check["fix"].is_null(), good, "{check}");
    }
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn each_shell_gets_its_code() {
    let home = Home::new();
    for (shell, word) in [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete ")] {
        let code = home.ok(["completion", shell]);
        assert!(code.contains(word) && code.contains("fleetbox"), "{shell}: {code}");
    }
}

#[cfg(feature = "unstable-fake")]
#[test]
fn the_shell_is_offered_names_that_exist() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    home.up("web");
    // As the code for bash calls it.
    let offered = |words: &[&str]| -> Vec<String> {
        let mut command = home.program(crate::process::FLEETBOX);
        command
            .env("COMPLETE", "bash")
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_COMPLETE_SPACE", "true")
            .arg("--")
            .args(words);
        let ran: crate::process::Ran = command.output().unwrap().into();
        ran.ok().lines().map(|line| line.trim().to_owned()).collect()
    };
    assert_eq!(offered(&["fleetbox", "ssh", "w"]), ["web"]);
    assert_eq!(offered(&["fleetbox", "down", "no"]), ["node-1", "node-2", "node"]);
    assert_eq!(offered(&["fleetbox", "ls", "no"]), ["node-1", "node-2", "node"]);
    assert_eq!(offered(&["fleetbox", "ssh", "no"]), ["node-1", "node-2"], "a cluster has no shell");
    assert_eq!(offered(&["fleetbox", "cp", "web"]), ["web:/"]);
    assert_eq!(offered(&["fleetbox", "ssh", "x"]), Vec::<String>::new());
    assert!(offered(&["fleetbox", "ls", "--"]).contains(&"--quiet".to_owned()));
    assert!(offered(&["fleetbox", "up", "x", "--image", "debian-1"]).len() >= 2);

    // A shell really takes the answer.
    if crate::process::has_tool("bash") {
        let code = home.path().join("completion.bash");
        std::fs::write(&code, home.ok(["completion", "bash"])).unwrap();
        let bin = std::path::Path::new(crate::process::FLEETBOX).parent().unwrap();
        let script = "PATH=$2:$PATH; . \"$1\"; COMP_WORDS=(fleetbox ssh w); COMP_CWORD=2; \
                      COMP_TYPE=9; _clap_complete_fleetbox fleetbox w ssh; \
                      printf '%s\\n' \"${COMPREPLY[@]}\"";
        let mut bash = home.program("bash");
        bash.args(["--norc", "-c", script, "bash"]).arg(&code).arg(bin);
        let ran: crate::process::Ran = bash.output().unwrap().into();
        assert_eq!(ran.ok().trim(), "web");
    }
}

#[test]
fn manual_pages_are_written() {
    let home = Home::new();
    let dir = home.path().join("man");
    home.ok(["man", dir.to_str().unwrap()]);
    for page in ["fleetbox.1", "fleetbox-up.1", "fleetbox-image-pull.1"] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap();
        assert!(text.contains(".TH") && text.contains("fleetbox"), "{page}");
    }
    std::fs::remove_dir_all(dir).unwrap();
    home.run(["man", "/dev/null/x"]).fails(1, &["/dev/null/x"]);
}
