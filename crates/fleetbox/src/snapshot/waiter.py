# Waits in the guest, while it is saved, for who it is to be afterwards. Whoever is restored from the
# snapshot is told by frames of a type of their own, straight from its tap, and becomes that; the
# machine that was saved is told to stay who it is. Then it ends: neither has anything of it left.
# TOKEN and MAC, which are set before this, say who asks and which interface it is; WRITE_THROUGH, whether
# the monitor's files have what was written to a disk only once that was flushed.
import errno, fcntl, glob, json, os, re, signal, socket, struct, subprocess, sys, time

ETHERTYPE = 0x88B5
# Whoever is not told within this long is the machine that was saved, and its holder is gone.
PATIENCE_S = 900
# A guest that is never at rest does without for no longer.
TIDY_WAIT_S = 10
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207  # random(4)
SSHD_SESSIONS = [
    "/usr/lib/openssh/sshd-session", "/usr/libexec/openssh/sshd-session",
    "/usr/lib/ssh/sshd-session", "/usr/libexec/sshd-session",
]
# The distributions' own, which nobody waits for.
UPKEEP = re.compile(
    "(apt-daily|apt-daily-upgrade|dnf-.*|dpkg-db-backup|e2scrub_all|esm-cache|fstrim|fwupd-refresh|"
    "logrotate|man-db|mlocate-updatedb|motd-news|packagekit-.*|plocate-updatedb|snapd\\..*|sysstat-.*|"
    "systemd-tmpfiles-clean|ua-timer|unbound-anchor|update-notifier-.*|xfs_scrub_all)\\.timer$")
CONFIGURATION = [
    "/etc/netplan/*", "/etc/network/interfaces.d/*", "/etc/systemd/network/*",
    "/run/systemd/network/*", "/etc/NetworkManager/system-connections/*",
    "/run/NetworkManager/system-connections/*", "/etc/sysconfig/network-scripts/ifcfg-*",
]


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text, mode=None):
    """Whole or not at all, with the owner and mode it has."""
    new = path + ".fleetbox"
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    if old is not None:
        os.chown(new, old.st_uid, old.st_gid)
        os.chmod(new, old.st_mode & 0o7777)
    if mode is not None:
        os.chmod(new, mode)
    os.rename(new, path)


def interface():
    for path in glob.glob("/sys/class/net/*/address"):
        if read(path).strip().lower() == MAC:
            return path.split("/")[4]
    sys.exit("no interface has the address " + MAC)


def process(name, title=""):
    """The first process of that name that init started, and whose command line has the title."""
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            pid, rest = read(path).split(" (", 1)
            comm, rest = rest.rsplit(") ", 1)
        except (OSError, ValueError):
            continue
        if comm == name and rest.split()[1] == "1" and title in read("/proc/%s/cmdline" % pid):
            return int(pid)
    return None


