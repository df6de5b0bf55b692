#!/usr/bin/env bash
# A version that is made while a VM writes has all requests that were answered before the command
# began, none that was sent after it ended, those in between in the order of their sending, and each
# request whole or not at all.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd

new_store
tplstore volume create vm1 --size 8M
serve

$python - "$(uri '@EXPORT@')" "$TPLSTORE" <<'END'
import nbd, subprocess, sys, threading

# Slots of 65 KiB that begin in the middle of a block, written round and round with a rising number.
SLOTS, LENGTH, FIRST = 60, 65 * 1024, 512
uri = sys.argv[1].replace
client = nbd.NBD()
client.connect_uri(uri("@EXPORT@", "vm1"))
sent = answered = 0
stop = False

def content(number):
    return b"%015x\n" % number * (LENGTH // 16)

def write():
    global sent, answered
    while not stop:
        sent += 1
        client.pwrite(content(sent), FIRST + sent % SLOTS * LENGTH)
        answered = sent

writer = threading.Thread(target=write)
writer.start()
bounds = []
try:
    for _ in range(15):
        before = answered
        subprocess.run([sys.argv[2], "version", "create", "vm1"], check=True,
                       stdout=subprocess.DEVNULL)
        bounds.append((before, sent))
finally:
    stop = True
    writer.join()

for number, (before, after) in enumerate(bounds, start=1):
    reader = nbd.NBD()
    reader.connect_uri(uri("@EXPORT@", f"vm1@{number}"))
    found = []
    for slot in range(SLOTS):
        data = reader.pread(LENGTH, FIRST + slot * LENGTH)
        written = int(data[:15], 16) if data[0] else 0
        expected = content(written) if written else bytes(LENGTH)
        assert data == expected, f"version {number}: slot {slot} is half a request"
        assert written == 0 or written % SLOTS == slot
        found.append(written)
    last = max(found)
    assert before <= last <= after, f"version {number} ends with {last}, not in {before}..{after}"
    # One request at a time was under way: so it is exactly the numbers up to the last one.
    wanted = {n for n in range(max(1, last - SLOTS + 1), last + 1)}
    assert {n for n in found if n} == wanted, f"version {number} is no prefix: {sorted(found)}"
print(f"{len(bounds)} versions, the last of them at {bounds[-1]}, {sent} requests")
assert sent > 100
END
stop_nbdkit
