//! smoke
use fleetbox::{Backend, Vm};

#[tokio::test]
async fn smoke() {
    let home = std::path::PathBuf::from(std::env::var_os("FLEETBOX_HOME").unwrap());
    let began = std::time::Instant::now();
    let vm = Vm::builder("web")
        .backend(Backend::Fake)
        .on_progress(|p| eprintln!("{p:?}"))
        .start()
        .await
        .unwrap();
    eprintln!("started {:?}", began.elapsed());
    eprintln!("{:?}", vm.timings().stages());
    eprintln!("{}", vm.ssh("hostname; id; echo $HOME").await.unwrap());
    eprintln!("{:?}", vm.info().await.unwrap());
    eprintln!("{:?}", std::fs::read_to_string(home.join("clusters/web/holder.log")));
    vm.destroy().await.unwrap();
}
