#!/usr/bin/env bash
# A directory of kind local has all of the templates of an origin elsewhere: when that is unmounted,
# guests read on and volumes start. When it is back with damaged and missing segments, it is mended
# from the copies.
. "$(dirname "$0")/../functions.sh"
requires root loop mkfs.ext4 python-libnbd qemu-img jq

export TPLSTORE_TIER_STATE=$tmp/tier-state
truncate -s 300M "$tmp/origin.img"
mkfs.ext4 -q -m 0 "$tmp/origin.img"
mkdir "$tmp/origin" "$tmp/local"
mount -o loop "$tmp/origin.img" "$tmp/origin" || skip "cannot mount here"
on_exit umount -l "$tmp/origin"
mkdir "$tmp/origin/segments-of-vms"

tplstore init "$store" --segments "$tmp/origin/segments-of-vms" >/dev/null
make_image "$tmp/image" 128
tplstore template import first "$tmp/image"
[ ! -d "$store/segments" ] || equals "segments in the store" "$(find "$store/segments" -type f | wc -l)" 0
tplstore tier add "$tmp/local" --kind local
# What is imported with --eager is there at once; the other one comes by itself.
head -c 20M /dev/urandom >"$tmp/small"
tplstore template import second "$tmp/small" --eager
serve
segments=$(find "$tmp/origin/segments-of-vms/segments" -type f | wc -l)
has_all() {
    [ "$(find "$tmp/local/segments" -type f | wc -l)" = "$segments" ]
}
await 60 has_all || fail "$(tplstore tier list)"
tplstore volume create vm1 --template first

equal() {
    qemu-img compare -f raw -F raw "$(uri "$1")" "$2" >"$tmp/compare.out" || fail "$1: $(cat "$tmp/compare.out")"
}
umount -l "$tmp/origin"
echo 3 >/proc/sys/vm/drop_caches
equal vm1 "$tmp/image"
tplstore volume create vm2 --template second
equal vm2 "$tmp/small"
equal template/first "$tmp/image"
stop_nbdkit
serve
equal template/second "$tmp/small"
equal vm1 "$tmp/image"
# What has to have the origin says that it is not there.
refuses "origin|segments" tplstore template import third "$tmp/small"
refuses "origin|segments" tplstore template verify first

# Back, and damaged: a flipped byte, a cut end, a segment that is gone.
mount -o loop "$tmp/origin.img" "$tmp/origin"
mapfile -t of_origin < <(find "$tmp/origin/segments-of-vms/segments" -type f -size +1M | sort)
[ ${#of_origin[@]} -ge 3 ] || fail "too few segments"
cp "${of_origin[0]}" "$tmp/sound"
printf 'damage' | dd of="${of_origin[0]}" bs=1 seek=70000 conv=notrunc status=none
truncate -s -4096 "${of_origin[1]}"
rm "${of_origin[2]}"
for name in first second; do
    tplstore template verify "$name" >/dev/null 2>&1 || tplstore template verify "$name" --repair
    tplstore template verify "$name" >/dev/null
done
same "${of_origin[0]}" "$tmp/sound"
equals "segments" "$(find "$tmp/origin/segments-of-vms/segments" -type f | wc -l)" "$segments"

# Neither has it.
printf 'damage' | dd of="${of_origin[0]}" bs=1 seek=70000 conv=notrunc status=none
name=${of_origin[0]##*/}
printf 'damage' | dd of="$tmp/local/segments/${name:0:2}/$name" bs=1 seek=70000 conv=notrunc status=none
stop_nbdkit
damaged=0
for name in first second; do
    tplstore template verify "$name" >/dev/null 2>&1 && continue
    damaged=$((damaged + 1))
    refuses "no sound copies" tplstore template verify "$name" --repair
done
[ $damaged -gt 0 ] || fail "nothing was damaged"
