#!/usr/bin/env bash
# When the store's file system is full, writes get ENOSPC; what was flushed stays, before and after
# a new start, after a kill too, and there can be written again once something was trimmed.
. "$(dirname "$0")/../functions.sh"
requires root loop mkfs.ext4 python-libnbd

truncate -s 96M "$tmp/small.img"
mkfs.ext4 -q -m 0 "$tmp/small.img"
mkdir "$tmp/small"
mount -o loop "$tmp/small.img" "$tmp/small" || skip "cannot mount here"
on_exit umount "$tmp/small"
TPLSTORE_STORE=$tmp/small/store
store=$TPLSTORE_STORE
new_store
tplstore volume create vm1 --size 1G

# fill SEED: random first writes with a flush now and then, until it is full. Appends what was
# flushed to $tmp/flushed: block and tag.
cat >"$tmp/fill.py" <<'END'
import errno, nbd, random, sys
uri, seed, path = sys.argv[1:]
chance = random.Random(seed)
client = nbd.NBD()
client.connect_uri(uri)
blocks = client.get_size() // 4096
written, is_full, tries = [], False, 0
def content(block):
    return b"%016x%016x" % (block, int(seed)) * 128
while tries < 200:
    block = chance.randrange(blocks)
    try:
        client.pwrite(content(block), block * 4096)
        written.append(block)
        if len(written) % 64 == 0:
            client.flush()
            with open(path, "a") as flushed:
                flushed.writelines(f"{b} {seed}\n" for b in written)
            written = []
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error
        is_full = True
    tries += is_full
assert is_full
END
cat >"$tmp/check.py" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
flushed = dict(map(int, line.split()) for line in open(sys.argv[2]))
for block, seed in flushed.items():
    data = client.pread(4096, block * 4096)
    # Written again since, by a run whose flush did not come: either is right.
    assert data[:16] == b"%016x" % block and data == data[:32] * 128, f"block {block}: {data[:64]}"
    assert int(data[16:32], 16) >= seed, f"block {block} is older than its flush"
print(len(flushed), "blocks are as flushed")
END
check() {
    $python "$tmp/check.py" "$(uri vm1)" "$tmp/flushed"
}

serve
$python "$tmp/fill.py" "$(uri vm1)" 1 "$tmp/flushed"
df -h "$tmp/small" | tail -n 1
await 10 grep -q "are free on its file system; when it is full" "$tmp/server.log" ||
    fail "the server's log says nothing of a full disk"
check
kill_nbdkit
serve
check
stop_nbdkit
serve
check
# A version can be made or is refused clearly; either way nothing is lost.
tplstore version create vm1 2>"$tmp/version.err" || grep -q -i "space" "$tmp/version.err" ||
    fail "version create says: $(cat "$tmp/version.err")"
check
stop_nbdkit

# On a new store: space that is trimmed can be used again, on the full disk.
rm -rf "$store" "$tmp/flushed"
new_store
tplstore volume create vm1 --size 1G
serve
$python "$tmp/fill.py" "$(uri vm1)" 2 "$tmp/flushed"
check
$python - "$(uri vm1)" "$tmp/flushed" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
# A block may have been flushed twice, but is trimmed once.
lines = list({line.split()[0]: line for line in open(sys.argv[2])}.values())
half = len(lines) // 2
for line in lines[:half]:
    client.trim(4096, int(line.split()[0]) * 4096)
client.flush()
open(sys.argv[2], "w").writelines(lines[half:])
written = 0
for line in lines[:half // 2]:
    block = int(line.split()[0])
    client.pwrite(b"%016x%016x" % (block, 3) * 128, block * 4096)
client.flush()
END
check
stop_nbdkit
serve
check
stop_nbdkit
