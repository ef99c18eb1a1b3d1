# Mounts fixtures in the guest, each on a drive of its own that is known by its serial number, and notes
# them for later boots. The seed has cloud-init run this at each boot, with drives and paths in turn; what
# waits in a saved guest has it as a part.
import fcntl, glob, os, subprocess, sys

BLKFLSBUF = 0x1261  # mount.h
OPTIONS = "ro,nosuid,nodev"


def drive_of(serial):
    for path in glob.glob("/sys/block/*/serial"):
        with open(path) as file:
            if file.read().strip() == serial:
                return "/dev/" + path.split("/")[3]
    raise OSError("there is no drive " + serial)


def note_in_fstab(label, path):
    def word(text):
        # Whatever could end a word, or begin a comment, in octal (fstab(5)).
        odd = b"\\\"'#" + bytes(range(33)) + b"\x7f"
        return b"".join(b"\\%03o" % byte if byte in odd else bytes([byte]) for byte in text)

    device = b"LABEL=" + os.fsencode(label)
    fields = [device, word(os.fsencode(path)), b"ext4", os.fsencode(OPTIONS), b"0", b"0"]
    with open("/etc/fstab", "ab+") as file:
        file.seek(0)
        text = file.read()
        if not any(line.split()[:1] == [device] for line in text.splitlines()):
            end = b"" if text.endswith(b"\n") or not text else b"\n"
            file.write(end + b"\t".join(fields) + b"\n")


def mount_fixture(serial, path):
    # A later boot mounts nothing on a path with links in it (systemd.mount(5)).
    path = os.path.realpath(path)
    os.makedirs(path, exist_ok=True)
    note_in_fstab(serial, path)
    if os.path.ismount(path):
        return
    drive = drive_of(serial)
    device = os.open(drive, os.O_RDONLY)
    # What the kernel read of it may be of another time.
    fcntl.ioctl(device, BLKFLSBUF)
    os.close(device)
    done = subprocess.run(["mount", "-t", "ext4", "-o", OPTIONS, drive, path],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.decode(errors="replace").strip())


for serial, path in zip(sys.argv[1::2], sys.argv[2::2]):
    mount_fixture(serial, path)
