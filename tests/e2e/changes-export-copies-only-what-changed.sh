#!/usr/bin/env bash
# The export VOLUME@A..B has as data exactly what differs, also where that is zeroes, and the rest is
# a hole: nbdinfo maps it, nbdcopy and qemu-img copy no more than that, and laid over version A it
# makes version B.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy nbdinfo qemu-img jq python3

make_image "$tmp/image.raw" 64
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
serve

change() {
    $python - "$(uri vm1)" <<END
import nbd, random, sys
chance = random.Random(1)
client = nbd.NBD()
client.connect_uri(sys.argv[1])
$1
client.flush()
END
}
change 'client.pwrite(chance.randbytes(1 << 20), 3 << 20)'
tplstore version create vm1
change 'client.pwrite(chance.randbytes(1 << 20), 5 << 20)'
tplstore version create vm1
change 'client.pwrite(chance.randbytes(8192), (20 << 20) + 4096)'
tplstore version create vm1
# From here on is what is to be seen.
change 'client.pwrite(chance.randbytes(65536), 1 << 20)
client.pwrite(chance.randbytes(512), (9 << 20) + 512)
client.pwrite(bytes(4096), (10 << 20))'
tplstore version create vm1
change 'client.pwrite(chance.randbytes(65536), (1 << 20) + 32768)
client.trim(1 << 20, 3 << 20)
client.zero(65536, 40 << 20)
client.pwrite(chance.randbytes(4096), (64 << 20) - 4096)'
tplstore volume resize vm1 80M
change 'client.pwrite(chance.randbytes(4096), 70 << 20)'
tplstore version create vm1
change 'client.pwrite(chance.randbytes(4 << 20), 24 << 20)'
stop_nbdkit

# map EXPORT: "offset length type", one per line, in KiB; 0 is data, 3 hole and zero.
map() {
    nbdinfo --map --json "$(uri "$1")" |
        jq -r '.[] | "\(.offset / 1024) \(.length / 1024) \(.type)"' |
        # Neighbours of one type count as one, however they were reported.
        awk 'NR == 1 || $3 != type { if (NR > 1) print start, length_, type; start = $1; length_ = 0; type = $3 }
             { length_ += $2 } END { print start, length_, type }'
}
# The bytes that clients of the server have read, when it has ended.
bytes_read() {
    sed -n -E 's/^read: [0-9]+ ops, [0-9.]+ s, ([0-9.]+) (bytes|[KMG]iB).*/\1\2/p' "$tmp/stats" |
        sed -e 's/bytes//' | numfmt --from=iec-i --suffix=B | tr -d B
}
start_counting() {
    rm -f "$tmp/stats"
    start_nbdkit server --filter=stats "$TPLSTORE_PLUGIN" "$store" "statsfile=$tmp/stats"
}
# few WHAT: clients have read no more than what changed, in requests of 256 KiB.
few() {
    stop_nbdkit
    local count
    count=$(bytes_read)
    echo "$1 has read $count bytes"
    [ "$count" -ge $((1 << 18)) ] || fail "$1 has read too little: $(cat "$tmp/stats")"
    [ "$count" -le $((5 << 20)) ] || fail "$1 has read $count bytes for less than 2 MiB of changes"
}

start_counting
actual=$(map vm1@3..5)
expected="0 1024 3
1024 96 0
1120 1952 3
3072 1024 0
4096 5120 3
9216 4 0
9220 1020 3
10240 4 0
10244 30716 3
40960 64 0
41024 24508 3
65532 4 0
65536 6144 3
71680 4 0
71684 10236 3"
[ "$actual" = "$expected" ] || fail "the map is"$'\n'"$actual"$'\n'"instead of"$'\n'"$expected"
equals "the sum of the tool's ranges" \
    "$(tplstore version diff vm1 3 5 --json | jq '[.ranges[].length / 1024] | add')" \
    $((96 + 1024 + 4 + 4 + 64 + 4 + 4))
equals "changes since itself" "$(map vm1@5..5)" "0 81920 3"

nbdcopy "$(uri vm1@3..5)" "$tmp/changes.raw"
few nbdcopy
start_counting
qemu-img convert -f raw -O qcow2 "$(uri vm1@3..5)" "$tmp/changes.qcow2"
few qemu-img
qemu-img compare -q "$tmp/changes.raw" "$tmp/changes.qcow2" || fail "the two copies differ"
occupied=$(($(stat -c '%b * 512' "$tmp/changes.raw")))
[ "$occupied" -le $((2 << 20)) ] || fail "the copy occupies $occupied bytes"

# The changes laid over the older version are the newer one, and the other way round.
serve
nbdcopy "$(uri vm1@3)" "$tmp/3.raw"
nbdcopy "$(uri vm1@5)" "$tmp/5.raw"
lay_over() {
    $python - "$(uri "$1")" "$2" "$3" <<'END'
import nbd, sys
client = nbd.NBD()
client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
client.connect_uri(sys.argv[1])
assert client.is_read_only()
disk = bytearray(open(sys.argv[2], "rb").read())
size = client.get_size()
disk = disk[:size] + bytes(size - min(size, len(disk)))
def extents(context, offset, entries, error):
    for length, flags in zip(entries[::2], entries[1::2]):
        found = client_data.pread(length, offset)
        if flags & nbd.STATE_HOLE:
            assert found == bytes(length), f"a hole at {offset} is not zero"
        else:
            disk[offset:offset + length] = found
        offset += length
        done[0] = offset
    return 0
client_data = nbd.NBD()
client_data.connect_uri(sys.argv[1])
done = [0]
while done[0] < size:
    client.block_status(size - done[0], done[0], extents)
open(sys.argv[3], "wb").write(disk)
END
}
lay_over vm1@3..5 "$tmp/3.raw" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/5.raw"
lay_over vm1@5..3 "$tmp/5.raw" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/3.raw"

refuses "." qemu-img map "$(uri vm1@3..9)"
refuses "." nbdcopy "$(uri vm1@3..current)" "$tmp/out.raw"
stop_nbdkit
