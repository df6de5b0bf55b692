#!/usr/bin/env bash
# One server, many volumes of one template, all written at the same time: none sees another's data.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd python3 nbdcopy jq

# A sanitizer has found what there is in fewer.
volumes=$([ -z "$TPLSTORE_PRELOAD" ] && echo 64 || echo 20)
make_image "$tmp/image.raw" 16
new_store
tplstore template import golden "$tmp/image.raw"
for ((number = 0; number < volumes; ++number)); do
    tplstore volume create "vm$number" --template golden >/dev/null
done
serve

load() {
    $python - "$(uri '@EXPORT@')" "$tmp/image.raw" "$1" "$volumes" <<'END'
import nbd, random, sys
VOLUMES, BLOCK = int(sys.argv[4]), 4096
image = open(sys.argv[2], "rb").read()
blocks = len(image) // BLOCK
clients = []
for number in range(VOLUMES):
    client = nbd.NBD()
    client.connect_uri(sys.argv[1].replace("@EXPORT@", f"vm{number}"))
    clients.append(client)

def written(number):
    return random.Random(number).sample(range(blocks), 300)
def content(number, block):
    return b"%08x%08x" % (number, block) * (BLOCK // 16)

if sys.argv[3] == "write":
    for step in range(300):  # all of them in turn, so that many have something in flight
        for number, client in enumerate(clients):
            block = written(number)[step]
            data = nbd.Buffer.from_bytearray(bytearray(content(number, block)))
            client.aio_pwrite(data, block * BLOCK)
            while client.aio_in_flight() > 8:
                client.poll(-1)
    for client in clients:
        while client.aio_in_flight() > 0:
            client.poll(-1)
        client.flush()
for number, client in enumerate(clients):
    expected = bytearray(image)
    for block in written(number):
        expected[block * BLOCK:(block + 1) * BLOCK] = content(number, block)
    assert client.pread(len(image), 0) == expected, f"vm{number}"
    client.shutdown()
END
}
load write
load check
stop_nbdkit
serve
load check
stop_nbdkit
equals "volumes" "$(tplstore volume list --json | jq length)" "$volumes"