def quietly(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode(errors="replace")


def write_through():
    disks = glob.glob("/sys/block/*/cache_type")
    # One that is read only cannot be told.
    disks = [path for path in disks if read(path).strip() == "write back"
             and read(os.path.join(os.path.dirname(path), "ro")).strip() == "0"]
    tell(disks, "write through")
    # The first write that is flushed takes all before it along, which sync(2) does not: there is nothing
    # to flush any more as far as the kernel knows.
    path = "/etc/hostname.fleetbox"
    with open(path, "w") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    os.unlink(path)
    return disks


def tell(disks, how):
    for path in disks:
        with open(path, "w") as file:
            file.write(how)


# What is due by the calendar would all start at once when the clock is set.
def stop_timers():
    listed = quietly("systemctl", "list-units", "--type=timer", "--state=active", "--plain",
                     "--no-legend")
    timers = [line.split()[0] for line in listed.splitlines() if line.strip()]
    if timers:
        quietly("systemctl", "stop", *timers)
    return timers


def start_timers(timers):
    if timers:
        quietly("systemctl", "start", "--no-block", *timers)


def entropy(ask):
    seed = bytes.fromhex(ask["entropy"])
    with open("/dev/urandom", "wb", buffering=0) as device:
        fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        try:
            fcntl.ioctl(device, RNDRESEEDCRNG)
        except OSError as error:
            # Before Linux 4.20 adding it is enough.
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise


def started(pid):
    """Where its stack begins: elsewhere after an exec (proc(5))."""
    return read("/proc/%d/stat" % pid).rsplit(") ", 1)[1].split()[25]


def host_key(ask):
    path = "/etc/ssh/ssh_host_ed25519_key"
    if os.path.exists(path) and read(path) == ask["host_key_private"]:
        return
    write(path, ask["host_key_private"], 0o600)
    write(path + ".pub", ask["host_key_public"] + "\n", 0o644)
    # Up to OpenSSH 9.7 every connection reads the keys anew; since then it has them from the daemon.
    if SSHD is None or not any(map(os.path.exists, SSHD_SESSIONS)):
        return
    before = started(SSHD)
    os.kill(SSHD, signal.SIGHUP)
    # Until then a connection might still get to see the old key.
    deadline = time.monotonic() + 10
    while started(SSHD) == before:
        if time.monotonic() > deadline:
            raise OSError("sshd does not start anew")
        time.sleep(0.001)


def hostname(ask):
    write("/etc/hostname", ask["hostname"] + "\n", 0o644)
    with open("/proc/sys/kernel/hostname", "w") as file:
        file.write(ask["hostname"])
    lines = read("/etc/hosts").splitlines(True)
    own = "127.0.1.1 %s %s\n" % (ask["fqdn"], ask["hostname"])
    write("/etc/hosts", "".join(own if l.split()[:1] == ["127.0.1.1"] else l for l in lines))


def machine_id(ask):
    old = read("/etc/machine-id").strip()
    new = ask["machine_id"]
    if new is None or old == new:
        return
    write("/etc/machine-id", new + "\n", 0o444)
    dbus = "/var/lib/dbus/machine-id"
    if os.path.exists(dbus) and not os.path.islink(dbus):
        write(dbus, new + "\n", 0o444)
    for journal in ("/var/log/journal/", "/run/log/journal/"):
        if old and os.path.isdir(journal + old):
            os.rename(journal + old, journal + new)


def link_local(mac):
    """What the kernel makes of a MAC (RFC 4291, appendix A)."""
    part = [int(byte, 16) for byte in mac.split(":")]
    part[0] ^= 2
    return "fe80::%x:%x:%x:%x" % (part[0] << 8 | part[1], part[2] << 8 | 0xFF,
                                  0xFE00 | part[3], part[4] << 8 | part[5])


def has_address6(address):
    try:
        with open("/proc/net/if_inet6") as file:
            words = file.read().split()
    except OSError:
        return False
    return socket.inet_pton(socket.AF_INET6, address).hex() in words


def network(ask):
    mac, address, gateway = ask["mac"], ask["address"], ask["gateway"]
    if (ask["saved_mac"], ask["saved_address"]) == (mac, address):
        return
    length = ask["prefix_length"]
    batch = [
        "address del %s/%d dev %s" % (ask["saved_address"], length, INTERFACE),
        "link set dev %s address %s" % (INTERFACE, mac),
        "address add %s/%d brd + dev %s" % (address, length, INTERFACE),
        "route replace default via %s dev %s proto static" % (gateway, INTERFACE),
    ]
    old_local, new_local = link_local(ask["saved_mac"]), link_local(mac)
    if has_address6(old_local):
        batch[1:1] = ["address del %s/64 dev %s" % (old_local, INTERFACE)]
        batch.append("address add %s/64 dev %s scope link nodad" % (new_local, INTERFACE))
    batch.append("")
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(batch).encode(),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip())
    old = re.escape(ask["saved_address"])
    # Whatever else names a MAC (netplan, NetworkManager) means the permanent one, which stays what it
    # was until the next boot, when cloud-init writes these files anew.
    match = re.compile(r"^(\s*MACAddress\s*=\s*)%s\b" % re.escape(ask["saved_mac"]), re.I | re.M)
    for path in [path for pattern in CONFIGURATION for path in glob.glob(pattern)]:
        text = read(path)
        new = match.sub(lambda found: found.group(1) + mac, text)
        new = re.sub(r"(?<![\d.])%s(?![\d.])" % old, address, new)
        if new != text:
            write(path, new)


# Their other ends are not there any more (sock_diag(7)).
def connections(ask):
    fellows = set(ask["fellows"])
    netlink = sock_diag()
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in sockets(netlink, family):
            there = socket.inet_ntop(family, entry[24:40] if family == socket.AF_INET6 else entry[24:28])
            there = there[7:] if there.startswith("::ffff:") else there
            if there.startswith("127.") or there in ("::1", "0.0.0.0", "::") or there in fellows:
                continue
            destroy(netlink, family, entry)


def sock_diag():
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)


def sockets(netlink, family):
    """Every TCP socket but those that listen, as struct inet_diag_msg."""
    states = 0xFFF & ~(1 << 10) & ~(1 << 7)
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states) + bytes(48)
    netlink.send(struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request)
    found = []
    while True:
        data = netlink.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == 3:
                return found
            if kind == 2:
                raise OSError("sockets cannot be listed")
            found.append(data[16:length])
            data = data[(length + 3) & ~3:]


def destroy(netlink, family, entry):
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFF) + entry[4:52]
    netlink.send(struct.pack("=IHHII", 16 + len(request), 21, 5, 2, 0) + request)
    code = -struct.unpack_from("=i", netlink.recv(65536), 16)[0]
    if code not in (0, errno.ENOENT):
        raise OSError(code, os.strerror(code))


def become(ask):
    failed = {}
    for step in (entropy, host_key, hostname, machine_id, network, connections):
        try:
            step(ask)
        except Exception as error:
            failed[step.__name__] = str(error)
    return {"failed": failed}


