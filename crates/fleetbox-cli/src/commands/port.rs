//! `port`: a loopback address for a port of a VM. The holder relays, so it lasts as long as the VM.

use std::io::Write;

use fleetbox::Vm;

use super::printed;
use crate::Outcome;
use crate::args::Port;

pub(super) async fn run(args: Port) -> Outcome {
    let vm = Vm::find(&args.name)?;
    let address = match args.publish {
        Some(listen) => vm.publish(args.port, listen).await?,
        None => vm.forward_at(args.port, args.listen).await?,
    };
    printed(writeln!(std::io::stdout(), "{address}"))
}
