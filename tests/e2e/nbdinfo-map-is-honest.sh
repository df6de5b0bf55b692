#!/usr/bin/env bash
# base:allocation says "hole" only where zeroes are read and nothing is stored, and "data" for all
# template data and all that was written.
. "$(dirname "$0")/../functions.sh"
requires nbdinfo jq python3 python-libnbd

# 16 MiB: 4 of data, 4 of holes, 4 of data, 4 of holes.
truncate -s 16M "$tmp/image.raw"
for at in 0 8; do
    dd if=/dev/urandom of="$tmp/image.raw" bs=1M count=4 seek=$at conv=notrunc status=none
done
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
tplstore volume create empty --size 1T
serve

# map EXPORT: "offset length type", one per line, in KiB; 3 is hole and zero.
map() {
    nbdinfo --map --json "$(uri "$1")" |
        jq -r '.[] | "\(.offset / 1024) \(.length / 1024) \(.type)"' |
        # Neighbours of one type count as one, however they were reported.
        awk 'NR == 1 || $3 != type { if (NR > 1) print start, length_, type; start = $1; length_ = 0; type = $3 }
             { length_ += $2 } END { print start, length_, type }'
}
expect() {
    local actual
    actual=$(map "$1")
    [ "$actual" = "$2" ] || fail "the map of $1 is"$'\n'"$actual"$'\n'"instead of"$'\n'"$2"
}

expect template/golden $'0 4096 0\n4096 4096 3\n8192 4096 0\n12288 4096 3'
expect vm1 $'0 4096 0\n4096 4096 3\n8192 4096 0\n12288 4096 3'
expect empty "0 $((1 << 30)) 3"

$python - "$(uri vm1)" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"\x01" * 65536, 5 << 20)         # into a hole
client.pwrite(b"\x02" * 512, (13 << 20) + 512)  # less than a block
client.trim(1 << 20, 0)                         # template data
client.zero(1 << 20, 9 << 20)
client.trim(32768, (5 << 20) + 16384)           # some of what was written
client.flush()
END
expect vm1 "0 1024 3
1024 3072 0
4096 1024 3
5120 16 0
5136 32 3
5168 16 0
5184 3008 3
8192 1024 0
9216 1024 3
10240 2048 0
12288 1024 3
13312 4 0
13316 3068 3"

# The map of a version stays, whatever happens to the volume after it.
tplstore version create vm1
before=$(map vm1@1)
expect vm1 "$before"
$python -c 'import nbd, sys; c = nbd.NBD(); c.connect_uri(sys.argv[1]); c.trim(16 << 20, 0); c.flush()' \
    "$(uri vm1)"
expect vm1 "0 16384 3"
expect vm1@1 "$before"
expect template/golden $'0 4096 0\n4096 4096 3\n8192 4096 0\n12288 4096 3'
stop_nbdkit
