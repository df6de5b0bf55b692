"""Kills a server under load, again and again: kill_under_load.py URI KILLS COMMAND...

COMMAND is run anew for each life of the server, and says with an empty line on its standard output
that it is ready. The disk is written with requests of random kinds and sizes, many in flight. For
each sector this keeps what it may hold after a crash: what the last flush covered, or anything
written since. After each kill the server is started again and every sector is compared; what is
read then is what was recovered, hence the only thing it may hold from then on.
"""

import os
import random
import signal
import subprocess
import sys
import time

import nbd

SECTOR = 512
uri, kills, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
print(f"seed {seed}", flush=True)
chance = random.Random(seed)

allowed = {}      # sector: set of tags it may hold; 0 is zeroes; not there: only zeroes
pending = {}      # sector: tags of requests that were answered after the last flush was sent
covered = {}      # sector: tag that the flush under way makes durable
in_flight = {}    # first sector: (end, tag)
tag = 0
answered = 0
flushes_answered = 0


def content(first, count, tag):
    """Each sector says which one it is and which request wrote it."""
    return b"".join(b"%016x%016x" % (first + number, tag) * (SECTOR // 32)
                    for number in range(count))


def tag_of(data, sector):
    if data == bytes(SECTOR):
        return 0
    assert data == data[:32] * (SECTOR // 32), f"sector {sector} is torn: {data!r}"
    assert int(data[:16], 16) == sector, f"sector {sector} has what belongs to {data[:16]!r}"
    return int(data[16:32], 16)


class ServerIsGone(Exception):
    pass


def poll():
    try:
        client.poll(-1)
    except nbd.Error:
        raise ServerIsGone
    if client.aio_is_dead() or client.aio_is_closed():
        raise ServerIsGone


def write_something(sectors):
    global tag
    count = chance.choice([1, 1, 3, 8, 8, 8, 24, 64, 256])
    first = chance.randrange(sectors - count)
    if chance.random() < 0.5:
        first -= first % 8
    if any(first < end and begin < first + count for begin, (end, _) in in_flight.items()):
        return
    kind = chance.choice(["write"] * 8 + ["trim", "zero"])
    tag += 1
    mine = tag if kind == "write" else 0
    durable = nbd.CMD_FLAG_FUA if chance.random() < 0.01 else 0
    for sector in range(first, first + count):
        allowed.setdefault(sector, {0}).add(mine)
    in_flight[first] = (first + count, mine)

    def done(error):
        global answered
        if error.value:
            return 1  # the server is going; either content may be there
        del in_flight[first]
        answered += 1
        for sector in range(first, first + count):
            if durable:
                allowed[sector] = {mine}
                pending.pop(sector, None)
                covered.pop(sector, None)
            else:
                pending.setdefault(sector, []).append(mine)
        return 1
    if kind == "write":
        data = nbd.Buffer.from_bytearray(bytearray(content(first, count, mine)))
        client.aio_pwrite(data, first * SECTOR, done, durable)
    elif kind == "trim":
        client.aio_trim(count * SECTOR, first * SECTOR, done, durable)
    else:
        client.aio_zero(count * SECTOR, first * SECTOR, done, durable)


def flush_now():
    # What had been answered when the flush was sent is covered when it is answered. Requests that
    # are answered, or sent, in between may be there or not.
    covered.clear()
    covered.update((sector, tags[-1]) for sector, tags in pending.items())
    pending.clear()
    in_flight[-1] = (-1, 0)

    def done(error):
        global flushes_answered
        if error.value:
            return 1
        del in_flight[-1]
        flushes_answered += 1
        for sector, last in covered.items():
            later = {mine for begin, (end, mine) in in_flight.items() if begin <= sector < end}
            allowed[sector] = {last} | later | set(pending.get(sector, []))
        return 1
    client.aio_flush(done)


def compare_all(sectors):
    step = 4096
    for first in range(0, sectors, step):
        data = client.pread(step * SECTOR, first * SECTOR)
        if data == bytes(len(data)) and not any(s in allowed for s in range(first, first + step)):
            continue
        for number in range(step):
            sector = first + number
            found = tag_of(bytes(data[number * SECTOR:(number + 1) * SECTOR]), sector)
            may_hold = allowed.get(sector, {0})
            assert found in may_hold, f"sector {sector} holds {found} and may hold {may_hold}"
            if found or sector in allowed:
                allowed[sector] = {found}


for life in range(kills + 1):
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"\n", f"the server does not start in life {life}"
        client = nbd.NBD()
        client.connect_uri(uri.replace("?", f";writer=life{life}?"))
        sectors = client.get_size() // SECTOR
        compare_all(sectors)
        pending.clear()
        in_flight.clear()
        if life == kills:
            break  # it ends like all the others
        end = time.monotonic() + chance.uniform(0.05, 0.6)
        try:
            # On a busy machine a life is longer: without a flush it would show nothing.
            while time.monotonic() < end or (flushes_answered <= life and
                                             time.monotonic() < end + 10):
                for _ in range(chance.randrange(20)):
                    write_something(sectors)
                if -1 not in in_flight and chance.random() < 0.1:
                    flush_now()
                while len(in_flight) > 32:
                    poll()
            for _ in range(16):  # so that something is in flight when it comes
                write_something(sectors)
            os.kill(server.pid, signal.SIGKILL)
            while in_flight:
                poll()
        except ServerIsGone:
            pass
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()

print(f"{kills} kills, {answered} requests and {flushes_answered} flushes answered")
assert answered > 100 * kills and flushes_answered > kills, "that was no load"
