#!/usr/bin/env bash
# With io=direct a write may land after its server was killed. As long as it is on its way nobody
# gets the volume: the device under the store is stopped while the server writes and dies.
. "$(dirname "$0")/../functions.sh"
requires loop fuse nbdfuse mkfs.ext4 python-libnbd
$python -c 'import fcntl; fcntl.F_OFD_GETLK' 2>/dev/null || skip "$python knows no F_OFD_GETLK"

# A device that can be stopped: a loop device on a file that nbdfuse has from an nbdkit of ours.
nbdkit --foreground --unix "$tmp/disk.socket" memory 300M </dev/null >"$tmp/disk.log" 2>&1 &
disk_pid=$!
detach() {
    kill -CONT "$disk_pid"
    # A server that was killed uses it until its writes have ended.
    ! mountpoint -q "$tmp/mounted" || await 30 umount "$tmp/mounted"
    [ -z "${device-}" ] || losetup --detach "$device"
    ! mountpoint -q "$tmp/disk" || await 30 fusermount3 -u "$tmp/disk"
    kill "$disk_pid"
}
on_exit detach
await 30 test -S "$tmp/disk.socket" || fail "the disk's server does not start"
mkdir "$tmp/mounted"
touch "$tmp/disk"
nbdfuse "$tmp/disk" "nbd+unix:///?socket=$tmp/disk.socket" >>"$tmp/disk.log" 2>&1 &
has_disk() {
    [ "$(stat -c %s "$tmp/disk")" = $((300 << 20)) ]
}
await 30 has_disk || skip "nbdfuse mounts nothing here: $(cat "$tmp/disk.log")"
# Past the page cache, or a stopped disk would be noticed by nobody.
device=$(losetup --find --show --direct-io=on "$tmp/disk") || skip "no loop device with direct I/O"
mkfs.ext4 -q "$device"
mount "$device" "$tmp/mounted"

store=$tmp/mounted/store
export TPLSTORE_STORE=$store
new_store
tplstore volume create vm1 --size 8M
serve io=direct
lock=$(echo "$store"/volumes/*/lock)

# Two ends of blocks and what is between: three pieces, so they go through a ring. The client waits
# for an answer that never comes.
$python - "$(uri vm1)" "$tmp/go" >>"$tmp/client.log" 2>&1 <<'END' &
import nbd, os, sys, time
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"before" * 4096, 1 << 20)
client.flush()
open(sys.argv[2] + ".ready", "w")
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
client.pwrite(b"late" * 4096, 2048)
END
client_pid=$!
await 30 test -e "$tmp/go.ready" || fail "the client does not write"
sync -f "$store"
kill -STOP "$disk_pid"
touch "$tmp/go"
inflight=/sys/block/${device#/dev/}/inflight
writes_are_in_flight() {
    [ "$(awk '{ print $2 }' "$inflight")" -ge 1 ]
}
await 30 writes_are_in_flight || fail "no write reaches the device"
# Neither it nor its client can be waited for before the device goes on: a thread of the server's may
# be in the middle of a sync.
kill -9 "${nbdkit_pid[server]}"

is_locked() {
    $python - "$lock" <<'END'
import fcntl, os, struct, sys
asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
with open(sys.argv[1]) as file:
    found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
sys.exit(struct.unpack("hhqqi4x", found)[0] == fcntl.F_UNLCK)
END
}
is_free() {
    ! is_locked
}
# Everything of the dead server that ends without the device has ended by then.
! await 3 is_free || fail "the volume is free while a write to it is on its way"
writes_are_in_flight || fail "the device was not stopped"
kill -CONT "$disk_pid"
kill_nbdkit
! wait "$client_pid" 2>/dev/null || fail "the write was answered"
await 60 is_free || fail "the lock of a dead server stays"

serve io=direct
$python - "$(uri vm1)" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
assert client.pread(24576, 1 << 20) == b"before" * 4096
for sector in range(0, 65536, 512):
    assert bytes(client.pread(512, sector)) in (b"late" * 128, bytes(512)), sector
END
stop_nbdkit
