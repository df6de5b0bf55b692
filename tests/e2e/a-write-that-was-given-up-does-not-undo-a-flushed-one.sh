#!/usr/bin/env bash
# A VM whose write is held up by the storage gives its connection up, connects again, writes the
# same blocks anew and flushes. When the storage then goes on, the old write does not land over
# them; and where it does not go on, the VM is refused instead of being let in too early.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd cc

make_stall
new_store
tplstore volume create vm1 --size 16M
TPLSTORE_PRELOAD=${TPLSTORE_PRELOAD:+$TPLSTORE_PRELOAD:}$tmp/stall.so
serve

cat >"$tmp/vm.py" <<'END'
import nbd, os, sys, threading, time
uri, stalled, go_on, waits_for_refusal = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] == "refused"

def connect():
    client = nbd.NBD()
    client.connect_uri(uri)
    return client

for path in (stalled, go_on):
    if os.path.exists(path):
        os.remove(path)
first = connect()
first.pwrite(b"\1" * 4096, 0)
first.flush()
# It is sent and given up: the client closes the connection without waiting for the answer.
first.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"STALL" + b"\2" * 4091)), 0)
while not os.path.exists(stalled):
    first.poll(1)
del first

if waits_for_refusal:
    begun = time.monotonic()
    try:
        connect()
        sys.exit("let in while the old write had not ended")
    except nbd.Error:
        pass
    waited = time.monotonic() - begun
    assert 5 < waited < 30, f"refused after {waited} s"
    open(go_on, "w").close()
    second = connect()
else:
    # Whoever is let in too early is done long before this lets the old write go on.
    done = threading.Event()
    def release():
        done.wait(1)
        open(go_on, "w").close()
    releaser = threading.Thread(target=release)
    releaser.start()
    second = connect()
second.pwrite(b"\3" * 4096, 0)
second.flush()
if not waits_for_refusal:
    done.set()
    releaser.join()
# The old write has landed by now, or never will: when its connection is closed it has ended.
for _ in range(100):
    assert second.pread(4096, 0) == b"\3" * 4096, "the old write undid the flushed one"
    time.sleep(0.005)
END
# Whether the VM has one connection at a time, or several: the new one waits.
$python "$tmp/vm.py" "$(uri vm1)" "$STALLED" "$GO_ON" released
$python "$tmp/vm.py" "$(uri 'vm1;writer=a')" "$STALLED" "$GO_ON" released
several=$(uri 'vm1;writer=a;multi')
$python "$tmp/vm.py" "$several" "$STALLED" "$GO_ON" released
$python "$tmp/vm.py" "$several" "$STALLED" "$GO_ON" refused
grep -q "vm1.*has not ended" "$tmp/server.log" || fail "the log does not say why the VM was refused"
stop_nbdkit
