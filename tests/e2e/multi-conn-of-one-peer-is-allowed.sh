#!/usr/bin/env bash
# One VM may have several connections, and a flush on one covers what was written on the others.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy nbdinfo jq python3

new_store
tplstore volume create vm1 --size 64M
serve
equals "multi-conn" "$(nbdinfo --json "$(uri vm1)" | jq '.exports[0].can_multi_conn')" true

$python - "$(uri vm1)" "${nbdkit_pid[server]}" <<'END'
import nbd, os, signal, sys
clients = [nbd.NBD() for _ in range(4)]
for client in clients:
    client.connect_uri(sys.argv[1])
for number, client in enumerate(clients):
    for block in range(100):
        client.pwrite(bytes([number + 1]) * 4096, (block * 4 + number) * 4096)
# Each sees what the others wrote.
for block in range(400):
    assert clients[(block + 1) % 4].pread(4096, block * 4096) == bytes([block % 4 + 1]) * 4096
clients[0].flush()
os.kill(int(sys.argv[2]), signal.SIGKILL)
END
kill_nbdkit
serve
$python - "$(uri vm1)" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for block in range(400):
    assert client.pread(4096, block * 4096) == bytes([block % 4 + 1]) * 4096, f"block {block}"
END

make_image "$tmp/image.raw" 64
nbdcopy --connections=4 --requests=64 --flush "$tmp/image.raw" "$(uri vm1)"
nbdcopy --connections=4 "$(uri vm1)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"
stop_nbdkit
