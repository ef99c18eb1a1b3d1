//! Owns a guest to test against, on loopback, and what a test needs to know of it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::backend::fake::guest::{FakeGuest, serve};
use crate::ssh::command::Command;
use crate::ssh::keys::KeyPair;
use crate::ssh::{Dial, Session, Target};
use crate::{Error, ErrorKind};

const SSHD: &str = "/usr/sbin/sshd";

pub(super) struct Lab {
    pub session: Session,
    pub target: Target,
    /// A directory guest and test share.
    pub dir: tempfile::TempDir,
    dialled: Arc<Mutex<Vec<OwnedFd>>>,
    server: JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Lab {
    pub(super) async fn fake() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (host, client) = keys();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let guest = FakeGuest {
            host_key_private_openssh: host.private_openssh(),
            authorized_key: client.public_openssh(),
            user: "fleetbox".to_owned(),
            hostname: "web".to_owned(),
            mounted: Vec::new(),
            home: dir.path().to_owned(),
            paused: tokio::sync::watch::channel(false).1,
        };
        let server = tokio::spawn(async move { serve(listener, guest).await.unwrap() });
        Self::new(dir, address, "fleetbox", &host, client, server)
    }

    /// None, with the reason said, where the host has no sshd that can be used.
    pub(super) async fn openssh() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (host, client) = keys();
        let config = sshd_config(dir.path(), &host, &client);
        let check = std::process::Command::new(SSHD).arg("-t").arg("-f").arg(&config).output();
        match check {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                return skip(&String::from_utf8_lossy(&output.stderr));
            }
            Err(e) => return skip(&format!("{SSHD}: {e}")),
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(inetd(listener, config));
        let user = std::process::Command::new("id").arg("-un").output().unwrap();
        let user = String::from_utf8(user.stdout).unwrap();
        Some(Self::new(dir, address, user.trim(), &host, client, server))
    }

    fn new(
        dir: tempfile::TempDir,
        address: std::net::SocketAddr,
        user: &str,
        host: &KeyPair,
        client: KeyPair,
        server: JoinHandle<()>,
    ) -> Self {
        let dialled = Arc::new(Mutex::new(Vec::new()));
        let sockets = dialled.clone();
        let dial: Dial = Arc::new(move |port| {
            assert_eq!(port, 22);
            let sockets = sockets.clone();
            Box::pin(async move {
                let stream = TcpStream::connect(address).await.map_err(|e| {
                    Error::new(ErrorKind::Connect, "reach port 22 of the guest").source(e)
                })?;
                let copy = rustix::io::fcntl_dupfd_cloexec(&stream, 0).unwrap();
                sockets.lock().unwrap().push(copy);
                Ok(stream)
            })
        });
        let target = Target {
            vm: "web".to_owned(),
            user: user.to_owned(),
            client_key: Arc::new(client),
            host_key: host.public_openssh(),
            dial,
        };
        Self { session: Session::new(target.clone()), target, dir, dialled, server }
    }

    pub(super) fn command(&self, program: &str) -> Command {
        Command::new(self.session.clone(), program)
    }

    pub(super) fn shell(&self, text: &str) -> Command {
        Command::shell(self.session.clone(), text)
    }

    pub(super) async fn ssh(&self, text: &str) -> String {
        crate::ssh::ssh(&self.session, text).await.unwrap()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text, for the guest.
    pub(super) fn at(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(super) fn connections(&self) -> usize {
        self.dialled.lock().unwrap().len()
    }

    /// Breaks every connection made so far.
    pub(super) fn cut(&self) {
        for socket in self.dialled.lock().unwrap().iter() {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
    }

    /// Whether the process with the id in this file is there.
    pub(super) fn lives(&self, pid_file: &str) -> bool {
        let pid = std::fs::read_to_string(self.path(pid_file)).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with('Z')))
    }

    /// Waits until the file is there and has a line.
    pub(super) async fn written(&self, name: &str) -> String {
        self.until(|| std::fs::read_to_string(self.path(name)).ok().filter(|t| t.ends_with('\n')))
            .await
    }

    pub(super) async fn gone(&self, pid_file: &str) {
        self.until(|| (!self.lives(pid_file)).then_some(())).await;
    }

    /// Polls what only the operating system can tell.
    pub(super) async fn until<T>(&self, probe: impl Fn() -> Option<T>) -> T {
        let poll = async {
            let mut tick = tokio::time::interval(std::time::Duration::from_millis(10));
            loop {
                tick.tick().await;
                if let Some(value) = probe() {
                    return value;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), poll).await.unwrap()
    }
}

pub(super) fn keys() -> (KeyPair, KeyPair) {
    (KeyPair::generate("host").unwrap(), KeyPair::generate("client").unwrap())
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn skip(reason: &str) -> Option<Lab> {
    eprintln!("skipped, no usable sshd: {}", reason.trim());
    None
}

fn sshd_config(dir: &Path, host: &KeyPair, client: &KeyPair) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let host_key = file("sshd_key", host.private_openssh());
    let authorized = file("sshd_authorized", client.public_openssh() + "\n");
    // The level makes bash spare the start-up file of whoever runs the tests.
    let text = format!(
        "SetEnv SHLVL=2\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPidFile none\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n",
        host_key.display(),
        authorized.display()
    );
    file("sshd_config", text)
}

/// Runs one sshd per connection, as inetd would.
async fn inetd(listener: TcpListener, config: PathBuf) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let output = OwnedFd::from(stream.try_clone().unwrap());
        let mut child = tokio::process::Command::new(SSHD)
            .arg("-i")
            .arg("-f")
            .arg(&config)
            .stdin(Stdio::from(OwnedFd::from(stream)))
            .stdout(Stdio::from(output))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Ends with its connection.
        tokio::spawn(async move { child.wait().await });
    }
}
