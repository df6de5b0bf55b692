#!/usr/bin/env bash
# A guest that writes moves from one qemu to another and keeps all that was acknowledged, whoever is
# killed before or after; the source, and anybody else, writes nothing from then on; and a migration
# that is cancelled leaves the guest where it was. With ROUNDS=20 it moves 20 times each way.
# Meanwhile another VM's last write hangs in the storage when it is to move: so it keeps its volume,
# and its destination, whose first write waits for that, is told half a minute later.
. "$(dirname "$0")/../functions.sh"
requires qemu-system-x86_64 mmdebstrap e2fsck debugfs nbdcopy python-libnbd cc jq

guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
"$checkout/examples/make-guest.sh" "$guest"
new_store
tplstore template import golden "$guest/disk.raw"
tplstore volume create vm1 --template golden
export tmp TPLSTORE TPLSTORE_PLUGIN TPLSTORE_PRELOAD

make_stall
tplstore volume create hung --size 16M
TPLSTORE_PRELOAD=${TPLSTORE_PRELOAD:+$TPLSTORE_PRELOAD:}$tmp/stall.so \
    start_nbdkit hung "$TPLSTORE_PLUGIN" "$store"
cat >"$tmp/hung.py" <<'END'
import errno, nbd, os, subprocess, sys, time
source, destination = nbd.NBD(), nbd.NBD()
source.connect_uri(sys.argv[1] + "source" + sys.argv[2])
source.pwrite(b"1" * 4096, 0)
source.flush()
last = source.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"STALL" + b"2" * 4091)), 0)
while not os.path.exists(os.environ["STALLED"]):
    source.poll(1)
subprocess.run([os.environ["TPLSTORE"], "volume", "handover", "hung", "--to", "destination"],
               check=True, stdout=subprocess.DEVNULL)
destination.connect_uri(sys.argv[1] + "destination" + sys.argv[2])
assert destination.pread(5, 0) == b"11111"
def is_out():
    try:
        destination.pwrite(b"3" * 4096, 0)
    except nbd.Error as error:
        return error.errnum == errno.ESHUTDOWN
begun = time.monotonic()
assert is_out(), "the destination has written before the source's last write"
waited = time.monotonic() - begun
assert 29 < waited < 40, f"the destination was told after {waited:.1f} s"
open(os.environ["GO_ON"], "w").close()
while not source.aio_command_completed(last):
    source.poll(1)
assert source.pread(5, 0) == b"STALL"
source.pwrite(b"4" * 4096, 0)
assert is_out(), "the destination writes after its source"
END
$python "$tmp/hung.py" "nbd+unix:///hung;writer=" "?socket=$tmp/hung.socket" &
hung=$!
on_exit kill -9 "$hung"

for try in 1 2 3; do
    status=0
    $python "$(dirname "$0")/live_migration.py" "$guest" "${ROUNDS:-0}" || status=$?
    [ $status = 3 ] && [ $try != 3 ] || break
    echo "qemu has lost a part of the guest's memory; another try"
    tplstore lock break vm1 --yes --epoch "$(tplstore lock show vm1 --json | jq .epoch)" || true
    tplstore volume rm vm1
    tplstore volume create vm1 --template golden
done
[ $status = 0 ] || exit $status
wait "$hung" || fail "a VM whose last write hangs is moved"
