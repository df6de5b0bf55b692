#!/usr/bin/env bash
# vm1@current is the volume as it is at the first read, for programs that only read: qemu-img,
# nbdcopy, nbdkit -r, filters like cow. The VM goes on writing and is never in their way, nor they in
# its; and nothing is left of it.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdinfo nbdcopy qemu-img jq

new_store
make_image "$tmp/image.raw" 16
tplstore template import golden "$tmp/image.raw" >/dev/null
tplstore volume create vm1 --template golden >/dev/null
serve

# A VM that writes all the time: pairs of blocks, the first one before the second, both with the
# number of the turn; and flushes.
cat >"$tmp/vm.py" <<'END'
import nbd, os, struct, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
turn = 0
while not os.path.exists(sys.argv[2]):
    turn += 1
    for offset in (0, 8 << 20):
        client.pwrite(struct.pack("<Q", turn) * 512, offset)
    if turn % 16 == 0:
        client.flush()
    if turn == 16:
        print("runs", flush=True)
client.flush()
print(turn)
END
$python "$tmp/vm.py" "$(uri vm1)" "$tmp/enough" >"$tmp/vm.out" 2>&1 &
vm=$!
on_exit kill -9 $vm
await 10 grep -qs runs "$tmp/vm.out" || fail "the VM does not run: $(cat "$tmp/vm.out")"

# One moment: what was written last is at most one turn behind what was written first.
one_moment() {
    $python - "$1" "$tmp/image.raw" <<'END'
import struct, sys
with open(sys.argv[1], "rb") as copy, open(sys.argv[2], "rb") as image:
    copy, image = copy.read(), image.read()
first = struct.unpack("<512Q", copy[:4096])
second = struct.unpack("<512Q", copy[8 << 20:(8 << 20) + 4096])
assert len(set(first)) == 1 and len(set(second)) == 1, "a block is torn"
assert second[0] <= first[0] <= second[0] + 1, f"no moment: {first[0]} and {second[0]}"
assert copy[4096:8 << 20] == image[4096:8 << 20] and copy[(8 << 20) + 4096:] == image[(8 << 20) + 4096:]
END
}

qemu-img info --output=json "$(uri vm1@current)" >"$tmp/info" || fail "qemu-img info fails"
equals "size" "$(jq '."virtual-size"' "$tmp/info")" $((16 << 20))
for turn in 1 2 3; do
    qemu-img convert -f raw -O raw "$(uri vm1@current)" "$tmp/copy.raw"
    one_moment "$tmp/copy.raw"
    nbdcopy "$(uri vm1@current)" "$tmp/copy.raw"
    one_moment "$tmp/copy.raw"
done
nbdinfo --map "$(uri vm1@current)" >"$tmp/map"

# A change is EPERM, though the client does not believe the server's flags.
$python - "$(uri vm1@current)" <<'END'
import errno, nbd, sys
client = nbd.NBD()
client.set_strict_mode(0)
client.connect_uri(sys.argv[1])
assert client.is_read_only()
for change in (lambda: client.pwrite(b"x" * 512, 0), lambda: client.trim(512, 0),
               lambda: client.zero(512, 0)):
    try:
        change()
        sys.exit("changed")
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
END

# Four readers at a time; the fifth one is told so.
$python - "$(uri vm1@current)" <<'END'
import nbd, sys
def connect():
    client = nbd.NBD()
    client.connect_uri(sys.argv[1])
    return client
readers = [connect() for _ in range(5)]
for reader in readers[:4]:
    reader.pread(4096, 0)
try:
    readers[4].pread(4096, 0)
    sys.exit("a fifth reader")
except nbd.Error:
    pass
readers[0].shutdown()
import time
for _ in range(1000):
    try:
        readers[4].pread(4096, 0)
        break
    except nbd.Error:
        time.sleep(0.01)
else:
    sys.exit("no place for a fifth reader when one has gone")
END
grep -q "vm1.*is being read as vm1@current by 4" "$tmp/server.log" || fail "the log does not say why"

# Nothing is left soon after: no version, and the VM was never disturbed.
has_no_versions() { [ "$(tplstore volume show vm1 --json | jq '.versions | length')" = 1 ]; }
await 10 has_no_versions || fail "versions of readers stay: $(tplstore volume show vm1)"
has_ended $vm && fail "the VM was disturbed: $(cat "$tmp/vm.out")"
tplstore version prune vm1 --keep-last 1 --dry-run >/dev/null

# A server that was started for reading only, and a filter that keeps writes to itself, do not take
# the lock of the VM, which another server has here; nor do they claim what nobody has.
start_nbdkit reading -r "$TPLSTORE_PLUGIN" "$store"
start_nbdkit cow --filter=cow "$TPLSTORE_PLUGIN" "$store"
for name in reading cow; do
    equals "size through $name" "$(nbdinfo --size "$(uri vm1 $name)")" $((16 << 20))
    ! nbdcopy "$(uri vm1 $name)" "$tmp/copy.raw" 2>"$tmp/err" || fail "$name reads another server's volume"
    grep -q "in use by .*pid $vm" "$tmp/$name.log" || fail "the log of $name does not name the owner"
done
touch "$tmp/enough"
wait $vm
turns=$(tail -n 1 "$tmp/vm.out")
await 10 is_free vm1
header=$(md5sum "$store"/volumes/*/header)
for name in reading cow; do
    nbdcopy "$(uri vm1 $name)" "$tmp/copy.raw"
    one_moment "$tmp/copy.raw"
    equals "turn" "$(od -An -t u8 -N 8 "$tmp/copy.raw" | tr -d ' ')" "$turns"
    equals "header" "$(md5sum "$store"/volumes/*/header)" "$header"
done
# The guest of a cow filter writes; the volume stays as it is.
$python - "$(uri vm1 cow)" "$(uri vm1)" <<'END'
import nbd, sys
copy, volume = nbd.NBD(), nbd.NBD()
copy.connect_uri(sys.argv[1])
before = copy.pread(4096, 0)
copy.pwrite(b"c" * 4096, 0)
assert copy.pread(4096, 0) == b"c" * 4096
volume.connect_uri(sys.argv[2])
assert volume.pread(4096, 0) == before
volume.pwrite(b"v" * 4096, 4096)
volume.flush()
END

# What a VM left whose server was killed is refused, until a VM has taken it over.
$python -c '
import nbd, os, signal, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"w" * 4096, 4096)
os.kill(int(sys.argv[2]), signal.SIGKILL)' "$(uri vm1)" "${nbdkit_pid[server]}"
kill_nbdkit server
equals "size" "$(nbdinfo --size "$(uri vm1@current reading)")" $((16 << 20))
! nbdcopy "$(uri vm1@current reading)" "$tmp/copy.raw" 2>"$tmp/err" || fail "read what a crash left"
grep -q "vm1.*its server died" "$tmp/reading.log" || fail "the log does not say why"
serve
tplstore version create vm1 >/dev/null
nbdcopy "$(uri vm1@current reading)" "$tmp/copy.raw"
equals "byte" "$(od -An -c -j 4096 -N 1 "$tmp/copy.raw" | tr -d ' ')" w
stop_nbdkit cow
stop_nbdkit reading
stop_nbdkit
