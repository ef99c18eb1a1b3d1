//! The OpenSSH client with the configuration `ssh-config` prints.

use crate::home::Home;
use crate::process::{has_tool, run};

fn configured(home: &Home) -> std::path::PathBuf {
    let file = home.path().join("ssh_config");
    std::fs::write(&file, home.ok(["ssh-config"])).unwrap();
    file
}

#[test]
fn a_real_client_gets_in_by_the_printed_configuration() {
    let home = Home::new();
    home.ok(["up", "node", "-n", "2", "--backend", "fake"]);
    let config = home.ok(["ssh-config", "node"]);
    for line in ["Host node-1", "Host node-2", "StrictHostKeyChecking yes", "ProxyUseFdpass yes"] {
        assert!(config.contains(line), "no {line} in {config}");
    }
    assert_eq!(config.matches("Host node").count(), 2, "{config}");
    if !has_tool("ssh") {
        return;
    }
    let file = configured(&home);
    let mut ssh = home.program("ssh");
    ssh.arg("-F").arg(&file).args(["-o", "BatchMode=yes", "node-2", "cat; hostname; exit 5"]);
    let ran = run(&mut ssh, b"input\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (5, "input\nnode-2\n"), "{}", ran.stderr);
}

#[test]
fn another_host_key_is_refused_by_every_client() {
    let home = Home::new();
    home.up("web");
    home.up("other");
    let file = configured(&home);
    let known_hosts = |name: &str| home.cluster(name).join(name).join("known_hosts");
    let foreign = std::fs::read_to_string(known_hosts("other")).unwrap();
    std::fs::write(known_hosts("web"), foreign.replace("other", "web")).unwrap();
    if has_tool("ssh") {
        let mut ssh = home.program("ssh");
        ssh.arg("-F").arg(&file).args(["-o", "BatchMode=yes", "web", "echo got in"]);
        let ran = run(&mut ssh, b"");
        assert_eq!((ran.code, ran.stdout.as_str()), (255, ""), "{ran:?}");
        assert!(ran.stderr.contains("Host key verification failed"), "{ran:?}");
    }

    let record = home.cluster("web").join("web/config.json");
    let kept = std::fs::read_to_string(&record).unwrap();
    let key_of = |text: &str| {
        let record: serde_json::Value = serde_json::from_str(text).unwrap();
        record["host_key"].as_str().unwrap().to_owned()
    };
    let other = std::fs::read_to_string(home.cluster("other").join("other/config.json")).unwrap();
    std::fs::write(&record, kept.replace(&key_of(&kept), &key_of(&other))).unwrap();
    home.run(["ssh", "web", "--", "echo got in"]).refused(255, &["host key"]);
    std::fs::write(&record, kept).unwrap();
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
}

#[test]
fn the_proxy_says_what_it_is_for_when_nobody_can_take_a_connection() {
    let home = Home::new();
    home.up("web");
    home.run(["proxy", "web", "22"]).fails(1, &["ProxyUseFdpass"]);
    home.run(["proxy", "none", "22"]).refused(1, &["no such VM"]);
}
