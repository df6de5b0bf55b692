#!/usr/bin/env bash
# A VM that names itself may have several connections, and a flush on one covers what was written on
# the others. One without a name has one; unless the server was told that each process is one VM.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy nbdinfo jq python3

new_store
tplstore volume create vm1 --size 64M
serve
can_multi_conn() {
    nbdinfo --json "$1" | jq '.exports[0].can_multi_conn'
}
several='vm1;writer=a.VM_1-;multi'
equals "multi-conn" "$(can_multi_conn "$(uri "$several")")" true
equals "multi-conn of one connection" "$(can_multi_conn "$(uri 'vm1;writer=a')")" false
equals "multi-conn without a token" "$(can_multi_conn "$(uri vm1)")" false

$python - "$(uri "$several")" "${nbdkit_pid[server]}" <<'END'
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
$python - "$(uri "$several")" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for block in range(400):
    assert client.pread(4096, block * 4096) == bytes([block % 4 + 1]) * 4096, f"block {block}"
END

make_image "$tmp/image.raw" 64
nbdcopy --connections=4 --requests=64 --flush "$tmp/image.raw" "$(uri "$several")"
nbdcopy --connections=4 "$(uri "$several")" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"
stop_nbdkit

serve same-vm=pid
equals "multi-conn of a process" "$(can_multi_conn "$(uri vm1)")" true
equals "multi-conn of a token" "$(can_multi_conn "$(uri 'vm1;writer=a')")" false
nbdcopy --connections=4 "$(uri vm1)" "$tmp/again.raw"
same "$tmp/again.raw" "$tmp/image.raw"
stop_nbdkit
