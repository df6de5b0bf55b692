#!/usr/bin/env bash
# Runs README's second command on a bare Debian 13, which need not be this host's release:
# tests/debian13.sh [ARGUMENT-OF-tests/run.sh...]
#
# Debian 13 is a folder (mmdebstrap), with a copy of the commit that is checked out; it goes when the
# run ends. SUITE=bookworm takes another release. By itself, and not in CI: it takes as long as a run of
# all tests from nothing, and network.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=SCRIPTDIR/../examples/packages.sh
. "$checkout/examples/packages.sh"
suite=${SUITE:-trixie}

unset TMPDIR
install_packages chroot
work=$(mktemp -d /var/tmp/tplstore-debian13-XXXXXX)
chmod 755 "$work"
root=$work/root
trap 'as_root rm -rf --one-file-system "$work"' EXIT
trap 'exit 143' INT TERM

echo "== Debian $suite in $root"
as_root mmdebstrap --quiet --variant=minbase --include=ca-certificates "$suite" "$root" \
    >"$work/log" 2>&1 </dev/null || { tail -n 30 "$work/log" >&2; exit 1; }
as_root cp /etc/resolv.conf /etc/machine-id "$root/etc"
as_root mkdir "$root/tplstore"
git -C "$checkout" archive HEAD | as_root tar -x -C "$root/tplstore"

echo "== tests/run.sh $*"
# Devices are this host's, /run, where servers keep their sockets, is not. All of it goes with its last
# process.
# shellcheck disable=SC2016
as_root unshare --mount --propagation private sh -ec '
    mount --bind "$0" "$0" && cd "$0"
    mount -t proc proc proc
    mount --rbind /sys sys
    mount --rbind /dev dev
    mount -t tmpfs -o mode=755 tmpfs run
    # Not only chroot: there are no namespaces of users behind that, which units want.
    mkdir -p .old && pivot_root . .old && umount -l .old
    exec chroot . env -i HOME=/root TERM=dumb LC_ALL=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /tplstore/tests/run.sh "$@"' \
    "$root" "$@" </dev/null
