//! `cp`, both ways, and what it refuses.

use crate::home::Home;

#[test]
fn files_and_directories_go_both_ways() {
    let home = Home::new();
    home.up("web");
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let guest = home.ok(["ssh", "web", "--", "pwd"]).trim().to_owned();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::create_dir(here("d")).unwrap();
    std::fs::write(here("d/f"), &content).unwrap();

    home.ok(["cp", &here("d"), &format!("web:{guest}")]);
    home.ok(["cp", &format!("web:{guest}/d/f"), &here("back")]);
    assert_eq!(std::fs::read(here("back")).unwrap(), content);
    home.ok(["cp", &here("back"), &format!("web:{guest}/renamed")]);
    assert_eq!(home.ok(["ssh", "web", "--", "cmp d/f renamed && echo same"]), "same\n");
    home.ok(["cp", &format!("web:{guest}/d"), dir.path().to_str().unwrap()]);
    assert_eq!(std::fs::read(here("d/f")).unwrap(), content);
}

#[test]
fn what_cannot_be_copied_is_refused_before_any_work() {
    let home = Home::new();
    home.up("web");
    let refused = |from: &str, to: &str, code: i32, word: &str| {
        home.run(["cp", from, to]).refused(code, &[word]);
    };
    refused("web:/etc/hostname", "web:/tmp/x", 2, "VM to VM");
    refused("/etc/hostname", "/tmp/x", 2, "neither side is a VM");
    refused("/etc/hostname", "web:relative", 2, "not absolute");
    refused("web:relative", "/tmp", 2, "not absolute");
    refused("/no/such/file", "web:/tmp/x", 2, "/no/such/file");
    refused("/no/such\u{1b}[2J", "web:/tmp/x", 2, "/no/such");
    refused("/etc/hostname", "nobody:/tmp/x", 1, "no such VM");
    refused("/etc/hostname", "web:/no/such/directory/x", 4, "web: ");
    refused("web:/no/such/file", "/tmp/never", 4, "/no/such/file");
    assert!(!std::path::Path::new("/tmp/never").exists());
}
