#!/usr/bin/env bash
# Any request at any alignment does what NBD says: on a volume of a template, on an empty one, and on
# one whose size is no multiple of the block's; with versions made meanwhile.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd python3 nbdcopy

make_image "$tmp/image.raw" 24
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create clone --template golden
tplstore volume create odd --size $((9 * 1048576 + 4096 * 3 + 512))
serve

model=$(dirname "$0")/wire_model.py
for volume in clone odd; do
    for round in 1 2 3; do
        $python "$model" "$(uri $volume)" 3000
        nbdcopy "$(uri $volume)" "$tmp/$volume-$round.raw"
        tplstore version create $volume
    done
    # While the model runs, versions are made: they change nothing that it reads.
    $python "$model" "$(uri $volume)" 4000 &
    model_pid=$!
    while ! has_ended $model_pid; do
        tplstore version create $volume >/dev/null
    done
    wait $model_pid || fail "with versions made meanwhile"
    for round in 1 2 3; do
        nbdcopy "$(uri $volume@$round)" "$tmp/version.raw"
        same "$tmp/version.raw" "$tmp/$volume-$round.raw"
    done
done
nbdcopy "$(uri template/golden)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"
stop_nbdkit
