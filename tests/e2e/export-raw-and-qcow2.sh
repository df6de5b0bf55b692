#!/usr/bin/env bash
# Volumes, versions and templates can be exported to raw and qcow2 files that have the same content
# and occupy no more than their data does; a failed export leaves nothing behind.
. "$(dirname "$0")/../functions.sh"
requires qemu-img python3

make_image "$tmp/image.raw" 64
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden --size 80M
tplstore version create vm1 --name clean

tplstore volume export vm1 "$tmp/out.raw"
qemu-img compare -q -f raw -F raw "$tmp/out.raw" "$tmp/image.raw"
equals "size" "$(stat -c %s "$tmp/out.raw")" $((80 << 20))
[ "$(du -k "$tmp/out.raw" | cut -f1)" -le "$(($(du -k "$tmp/image.raw" | cut -f1) + 64))" ] ||
    fail "the export occupies more than the image"
tplstore volume export vm1 "$tmp/out.qcow2" --format qcow2
qemu-img check -q "$tmp/out.qcow2"
qemu-img compare -q -f qcow2 -F raw "$tmp/out.qcow2" "$tmp/out.raw"
tplstore template export golden "$tmp/golden.qcow2" --format qcow2
qemu-img compare -q -f qcow2 -F raw "$tmp/golden.qcow2" "$tmp/image.raw"
tplstore template export golden "$tmp/golden.raw"
same "$tmp/golden.raw" "$tmp/image.raw"
tplstore volume export vm1@clean "$tmp/clean.raw"
same "$tmp/clean.raw" "$tmp/out.raw"

# Not over what is there, and not half.
refuses "exist" tplstore volume export vm1 "$tmp/out.raw"
refuses "is not there" tplstore volume export vm9 "$tmp/nine.raw"
refuses "" tplstore volume export vm1 "$tmp/nowhere/out.raw"
[ ! -e "$tmp/nine.raw" ] || fail "a failed export left a file"

# While a server has it open the versions can be exported still.
serve
tplstore volume export vm1@clean "$tmp/again.raw"
same "$tmp/again.raw" "$tmp/out.raw"
stop_nbdkit
