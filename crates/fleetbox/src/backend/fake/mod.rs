//! Owns the fake backend: a process that does nothing in the monitor's place, and an SSH server
//! that runs commands on the host in the guest's. It exercises callers, control and holder across
//! processes; it proves nothing about machines.

mod command;
mod fixture;
mod gate;
pub(crate) mod guest;
mod layer;

use std::io::{self, Read, Write};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::gate::{Gated, Paused};
use self::guest::FakeGuest;
use super::{Asked, BootPlan, Ended, Machine, SavePlan, Saved, Together};
use crate::control::message::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::net::Network;

/// Besides SSH the fake guest serves echo (RFC 862), to test connections.
const SSH_PORT: u16 = 22;
const ECHO_PORT: u16 = 7;

struct FakeMachine {
    end: mpsc::Sender<&'static str>,
    ended: Ended,
    reboot: Box<dyn Fn() + Send + Sync>,
    paused: watch::Sender<bool>,
    home: PathBuf,
}

/// "Boots": the guest answers when this returns.
pub(super) async fn boot(
    plan: &BootPlan,
    network: &Network,
    tap_number: u32,
) -> Result<impl Machine + use<>> {
    let failed = |step: &'static str| {
        move |e: io::Error| Error::new(ErrorKind::BackendUnavailable, step).source(e)
    };
    let ssh = listen(plan, network, SSH_PORT).await.map_err(failed("listen as the fake guest"))?;
    let echo = listen(plan, network, ECHO_PORT)
        .await
        .and_then(TcpListener::from_std)
        .map_err(failed("serve echo"))?;
    let datagrams = network
        .bind_udp_at(SocketAddrV4::new(plan.address, ECHO_PORT))
        .await
        .and_then(UdpSocket::from_std)
        .map_err(failed("serve echo"))?;
    let (paused, pause) = watch::channel(false);
    let is_new = !home_of(plan).exists();
    let guest = from_seed(plan, pause.clone()).map_err(failed("read the seed"))?;
    let home = guest.home.clone();
    if let Some(restore) = &plan.restore {
        let saved = restore.memory.with_file_name(SAVED_HOME);
        copy_files(&saved, &home).map_err(failed("restore the fake guest's files"))?;
    } else if is_new {
        layer::read(&plan.layers, &home).map_err(failed("read the fake guest's files"))?;
    }
    write_console(&plan.console).map_err(failed("write the console"))?;
    #[expect(clippy::disallowed_methods, reason = "a backend starts its monitor")]
    let mut command = std::process::Command::new(&plan.program);
    // Reads until the holder's end of the pipe closes, which is never before it dies.
    command.args(["-c", "read -r forever"]).stdin(Stdio::piped()).stdout(Stdio::null());
    // Nothing comes or goes through it, but faults of the network find what they act on. Without it
    // they say so, and all else works.
    let tap = network.tap(crate::net::plan::tap_name(tap_number)).await;
    if let Err(e) = &tap {
        log::warn!("the fake guest has no tap: {}", e.report());
    }
    let child = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed("run the fake monitor"))?;

    let (end, end_asked) = mpsc::channel(1);
    let (ended_sender, ended) = watch::channel(None);
    let serving: Arc<Mutex<JoinHandle<()>>> = Arc::new(Mutex::new(serve(&ssh, &guest)));
    let echoing = tokio::spawn(async move {
        tokio::join!(serve_echo(echo, pause), echo_datagrams(datagrams));
    });
    let (serving_end, console) = (serving.clone(), plan.console.clone());
    tokio::spawn(async move {
        let why = reap(child, end_asked).await;
        lock(&serving_end).abort();
        echoing.abort();
        ended_sender.send_replace(Some(why));
        // The kernel takes its time over it, and nobody shall wait for that.
        tokio::task::spawn_blocking(move || drop(tap));
    });
    let reboot = Box::new(move || {
        let mut serving = lock(&serving);
        serving.abort();
        *serving = serve(&ssh, &guest);
        if let Err(e) = write_console(&console) {
            log::warn!("write the fake console: {e}");
        }
    });
    Ok(FakeMachine { end, ended, reboot, paused, home })
}

fn lock(task: &Mutex<JoinHandle<()>>) -> std::sync::MutexGuard<'_, JoinHandle<()>> {
    task.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(
    plan: &BootPlan,
    network: &Network,
    port: u16,
) -> io::Result<std::net::TcpListener> {
    network.listen_at(SocketAddrV4::new(plan.address, port)).await
}

fn serve(ssh: &std::net::TcpListener, guest: &FakeGuest) -> JoinHandle<()> {
    let (listener, guest) = (ssh.try_clone().and_then(TcpListener::from_std), guest.clone());
    tokio::spawn(async move {
        let served = match listener {
            Ok(listener) => guest::serve(listener, guest).await,
            Err(e) => Err(e),
        };
        if let Err(e) = served {
            log::warn!("the fake guest ended: {e}");
        }
    })
}

async fn serve_echo(listener: TcpListener, paused: Paused) {
    while let Ok((stream, _)) = listener.accept().await {
        let stream = Gated::new(stream, paused.clone());
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(stream);
            // The peer's hang-up is the end of an echo.
            drop(tokio::io::copy(&mut read, &mut write).await);
        });
    }
}

