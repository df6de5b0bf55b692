#!/usr/bin/env bash
# io=direct bypasses the page cache and changes nothing else: any alignment, versions, a kill.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd python3 nbdcopy

# Sparse on purpose: a hole of it must not be data.
make_image "$tmp/image.raw" 24
dd if="$tmp/image.raw" of="$tmp/probe" iflag=direct bs=4096 count=1 2>/dev/null ||
    skip "the file system of $tmp knows no O_DIRECT"
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create clone --template golden
serve io=direct
for round in 1 2; do
    $python "$(dirname "$0")/wire_model.py" "$(uri clone)" 3000
    nbdcopy "$(uri clone)" "$tmp/$round.raw"
    tplstore version create clone
done
kill_nbdkit
# What one mode wrote the other reads.
serve io=buffered
for round in 1 2; do
    nbdcopy "$(uri clone@$round)" "$tmp/out.raw"
    same "$tmp/out.raw" "$tmp/$round.raw"
done
$python "$(dirname "$0")/wire_model.py" "$(uri clone)" 1000
stop_nbdkit
serve io=direct
$python "$(dirname "$0")/wire_model.py" "$(uri clone)" 1000
stop_nbdkit
