# shellcheck shell=bash disable=SC2034
# The Debian packages that tplstore needs, by purpose: the one place that lists them.
#
# To be sourced. `install_packages build run` installs what is missing of these groups; with all
# of it there it does not touch the network. Works as root, or with sudo.

packages_build="g++ ccache cmake ninja-build pkg-config nbdkit nbdkit-plugin-dev libnbd-dev
  liburing-dev libxxhash-dev libssl-dev libzstd-dev libfmt-dev nlohmann-json3-dev libcli11-dev
  prometheus-cpp-dev libsmartcols-dev doctest-dev"
packages_run="nbdkit qemu-utils libnbd-bin"
packages_guest="mmdebstrap debian-archive-keyring e2fsprogs busybox-static cpio kmod
  qemu-system-x86 qemu-block-extra"
packages_chroot="mmdebstrap debian-archive-keyring"
packages_package="$packages_chroot dpkg-dev debhelper lintian git"
packages_test="python3 python3-libnbd fio jq fuse3 e2fsprogs xfsprogs mount util-linux procps zstd
  lld libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# install_packages GROUP...
install_packages() {
    local group list package missing=()
    for group; do
        list=packages_$group
        for package in ${!list}; do
            [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
                missing+=("$package")
        done
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    echo "Installing: ${missing[*]}"
    local log
    log=$(mktemp /tmp/tplstore-apt-XXXXXX)
    # A source that cannot be reached does not matter as long as the packages can be had.
    if ! { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y update || true
           as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
               install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        echo "Installing packages failed; the whole log is in $log" >&2
        return 1
    fi
    rm -f "$log"
}