async fn echo_datagrams(socket: UdpSocket) {
    let mut datagram = vec![0; 65_535];
    loop {
        // What cannot be answered is lost, as datagrams are.
        if let Ok((length, peer)) = socket.recv_from(&mut datagram).await {
            drop(socket.send_to(&datagram[..length], peer).await);
        }
    }
}

async fn reap(mut child: Child, mut end_asked: mpsc::Receiver<&'static str>) -> String {
    // `wait` would close it, and with it end the child.
    let _forever = child.stdin.take();
    let mut asked = None;
    loop {
        tokio::select! {
            status = child.wait() => {
                return asked.map_or_else(|| describe(&status), str::to_owned);
            }
            why = end_asked.recv(), if asked.is_none() => {
                asked = Some(why.unwrap_or("it was cut off"));
                // It fails only if the child is gone already, which `wait` tells.
                drop(child.start_kill());
            }
        }
    }
}

fn describe(status: &io::Result<ExitStatus>) -> String {
    match status.as_ref().map(ExitStatus::signal) {
        Ok(Some(signal)) => format!("its monitor was killed by signal {signal}"),
        _ => format!("its monitor ended: {status:?}"),
    }
}

/// What a real guest's console would show of its stages.
fn write_console(console: &Path) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(console)?;
    file.write_all(b"Linux version 0 (fake)\nsystemd[1]: fake\nCloud-init v. 0 fake\n")
}

/// Reads its configuration from the seed, as a real guest does.
fn from_seed(plan: &BootPlan, paused: Paused) -> io::Result<FakeGuest> {
    let volume = fatfs::FileSystem::new(std::fs::File::open(&plan.seed)?, fatfs::FsOptions::new())?;
    let mut user_data = String::new();
    volume.root_dir().open_file("user-data")?.read_to_string(&mut user_data)?;
    let json = user_data.split_once('\n').map_or("", |(_, json)| json);
    let config: Value = serde_json::from_str(json)?;
    let text = |value: &Value| {
        value.as_str().map(str::to_owned).ok_or_else(|| io::Error::other("the seed lacks a value"))
    };
    let user = &config["users"][0];
    let home = home_of(plan);
    std::fs::create_dir_all(&home)?;
    Ok(FakeGuest {
        host_key_private_openssh: text(&config["ssh_keys"]["ed25519_private"])?,
        authorized_key: text(&user["ssh_authorized_keys"][0])?,
        user: text(&user["name"])?,
        hostname: plan.vm.to_string(),
        home,
        mounted: fixture::mount(plan, &config)?,
        paused,
    })
}

fn home_of(plan: &BootPlan) -> PathBuf {
    plan.seed.with_file_name("guest")
}

/// Where a snapshot has the guest's files.
const SAVED_HOME: &str = "guest";

fn save_files(home: &Path, plan: &SavePlan) -> io::Result<()> {
    std::fs::write(&plan.memory, b"")?;
    std::fs::write(&plan.device, b"fake")?;
    copy_files(home, &plan.memory.with_file_name(SAVED_HOME))
}

/// What tests put there: files and directories.
fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

impl FakeMachine {
    async fn end(&self, why: &'static str) -> Result<()> {
        // Full or closed means it is ending already.
        let _ = self.end.try_send(why);
        drop(self.ended.clone().wait_for(Option::is_some).await);
        Ok(())
    }
}

impl Machine for FakeMachine {
    fn power_button(&self) -> Asked<'_, ()> {
        Box::pin(self.end("the guest shut down"))
    }

    fn reset(&self) -> Asked<'_, ()> {
        (self.reboot)();
        self.paused.send_replace(false);
        Box::pin(async { Ok(()) })
    }

    fn pause(&self) -> Asked<'_, ()> {
        self.paused.send_replace(true);
        Box::pin(async { Ok(()) })
    }

    fn resume(&self) -> Asked<'_, ()> {
        self.paused.send_replace(false);
        Box::pin(async { Ok(()) })
    }

    /// Never asked: its backend has no balloon.
    fn set_balloon(&self, _mib: u32) -> Asked<'_, ()> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "balloon: there is no machine")) })
    }

    /// There is no disk that could be bad: what is tested is who asks for it, and how long.
    fn set_disk(&self, _disk: Disk) -> Asked<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// There is no memory: what is tested is who saves and restores, and when.
    fn save<'a>(
        &'a self,
        plan: &'a SavePlan,
        paused: bool,
        _tap: OwnedFd,
        together: &'a Together,
    ) -> Asked<'a, Saved> {
        Box::pin(async move {
            let began = Instant::now();
            self.paused.send_replace(true);
            let all_still = together.wait().await;
            let saved = save_files(&self.home, plan);
            self.paused.send_replace(paused);
            if !all_still {
                return Err(Error::new(ErrorKind::HolderDied, "save together: another cannot be"));
            }
            saved.map_err(|e| Error::io("save to", &plan.memory, e))?;
            Ok(Saved { paused: began.elapsed() })
        })
    }

    fn copy_disk<'a>(&'a self, target: &'a Path) -> Asked<'a, ()> {
        Box::pin(async move {
            layer::write(&self.home, target).map_err(|e| Error::io("write", target, e))
        })
    }

    fn kill(&self) -> Asked<'_, ()> {
        Box::pin(self.end("it was cut off"))
    }

    fn ended(&self) -> Ended {
        self.ended.clone()
    }
}
