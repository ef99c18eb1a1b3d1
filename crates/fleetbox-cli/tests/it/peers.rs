//! Who talks to a holder, and what it makes of peers that are strange.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use crate::home::{GONE, Home};
use crate::process::{Ran, has_tool, is_root};

fn dial(home: &Home) -> UnixStream {
    let stream = UnixStream::connect(home.socket("web")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn answer(home: &Home, said: &[u8]) -> String {
    let mut stream = dial(home);
    // A holder that has heard enough hangs up while we still talk.
    let _ = stream.write_all(said);
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn error(home: &Home, said: &[u8]) -> serde_json::Value {
    let text = answer(home, said);
    let reply: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
    reply["error"].clone()
}

#[test]
fn a_peer_of_another_protocol_is_told_so() {
    let home = Home::new();
    home.up("web");
    for said in [
        &b"{\"protocol\":999,\"version\":\"9.9.9\",\"op\":\"status\"}\n"[..],
        // A request that only the other version knows.
        b"{\"protocol\":999,\"version\":\"9.9.9\",\"op\":\"teleport\",\"to\":1}\n",
    ] {
        let error = error(&home, said);
        assert_eq!(error["kind"], "protocol_mismatch", "{error}");
        assert!(error["message"].as_str().unwrap().contains("999"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("fleetbox down"), "{error}");
    }
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
}

#[test]
fn garbage_does_not_hurt_a_holder() {
    let home = Home::new();
    home.up("web");
    for said in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"[[[[[[[[\n",
        b"\xff\xfe\x00\x01\n",
        b"{\"protocol\":1,\"op\":\"kill\",\"vm\":\"../web\"}\n",
        b"{\"protocol\":1,\"op\":\"stop\",\"vm\":\"web\"}\n",
        b"{\"protocol\":1,\"op\":\"connect\",\"vm\":\"web\",\"port\":70000}\n",
    ] {
        assert_eq!(error(&home, said)["kind"], "protocol_mismatch", "{said:?}");
    }
    // A line without an end, one that is never finished, and one that says nothing at all.
    answer(&home, &vec![b'x'; 4 << 20]);
    let mut half = dial(&home);
    half.write_all(b"{\"protocol\":1,").unwrap();
    let silent = dial(&home);
    // What is there may ask for what is not.
    let stranger =
        error(&home, b"{\"protocol\":1,\"op\":\"connect\",\"vm\":\"nobody\",\"port\":1}\n");
    assert_eq!(stranger["kind"], "not_running", "{stranger}");
    let again =
        error(&home, b"{\"protocol\":1,\"op\":\"open\",\"cluster\":\"web\",\"dir\":\"/\"}\n");
    assert!(again["kind"].is_string(), "{again}");

    // Crowds neither.
    let crowd: Vec<UnixStream> = (0..100).map(|_| dial(&home)).collect();
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
    assert_eq!(home.state("web").as_deref(), Some("running"));
    drop((half, silent, crowd));
    home.ok(["down", "web"]);
    home.assert_no_process_within(GONE);
}

#[test]
fn another_user_cannot_reach_a_holder() {
    if !is_root() || !has_tool("python3") {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let home = Home::new();
    home.up("web");
    let connect = "import socket, sys\n\
                   s = socket.socket(socket.AF_UNIX)\n\
                   s.connect(sys.argv[1])\n\
                   try:\n\
                   \x20   s.sendall(b'{\"protocol\":1,\"op\":\"status\"}\\n')\n\
                   \x20   print('heard', s.recv(100))\n\
                   except (BrokenPipeError, ConnectionResetError):\n\
                   \x20   print('heard nothing')\n";
    let ask = |uid: u32| -> Ran {
        let mut python = home.program("python3");
        python.args(["-c", connect]).arg(home.socket("web")).uid(uid).gid(uid);
        python.output().unwrap().into()
    };
    assert!(ask(0).ok().contains("heard b'{"));
    ask(65534).fails(1, &["PermissionError"]);

    // Even if the directories were opened by mistake, the holder hears only its own user.
    let open = |path: &std::path::Path, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for path in [home.path(), &home.path().join("clusters"), &home.cluster("web")] {
        open(path, 0o755);
    }
    open(&home.socket("web"), 0o777);
    let heard = ask(65534).ok();
    assert!(heard == "heard b''\n" || heard == "heard nothing\n", "{heard}");
}

#[test]
fn stale_files_of_a_dead_holder_disturb_nobody() {
    let home = Home::new();
    home.up("web");
    home.ok(["down", "web"]);
    home.assert_no_process_within(GONE);
    let cluster = home.cluster("web");
    drop(std::os::unix::net::UnixListener::bind(home.socket("web")).unwrap());
    for file in ["holder.lock", "cluster.lock"] {
        std::fs::write(cluster.join(file), "12345\n").unwrap();
    }
    for half_made in [".new-abc", ".gone-old"] {
        std::fs::create_dir(cluster.join(half_made)).unwrap();
        std::fs::write(cluster.join(half_made).join("disk.qcow2"), "x").unwrap();
    }
    assert_eq!(home.ok(["ls", "-q"]), "web\n");
    assert_eq!(home.state("web").as_deref(), Some("stopped"));
    home.up("web");
    assert_eq!(home.ok(["ssh", "web", "--", "hostname"]), "web\n");
    assert!(!cluster.join(".new-abc").exists() && !cluster.join(".gone-old").exists());

    // A socket's name taken by a file.
    home.ok(["down", "web"]);
    home.assert_no_process_within(GONE);
    std::fs::write(home.socket("web"), "not a socket").unwrap();
    assert_eq!(home.state("web").as_deref(), Some("stopped"));
    home.up("web");
}

#[test]
fn a_machine_whose_holder_is_of_another_version_is_not_called_stopped() {
    let home = Home::new();
    home.up("web");
    home.ok(["down", "web"]);
    home.assert_no_process_within(GONE);
    let listener = std::os::unix::net::UnixListener::bind(home.socket("web")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4096];
            // Whoever asked may be gone.
            let _ = stream.read(&mut asked);
            let refusal = b"{\"error\":{\"kind\":\"protocol_mismatch\",\"message\":\"speak 1\",\"hint\":\"update\"}}\n";
            let _ = stream.write_all(refusal);
        }
    });
    home.up("other");
    let ran = home.run(["ls"]);
    assert!(ran.stdout.contains("other") && !ran.stdout.contains("stopped"), "{}", ran.stdout);
    ran.fails(3, &["web", "speak 1", "update"]);
    std::fs::remove_file(home.socket("web")).unwrap();
}