def set_clock(ask):
    now_ns = ask["now_ns"]
    if hasattr(time, "clock_settime_ns"):
        time.clock_settime_ns(time.CLOCK_REALTIME, now_ns)
    else:
        time.clock_settime(time.CLOCK_REALTIME, now_ns / 1e9)
    return {"now_ns": int(time.time() * 1e9)}


def processors():
    """How long they did anything, and were there, in ticks (proc(5))."""
    ticks = [int(word) for word in read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def rest():
    """Until whoever came first was served: emulated, what follows costs as much as a login, and many
    machines that are restored at once have few processors to do both."""
    deadline = time.monotonic() + TIDY_WAIT_S
    count = os.sysconf("SC_NPROCESSORS_ONLN")
    while time.monotonic() < deadline:
        busy, there = processors()
        time.sleep(0.25)
        now_busy, now_there = processors()
        if (now_busy - busy) * count <= (now_there - there) * 0.2:
            return


def listens(path):
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(path) == 0


def settle(path):
    """Until whoever asked before us has an answer (systemd's own `io.systemd.Journal.Synchronize`)."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(2)
        try:
            asking.connect(path)
            asking.sendall(b'{"method":"io.systemd.Journal.Synchronize"}\0')
            asking.recv(4096)
        except OSError:
            pass


def journal_anew():
    """It knows the old machine-id; systemd starts it again, and nothing that is logged is lost. Whoever is
    logged in stands still meanwhile, as for that moment nobody answers who is asked by journalctl(1)."""
    stops, answers = "/sys/fs/cgroup/user.slice/cgroup.freeze", "/run/systemd/journal/io.systemd.journal"
    if not (os.path.exists(stops) and os.path.exists(answers)):
        os.kill(JOURNALD, signal.SIGTERM)
        return
    # They wait for us now.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    tell([stops], "1")
    try:
        settle(answers)
        os.kill(JOURNALD, signal.SIGTERM)
        deadline = time.monotonic() + 3
        while os.path.exists("/proc/%d" % JOURNALD) or not listens(answers):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
    finally:
        tell([stops], "0")


def tidy_up():
    """What the machine can do without for a moment."""
    if JOURNALD is not None:
        journal_anew()
    saved = "/var/lib/systemd/random-seed"
    if os.path.exists(saved):
        with open(saved, "wb") as file:
            file.write(os.urandom(512))
    if os.path.isdir("/run/systemd/netif"):
        quietly("networkctl", "reload")


def mount(ask):
    try:
        mount_fixture(ask["serial"], os.fsdecode(bytes.fromhex(ask["path"])))
    except Exception as error:
        return {"failed": str(error)}
    return {"failed": None}


def keep_session():
    """Stays in the login's group until the waiter ends. Ten seconds after a user's last session systemd
    ends that user's manager, and each restored machine's first login would wait for a new one."""
    ends, held_open = os.pipe()
    if os.fork() == 0:
        os.close(held_open)
        os.read(ends, 1)
        os._exit(0)
    os.close(ends)


def do(what, ask):
    known = {"become": become, "clock": set_clock, "mount": mount}
    return known[what](ask) if what in known else {}


def serve(line, timers, disks):
    last, answer, what = None, None, None
    while what not in ("stay", "end"):
        try:
            frame = line.recv(65536)
        except socket.timeout:
            break
        try:
            said = json.loads(frame.rstrip(b"\0").decode())
            token, number, ask = said["token"], said["number"], said["ask"]
        except (ValueError, KeyError, TypeError):
            continue
        if token != TOKEN:
            continue
        what = ask["what"]
        tell(disks, "write back")
        if number != last:
            answer = do(what, ask)
            last = number
        said = {"token": TOKEN, "answers": number, "answer": answer}
        line.sendto(json.dumps(said).encode(), (INTERFACE, ETHERTYPE, 0, 0, b"\xff" * 6))
    tell(disks, "write back")
    try:
        # Whoever waits for the guest comes first.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        pass
    for stamp in glob.glob("/var/lib/systemd/timers/stamp-*"):
        os.utime(stamp)
    start_timers([timer for timer in timers if not UPKEEP.match(timer)])
    if what == "end":
        rest()
        tidy_up()
    start_timers([timer for timer in timers if UPKEEP.match(timer)])


INTERFACE = interface()
JOURNALD = process("systemd-journal")
SSHD = process("sshd", "[listener]")
line = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE))
line.bind((INTERFACE, ETHERTYPE))
line.settimeout(PATIENCE_S)
timers = stop_timers()
disks = write_through() if WRITE_THROUGH else []
try:
    # Loads what the kernel needs for it.
    for family in (socket.AF_INET, socket.AF_INET6):
        sockets(sock_diag(), family)
except OSError:
    pass
if os.fork():
    print("waits", flush=True)
    os._exit(0)
os.setsid()
nothing = os.open("/dev/null", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(nothing, number)
keep_session()
try:
    # Out of the login's group, where some systems end whoever is left.
    write_to = os.open("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY)
    os.write(write_to, b"0")
    os.close(write_to)
except OSError:
    pass
serve(line, timers, disks)
