# shellcheck shell=bash
# Sourced by ./quickstart and ./check: what both need of a host. Nothing is installed or changed
# without a question, unless --yes is given or CI is set.

assume_yes=
for word in "$@"; do [ "$word" = --yes ] && assume_yes=1; done
[ -n "${CI:-}" ] && assume_yes=1

say() { printf '%s\n' "$*" >&2; }

# agreed QUESTION: whether the user, if there is one, says yes.
agreed() {
    [ -n "$assume_yes" ] && return 0
    [ -t 0 ] || return 1
    read -r -p "$1 [Y/n] " answer
    case $answer in '' | y | Y | yes) return 0 ;; *) return 1 ;; esac
}

# as_root COMMAND...: runs it as root, by sudo if we are not.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        if [ -t 0 ]; then sudo "$@"; else sudo -n "$@"; fi
    else
        return 1
    fi
}

# The Debian packages whose commands are missing, and those in $more_packages whose files are.
missing_packages() {
    local pairs="cc:gcc mmdebstrap:mmdebstrap mke2fs:e2fsprogs newuidmap:uidmap ssh:openssh-client qemu-img:qemu-utils"
    case $(uname -m) in
    x86_64) pairs="$pairs qemu-system-x86_64:qemu-system-x86" ;;
    aarch64) pairs="$pairs qemu-system-aarch64:qemu-system-arm" ;;
    esac
    local pair
    for pair in $pairs; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || printf '%s ' "${pair#*:}"
    done
    for pair in ${more_packages:-}; do
        [ -e "${pair%%:*}" ] || printf '%s ' "${pair#*:}"
    done
}

# Twice, as apt removes an installed package that a new one conflicts with, such as a qemu-utils of
# another version.
install_packages() {
    install_missing
    install_missing
}

install_missing() {
    local packages
    packages=$(missing_packages)
    [ -z "$packages" ] && return
    if ! command -v apt-get >/dev/null; then
        say "missing: $packages"
        say "hint: install the packages that bring these on your distribution, then run this again"
        exit 3
    fi
    if ! agreed "install with apt: $packages?"; then
        say "missing: $packages"
        say "hint: sudo apt-get install --no-install-recommends $packages"
        exit 3
    fi
    say "installing $packages"
    # shellcheck disable=SC2086
    if ! { as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >&2; }; then
        say "hint: as root: apt-get install --no-install-recommends $packages"
        exit 3
    fi
}

# Distributions ship /dev/net/tun for everybody to open; where no udev runs it is root's alone.
open_tun() {
    if [ ! -e /dev/net/tun ]; then
        as_root modprobe tun 2>/dev/null || true
        if [ ! -e /dev/net/tun ]; then
            say 'there is no /dev/net/tun'
            say 'hint: load the module tun; in a container start it with --device /dev/net/tun'
            exit 3
        fi
    fi
    [ "$(stat -c %a /dev/net/tun)" = 666 ] && return
    if [ "$(id -u)" = 0 ] || [ ! -w /dev/net/tun ]; then
        if agreed 'let every user open /dev/net/tun, as distributions do (chmod 666)?'; then
            say 'chmod 666 /dev/net/tun, the mode distributions ship it with'
            as_root chmod 666 /dev/net/tun && return
        fi
    fi
    [ -w /dev/net/tun ] && return
    say '/dev/net/tun cannot be opened'
    say 'hint: as root: chmod 666 /dev/net/tun'
    exit 3
}

prepare_host() {
    install_packages
    open_tun
    if ! command -v cargo >/dev/null; then
        say 'there is no cargo'
        say 'hint: install Rust from https://rustup.rs, then run this again'
        exit 3
    fi
}

# Where cargo builds, which is the user's to say.
target_dir() {
    cargo metadata --locked --no-deps --format-version 1 |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# has_image FLEETBOX ALIAS: whether the image is here.
has_image() {
    "$1" image ls -o json | tr -d ' \n' |
        grep -Eq "\"reference\":\"$2\"[^}]*\"state\":\"(cached|built|imported)\""
}

# get_image FLEETBOX ALIAS: the image, fetched, or built where it cannot be fetched.
get_image() {
    has_image "$1" "$2" && return
    if ! "$1" image pull "$2"; then
        say "$2 cannot be fetched; building it from Debian's packages instead"
        "$1" image build "$2"
    fi
}
