//! Connections to the guest, and names in it. Every backend's guest has an SSH server, which speaks
//! first.

use fleetbox::{ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::bed::Bed;

const SSH_PORT: u16 = 22;
/// Nobody listens at discard (RFC 863).
const REFUSED_PORT: u16 = 9;

async fn greets(mut stream: impl AsyncRead + Unpin) {
    let mut banner = [0; 4];
    stream.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-");
}

pub(super) async fn a_port_is_reached_through_a_socket(bed: &mut Bed) -> Result<()> {
    greets(bed.vm().connect(SSH_PORT).await?).await;
    Ok(())
}

pub(super) async fn a_port_nobody_listens_at_is_a_connect_error(bed: &mut Bed) -> Result<()> {
    let error = bed.vm().connect(REFUSED_PORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.hint_text().is_some());
    Ok(())
}

pub(super) async fn a_port_is_reached_through_a_loopback_address(bed: &mut Bed) -> Result<()> {
    let address = bed.vm().forward(SSH_PORT).await?;
    assert!(address.ip().is_loopback());
    assert_eq!(bed.vm().forward(SSH_PORT).await?, address, "asked again, it is the same");
    greets(TcpStream::connect(address).await?).await;
    let everywhere = ([0, 0, 0, 0], 0).into();
    let error = bed.vm().forward_at(SSH_PORT, everywhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec);
    Ok(())
}

pub(super) async fn connections_at_once_do_not_mix(bed: &mut Bed) -> Result<()> {
    let address = bed.vm().forward(SSH_PORT).await?;
    let (one, two) = tokio::join!(bed.vm().connect(SSH_PORT), bed.vm().connect(SSH_PORT));
    let three = TcpStream::connect(address).await?;
    let (one, two) = (one?, two?);
    assert_ne!(one.local_addr()?, two.local_addr()?);
    tokio::join!(greets(three), greets(two), greets(one));
    Ok(())
}

/// Asks the name server past /etc/hosts, where a guest finds itself at a loopback address. The
/// answer's last four bytes are the address (RFC 1035).
const LOOK_UP: &str = r#"
import socket, sys
server, name = sys.argv[1:]
labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(10)
asking.sendto(b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1", (server, 53))
print(socket.inet_ntoa(asking.recv(512)[-4:]))
"#;

pub(super) async fn the_guest_resolves_its_own_name(bed: &mut Bed) -> Result<()> {
    let vm = bed.vm();
    assert!(vm.ssh("getent hosts \"$(hostname)\"").await?.contains(vm.name()));
    let server = vm.ssh("ip -4 route show default | cut -d' ' -f3").await?;
    let full = format!("{}.fleetbox.internal", vm.name());
    for name in [vm.name(), &full] {
        let asked = vm.command("python3").args(["-c", LOOK_UP, &server, name]).run().await?;
        assert_eq!(asked.stdout_text(), vm.address().to_string(), "{name} by {server}");
    }
    Ok(())
}
