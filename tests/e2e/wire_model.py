"""Random requests over NBD against a bytearray: wire_model.py URI OPERATIONS [SEED]

Every kind of request NBD has, at any alignment, with and without FUA, several in flight as long as
they do not overlap. Every byte that is read must be what the model has; so must the whole disk at
the end. The disk may hold anything when it starts. Prints the seed first.
"""

import random
import sys

import nbd

uri, operations = sys.argv[1], int(sys.argv[2])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().randrange(1 << 32)
print(f"seed {seed}", flush=True)
chance = random.Random(seed)

client = nbd.NBD()
client.set_strict_mode(client.get_strict_mode() & ~nbd.STRICT_ALIGN)
client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
client.connect_uri(uri)
size = client.get_size()
assert client.can_fua() and client.can_flush() and client.can_trim() and client.can_zero()
assert client.can_fast_zero() and client.can_cache()
assert not client.is_read_only()

model = bytearray()
while len(model) < size:
    model += client.pread(min(8 << 20, size - len(model)), len(model))

in_flight = {}  # first byte: end
counts = {}


def overlaps(begin, end):
    return any(begin < other_end and other < end for other, other_end in in_flight.items())


def choose_range(longest):
    while True:
        length = min(chance.choice([1, 511, 512, 513, 4095, 4096, 4097, 20000, 65536, longest]),
                     longest)
        if chance.random() < 0.5:
            length = chance.randint(1, length)
        offset = chance.randrange(size - length + 1)
        if chance.random() < 0.5:
            offset -= offset % 4096
        if not overlaps(offset, offset + length):
            return offset, length
        client.poll(-1)


def completion(offset, check=None):
    def done(error):
        assert error.value == 0, f"request at {offset} failed with errno {error.value}"
        del in_flight[offset]
        if check:
            check()
        return 1  # retire it
    return done


def start_read(offset, length):
    buffer = nbd.Buffer(length)
    expected = bytes(model[offset:offset + length])

    def check():
        assert buffer.to_bytearray() == expected, f"read {length} at {offset}: wrong bytes"
    client.aio_pread(buffer, offset, completion(offset, check))


def start_write(offset, length):
    data = bytes(length) if chance.random() < 0.05 else chance.randbytes(length)
    model[offset:offset + length] = data
    client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, completion(offset), fua())


def start_trim(offset, length):
    model[offset:offset + length] = bytes(length)
    client.aio_trim(length, offset, completion(offset), fua())


def start_zero(offset, length):
    model[offset:offset + length] = bytes(length)
    flags = fua() | chance.choice([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO])
    client.aio_zero(length, offset, completion(offset), flags)


def start_cache(offset, length):
    client.aio_cache(length, offset, completion(offset))


def start_extents(offset, length):
    expected = bytes(model[offset:offset + length])

    def extents(context, start, entries, error):
        position = 0
        for run, flags in zip(entries[::2], entries[1::2]):
            if flags & nbd.STATE_ZERO:
                piece = expected[position:position + run]
                assert piece == bytes(len(piece)), f"extent at {start + position} is not zero"
            position += run
        return 0
    client.aio_block_status(length, offset, extents, completion(offset))


def fua():
    return nbd.CMD_FLAG_FUA if chance.random() < 0.05 else 0


starts = {start_read: 30, start_write: 35, start_trim: 10, start_zero: 10, start_cache: 3,
          start_extents: 10}
for number in range(operations):
    while len(in_flight) >= 16:
        client.poll(-1)
    if chance.random() < 0.02:
        client.flush()
        counts["flush"] = counts.get("flush", 0) + 1
    if chance.random() < 0.01:  # so that requests after it meet a quiet disk too
        while in_flight:
            client.poll(-1)
    start = chance.choices(list(starts), starts.values())[0]
    offset, length = choose_range(1 << 20)
    in_flight[offset] = offset + length
    counts[start.__name__] = counts.get(start.__name__, 0) + 1
    start(offset, length)
while in_flight:
    client.poll(-1)

for offset in range(0, size, 1 << 20):
    length = min(1 << 20, size - offset)
    assert client.pread(length, offset) == model[offset:offset + length], f"MiB at {offset}"
client.flush()
client.shutdown()
print(counts)
