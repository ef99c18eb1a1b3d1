//! `cp`: one file or directory, to or from a VM.

use fleetbox::Vm;

use crate::Outcome;
use crate::args::Cp;

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Host(&'a str),
    Guest { vm: &'a str, path: &'a str },
}

pub(super) async fn run(args: Cp) -> Outcome {
    match (side(&args.from), side(&args.to)) {
        (Side::Host(host), Side::Guest { vm, path }) => {
            Vm::find(vm)?.copy_to(host, path).await?;
            Ok(0)
        }
        (Side::Guest { vm, path }, Side::Host(host)) => {
            Vm::find(vm)?.copy_from(path, host).await?;
            Ok(0)
        }
        (Side::Guest { .. }, Side::Guest { .. }) => refuse(
            "copy from VM to VM is not possible",
            "copy to this host first, then to the other VM",
        ),
        (Side::Host(_), Side::Host(_)) => {
            refuse("neither side is a VM", "write one side as NAME:/PATH, such as web:/etc/hosts")
        }
    }
}

fn refuse(what: &str, hint: &str) -> Outcome {
    eprintln!("fleetbox: {what}\nhint: {hint}");
    Ok(2)
}

/// As scp reads it: a colon before any slash makes a side a VM's.
fn side(text: &str) -> Side<'_> {
    match text.split_once(':') {
        Some((vm, path)) if !vm.contains('/') && !vm.is_empty() => Side::Guest { vm, path },
        _ => Side::Host(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_names_a_vm() {
        assert_eq!(side("web:/etc"), Side::Guest { vm: "web", path: "/etc" });
        assert_eq!(side("web:rel"), Side::Guest { vm: "web", path: "rel" });
        for host in ["./a:b", "/x", "a", ":x", "dir/a:b"] {
            assert_eq!(side(host), Side::Host(host));
        }
    }
}
