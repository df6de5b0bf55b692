"""Connects to many exports at once and makes requests: connections.py URI...

On each connection 16 requests are in flight. When all are answered, prints "ready" and stays
connected until its standard input ends.
"""

import random
import sys

import nbd

READS, WRITES, IN_FLIGHT, BLOCK = 500, 500, 16, 4096

chance = random.Random(1)
clients = []
for uri in sys.argv[1:]:
    client = nbd.NBD()
    client.connect_uri(uri)
    clients.append(client)

size = clients[0].get_size()
data = nbd.Buffer.from_bytearray(bytearray(b"\xa5" * BLOCK))


def answered(error):
    assert error.value == 0, f"a request failed with errno {error.value}"
    return 1


for step in range(READS + WRITES):
    for client in clients:
        offset = chance.randrange(size // BLOCK) * BLOCK
        while client.aio_in_flight() >= IN_FLIGHT:
            client.poll(-1)
        if step % 2:
            client.aio_pread(nbd.Buffer(BLOCK), offset, answered)
        else:
            client.aio_pwrite(data, offset, answered)
for client in clients:
    while client.aio_in_flight() > 0:
        client.poll(-1)
    client.flush()
print("ready", flush=True)
sys.stdin.read()
