#!/usr/bin/env bash
# A server that is killed under VMs, in the middle of recovery too, has lost nothing that it had
# acknowledged, flushed or not, and the VMs, which come back by themselves, see no error; versions
# that were made meanwhile are as they were, and to which a disk was rolled back that it has. So it
# is on a file system that is full, where requests are refused, and nothing else.
# TPLSTORE_OPERATIONS=1000 kills it a thousand times, and 200 times with io=direct and on a full disk.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd qemu-nbd nbdcopy

# load KILLS MIB PARAMETER...: of four disks of this size.
load() {
    local kills=$1 size=$2 status=0 vm number expected versions=0
    shift 2
    rm -f "$tmp"/*.expected "$tmp"/*.socket
    new_store
    for vm in 1 2 3 4; do
        tplstore volume create "vm$vm" --size "${size}M" >/dev/null
    done
    $python "$(dirname "$0")/death_under_load.py" "$kills" "$tmp" "$TPLSTORE" vm1 vm2 vm3 vm4 \
        -- nbdkit --foreground "$TPLSTORE_PLUGIN" "$store" "$@" \
        2>"$tmp/load.log" >"$tmp/load.out" || status=$?
    cat "$tmp/load.out"
    [ $status = 0 ] || fail "with $*: $(grep -v tplstore "$tmp/load.log" | tail -5)"
    ! grep "as after a power cut" "$tmp/load.log" || fail "a server says that it has lost something"

    rm -f "$tmp/server.socket"
    serve "$@"
    for expected in "$tmp"/*.expected; do
        [ -e "$expected" ] || continue
        number=$(basename "$expected" .expected)
        nbdcopy "$(uri "vm1@$number")" - | cmp - "$expected" || fail "version $number changed"
        versions=$((versions + 1))
    done
    stop_nbdkit
    echo "$*: $versions versions are as they were"
    forget_journals "$store"
    rm -rf "$store"
}

many=${TPLSTORE_OPERATIONS-}
load "${many:-12}" 16 io=buffered
load "$((${many:-30} / 5))" 16 io=direct

(requires root loop mkfs.ext4) || exit 0
truncate -s 32M "$tmp/small.img"
mkfs.ext4 -q -m 0 "$tmp/small.img"
mkdir "$tmp/small"
mount -o loop "$tmp/small.img" "$tmp/small" || exit 0
on_exit umount "$tmp/small"
TPLSTORE_STORE=$tmp/small/store
store=$TPLSTORE_STORE
export MAY_BE_FULL=1
load "$((${many:-30} / 5))" 16 io=buffered
