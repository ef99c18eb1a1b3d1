//! An nftables ruleset.

use fleetbox::wait::port;
use fleetbox::{ErrorKind, Vm};

#[fleetbox::test(image = "nft-base")]
async fn only_ssh_comes_in(server: Vm, client: Vm) -> fleetbox::Result<()> {
    server.ssh("sudo systemd-run -q python3 -m http.server 8080").await?;
    server.wait(port(8080)).await?;
    client.ssh("curl -sf -m 5 http://server:8080/").await?;

    server.copy_to("rules/only-ssh.nft", "/tmp/rules").await?;
    server.ssh("sudo nft -f /tmp/rules").await?;
    let error = client.ssh("curl -sf -m 5 http://server:8080/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandFailed);
    Ok(())
}
