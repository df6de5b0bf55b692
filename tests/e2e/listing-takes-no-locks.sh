#!/usr/bin/env bash
# What there is can be listed whoever has it: all exports, with who writes them, by the usual tools;
# no list opens a volume for writing, changes the store, or keeps a VM from starting.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdinfo qemu-nbd jq

new_store
for number in 1 2 3 4 5 6 7 8; do
    tplstore volume create vm$number --size 16M >/dev/null
done
tplstore version create vm2 --name clean >/dev/null
serve

list() {
    nbdinfo --list --json "nbd+unix:///?socket=$tmp/server.socket" >"$tmp/list"
}

# A VM, until it is killed.
start_client write "$(uri vm1)"
owner=$client

find "$store" -type f -name 'header' -exec md5sum {} + | sort >"$tmp/before"
list || fail "nbdinfo --list fails while a VM runs: $(cat "$tmp/list")"
equals "exports" "$(jq -r '.exports[]."export-name"' "$tmp/list" | tr '\n' ' ')" \
    "$(for number in 1 2 3 4 5 6 7 8; do printf 'vm%s@current ' $number; done; echo 'vm2@1 ')"
jq -e 'all(.exports[]; .is_read_only)' "$tmp/list" >/dev/null || fail "a list offers something to write"
equals "size" "$(jq '.exports[0]."export-size"' "$tmp/list")" $((16 << 20))
description=$(jq -r '.exports[0].description' "$tmp/list")
[[ $description == "volume of 16.0 MiB, write as vm1; in use by "*"pid $owner of "*" since "* ]] ||
    fail "the description of vm1 is \"$description\""
qemu-nbd --list -k "$tmp/server.socket" >"$tmp/qemu.list"
grep -q "^exports available: 9$" "$tmp/qemu.list" || fail "qemu-nbd lists $(cat "$tmp/qemu.list")"
for number in 1 2 3 4 5 6 7 8; do
    grep -q "export: 'vm$number@current'" "$tmp/qemu.list" || fail "qemu-nbd does not list vm$number"
done
find "$store" -type f -name 'header' -exec md5sum {} + | sort >"$tmp/after"
same "$tmp/after" "$tmp/before"

# Lists and starts at the same time.
on_exit touch "$tmp/enough"
until [ -e "$tmp/enough" ]; do list || touch "$tmp/list-failed"; done &
lister=$!
$python - "$tmp/server.socket" <<'END' || fail "a VM was refused because of a list"
import nbd, sys, time
begun = time.monotonic()
for turn in range(25):
    for number in range(2, 9):
        client = nbd.NBD()
        client.connect_uri(f"nbd+unix:///vm{number}?socket={sys.argv[1]}")
        assert not client.is_read_only()
        client.pwrite(b"y" * 512, 0)
        client.shutdown()
    if time.monotonic() - begun > 20:
        break
END
touch "$tmp/enough"
wait $lister || true
[ ! -e "$tmp/list-failed" ] || fail "a list failed while VMs started"

# Whoever only looks at what is for writing, as nbdinfo does, is waited for.
$python - "$(uri vm2)" <<'END' || fail "a VM was refused because of one that only looked"
import nbd, sys, threading, time
probe = nbd.NBD()
probe.connect_uri(sys.argv[1])
def leave():
    time.sleep(0.3)
    probe.shutdown()
thread = threading.Thread(target=leave)
if __import__("os").fork() == 0:  # another process: another VM
    __import__("os").execv(sys.executable, [sys.executable, "-c", """
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"z" * 512, 0)
""", sys.argv[1]])
thread.start()
_, status = __import__("os").wait()
thread.join()
sys.exit(status != 0)
END
# nbdkit 1.32 may not end while a client stays connected that asks for nothing.
kill -9 $owner
await 10 is_free vm1 || fail "vm1 stays open behind its VM"
stop_nbdkit
