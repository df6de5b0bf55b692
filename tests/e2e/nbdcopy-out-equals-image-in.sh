#!/usr/bin/env bash
# What comes out of a template, of a volume made from it, and of a volume that was copied into, is
# byte for byte what went in; after the server has been started again too.
. "$(dirname "$0")/../functions.sh"
requires nbdcopy python3

make_image "$tmp/image.raw" 96
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create clone --template golden
tplstore volume create copied --size 96M
tplstore volume create larger --template golden --size 160M
serve

check() {
    local name
    for name in template/golden clone copied; do
        nbdcopy "$(uri $name)" "$tmp/out.raw"
        same "$tmp/out.raw" "$tmp/image.raw"
    done
    nbdcopy "$(uri larger)" "$tmp/out.raw"
    equals "size of the larger volume" "$(stat -c %s "$tmp/out.raw")" $((160 << 20))
    cmp -n $((96 << 20)) "$tmp/out.raw" "$tmp/image.raw"
    cmp -n $((64 << 20)) -i $((96 << 20)):0 "$tmp/out.raw" /dev/zero
}

nbdcopy --flush "$tmp/image.raw" "$(uri copied)"
check
stop_nbdkit
serve
check

# A copy of zeroes over data leaves zeroes.
truncate -s 96M "$tmp/zeroes.raw"
nbdcopy --flush --destination-is-zero "$tmp/zeroes.raw" "$(uri clone)"
nbdcopy "$(uri clone)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"  # told that it is zero, nbdcopy writes nothing
nbdcopy --flush "$tmp/zeroes.raw" "$(uri clone)"
nbdcopy "$(uri clone)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/zeroes.raw"
nbdcopy "$(uri template/golden)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"
stop_nbdkit
