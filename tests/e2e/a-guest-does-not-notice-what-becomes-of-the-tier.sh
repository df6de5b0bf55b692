#!/usr/bin/env bash
# Four file systems stand for SSDs and a fifth for a remote origin. Guests' reads are right and
# never fail, whatever becomes of the directories: damaged, gone, replaced by an empty mount point,
# read-only, full, not answering. Nothing is written where a directory is not mounted.
. "$(dirname "$0")/../functions.sh"
requires root loop mkfs.ext4 python-libnbd nbdfuse jq

mount_small() {
    local name=$1 size=$2
    truncate -s "$size" "$tmp/$name.img"
    mkfs.ext4 -q -m 0 "$tmp/$name.img"
    mkdir -p "$tmp/$name"
    mount -o loop "$tmp/$name.img" "$tmp/$name" || skip "cannot mount here"
    on_exit umount -l "$tmp/$name"
}

export TPLSTORE_TIER_STATE=$tmp/tier-state
mount_small origin 400M
TPLSTORE_STORE=$tmp/origin/store
store=$TPLSTORE_STORE
new_store
make_image "$tmp/image" 256
tplstore template import golden "$tmp/image"
for name in a b c; do
    mount_small "$name" 120M
    tplstore tier add "$tmp/$name" --weight 100M
done
# The fourth is on a device that can be made not to answer.
truncate -s 120M "$tmp/d.img"
mkfs.ext4 -q -m 0 "$tmp/d.img"
mkdir "$tmp/d.fuse" "$tmp/d"
start_nbdkit device file "$tmp/d.img"
nbdfuse "$tmp/d.fuse" "nbd+unix:///?socket=$tmp/device.socket" >"$tmp/nbdfuse.log" 2>&1 &
fuse=$!
on_exit umount -l "$tmp/d.fuse"
on_exit kill -CONT "$fuse"
await 20 test -s "$tmp/d.fuse/nbd" || skip "no FUSE here: $(cat "$tmp/nbdfuse.log")"
mount -o loop "$tmp/d.fuse/nbd" "$tmp/d" || skip "cannot mount here"
on_exit umount -l "$tmp/d"
tplstore tier add "$tmp/d" --weight 100M

segments=$(find "$store/segments" -type f | wc -l)
tplstore template warm golden
equals "copies" "$(find "$tmp"/[abcd]/segments -type f | wc -l)" "$segments"

serve boot-cache=0 tier-state="$TPLSTORE_TIER_STATE"
tplstore volume create vm1 --template golden

status() {
    tplstore tier list --json | jq -c "$1"
}
state_of() {
    tplstore tier list --json | jq -r ".[] | select(.path == \"$1\") | .state"
}
has_state() {
    [ "$(state_of "$tmp/$1")" = "$2" ]
}

# Reads the disk at random, with and without alignment, and all of it once; says how long the
# slowest read took.
cat >"$tmp/read.py" <<'END'
import nbd, random, sys, time
uri, image, seed = sys.argv[1], open(sys.argv[2], "rb").read(), int(sys.argv[3])
chance = random.Random(seed)
client = nbd.NBD()
client.connect_uri(uri)
slowest = 0
def read(offset, length):
    global slowest
    began = time.monotonic()
    data = client.pread(length, offset)
    slowest = max(slowest, time.monotonic() - began)
    assert data == image[offset:offset + length], f"seed {seed}: {length} bytes at {offset} differ"
for offset in range(0, len(image), 1 << 20):
    read(offset, min(1 << 20, len(image) - offset))
for i in range(500):
    length = chance.choice([512, 4096, 8192, 65536, 300000])
    offset = chance.randrange((len(image) - length) // 512) * 512
    read(offset, length)
print(f"{slowest:.3f}")
END
seed=$RANDOM
echo "seed $seed"
reads_right() {
    seed=$((seed + 1))
    echo 3 >/proc/sys/vm/drop_caches
    $python "$tmp/read.py" "$(uri "${1-vm1}")" "$tmp/image" "$seed"
}

# All of it comes from the copies.
reads_right >/dev/null
reads_right template/golden >/dev/null
equals "reads at the origin" "$(tplstore stats --json | jq .tier.origin_reads)" 0
[ "$(status 'map(.reads > 0) | all')" = true ] || fail "not all are read: $(status .)"

# Damaged: the copy goes, the bytes are right, and it comes again.
damaged=$(find "$tmp/a/segments" -type f | head -n 1)
printf 'damage' | dd of="$damaged" bs=1 seek=5000 conv=notrunc status=none
reads_right >/dev/null
[ "$(status 'map(.errors) | add')" -ge 1 ] || fail "damage is not counted: $(status .)"

# Gone, with an empty folder in its place. Nothing comes into that.
umount -l "$tmp/a"
reads_right >/dev/null
await 30 has_state a absent || fail "is $(state_of "$tmp/a")"
reads_right >/dev/null
equals "files where nothing is mounted" "$(find "$tmp/a" -mindepth 1 | wc -l)" 0
mount -o loop "$tmp/a.img" "$tmp/a"
await 60 has_state a ok || fail "is $(state_of "$tmp/a")"

# Read-only.
mount -o remount,ro "$tmp/b"
reads_right >/dev/null
mount -o remount,rw "$tmp/b"

# All copies of one are removed while it is read; they come back by themselves.
find "$tmp/c/segments" -type f -delete
reads_right >/dev/null
reads_right >/dev/null
copies_are_back() {
    [ "$(find "$tmp"/[abcd]/segments -type f | wc -l)" = "$segments" ]
}
await 60 copies_are_back || fail "copies do not come back: $(status .)"

# Full: what does not fit stays at the origin.
fallocate -l "$(df --output=avail -B1 "$tmp/c" | tail -n 1)" "$tmp/c/ballast" || true
find "$tmp/c/segments" -type f -size +2M | head -n 1 | xargs rm -f
head -c 100M /dev/zero >>"$tmp/c/ballast" 2>/dev/null || true
reads_right >/dev/null
rm "$tmp/c/ballast"

# It does not answer: what is under way waits, what begins later does not.
sync -f "$tmp/d"
kill -STOP "$fuse"
trap 'kill -CONT $fuse; finish' EXIT
echo 3 >/proc/sys/vm/drop_caches
for i in 1 2 3 4; do
    $python "$tmp/read.py" "$(uri template/golden)" "$tmp/image" "$i" >"$tmp/hanging-$i" 2>&1 &
    hanging[i]=$!
done
is_off() {
    has_state d failing
}
await 60 is_off || fail "$(status .)$(cat "$tmp"/hanging-*)"
# What is cached is not dropped here: that would wait for the device too.
slowest=$($python "$tmp/read.py" "$(uri vm1)" "$tmp/image" "$seed")
echo "slowest read while a directory does not answer: $slowest s"
jq -en "$slowest < 2" >/dev/null || fail "a read took $slowest s"
kill -CONT "$fuse"
for i in 1 2 3 4; do
    wait "${hanging[i]}" || fail "a read failed: $(cat "$tmp/hanging-$i")"
done
await 60 has_state d ok || fail "is $(state_of "$tmp/d")"
reads_right >/dev/null

# The origin goes: what has a copy is served on.
await 60 copies_are_back || fail "copies do not come back: $(status .)"
echo "lines of the log: $(wc -l <"$tmp/server.log")"
stop_nbdkit
