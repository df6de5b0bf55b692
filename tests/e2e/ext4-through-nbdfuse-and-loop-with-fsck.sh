#!/usr/bin/env bash
# A real file system lives on a volume: it is whole after an unmount, after the server was killed,
# and in a version; fstrim gives the space of removed files back.
. "$(dirname "$0")/../functions.sh"
requires root fuse loop nbdfuse mkfs.ext4 e2fsck fstrim nbdcopy jq

new_store
tplstore volume create vm1 --size 512M
mkdir "$tmp/disk" "$tmp/mnt"

attach() {
    nbdfuse -P "$tmp/fuse.pid" "$tmp/disk/volume" "$(uri vm1)" >"$tmp/fuse.log" 2>&1 &
    fuse_pid=$!
    await 20 test -s "$tmp/fuse.pid" || skip "nbdfuse cannot mount here: $(cat "$tmp/fuse.log")"
    loop=$(losetup --find --show "$tmp/disk/volume")
}
detach() {
    if [ -n "${loop-}" ]; then
        ! mountpoint -q "$tmp/mnt" || umount "$tmp/mnt"
        losetup --detach "$loop"
        loop=
    fi
    if [ -n "${fuse_pid-}" ]; then
        fusermount3 -u "$tmp/disk" 2>/dev/null || umount "$tmp/disk"
        wait "$fuse_pid" || true
        fuse_pid=
        rm -f "$tmp/fuse.pid"
    fi
}
on_exit detach

unique_bytes() {
    tplstore volume list --json | jq '.[] | select(.name == "vm1").unique_bytes'
}

serve
attach
mkfs.ext4 -q -E nodiscard "$loop"
mount "$loop" "$tmp/mnt"
cp -a /usr/lib/python3 /usr/include "$tmp/mnt/" 2>/dev/null || true
dd if=/dev/urandom of="$tmp/mnt/large" bs=1M count=96 status=none
(cd "$tmp/mnt" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$tmp/sums"
umount "$tmp/mnt"
e2fsck -fn "$loop" >"$tmp/fsck.log" 2>&1 || fail "fsck after unmounting: $(cat "$tmp/fsck.log")"
detach
stop_nbdkit

serve
attach
e2fsck -fn "$loop" >"$tmp/fsck.log" 2>&1 || fail "fsck after a new start: $(cat "$tmp/fsck.log")"
mount "$loop" "$tmp/mnt"
(cd "$tmp/mnt" && sha256sum --quiet -c "$tmp/sums") || fail "files changed"
tplstore version create vm1 --name full

full=$(unique_bytes)
rm "$tmp/mnt/large"
dd if=/dev/urandom of="$tmp/mnt/second" bs=1M count=64 status=none
sync -f "$tmp/mnt"
grown=$(unique_bytes)
[ "$grown" -ge $((full + (60 << 20))) ] || fail "64 MiB more occupy $((grown - full)) bytes"
rm "$tmp/mnt/second"
sync -f "$tmp/mnt"
fstrim "$tmp/mnt"
sync -f "$tmp/mnt"
trimmed=$(unique_bytes)
[ "$trimmed" -le $((full + (16 << 20))) ] || fail "after fstrim $((trimmed - full)) bytes are left"
echo "with the file $full, with one more $grown, trimmed $trimmed"

# The plug is pulled under a mounted file system.
cp -a /usr/include "$tmp/mnt/again" 2>/dev/null || mkdir "$tmp/mnt/again"
sync -f "$tmp/mnt"
kill_nbdkit
umount "$tmp/mnt" 2>/dev/null || umount -l "$tmp/mnt"
detach
serve
attach
# It replays the journal; what fsck finds beyond it is damage.
e2fsck -fp "$loop" >"$tmp/fsck.log" 2>&1 || [ $? = 1 ] ||
    fail "fsck after the kill: $(cat "$tmp/fsck.log")"
mount -o ro "$loop" "$tmp/mnt"
[ -d "$tmp/mnt/again" ] || fail "what was synced is gone"
detach

# The version that was taken of the mounted file system.
nbdcopy "$(uri vm1@full)" "$tmp/full.raw"
e2fsck -fp "$tmp/full.raw" >"$tmp/fsck.log" 2>&1 || [ $? = 1 ] ||
    fail "fsck of the version: $(cat "$tmp/fsck.log")"
mount -o loop,ro "$tmp/full.raw" "$tmp/mnt"
on_exit umount "$tmp/mnt"
(cd "$tmp/mnt" && sha256sum --quiet -c "$tmp/sums") || fail "files in the version changed"
stop_nbdkit
