#!/usr/bin/env bash
# What cannot be read or has gone astray is not taken for something that nobody needs: neither gc nor
# a removal deletes what it belongs to, and other volumes are used as ever.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd

head -c 1M /dev/urandom >"$tmp/golden.raw"
new_store
tplstore template import golden "$tmp/golden.raw" --format raw >/dev/null
tplstore template import other "$tmp/golden.raw" --format raw >/dev/null
tplstore volume create vm1 --template golden >/dev/null
tplstore volume create vm2 --size 8M >/dev/null
vm1=$store/volumes/$(cat "$store/names/vm1")
tplstore version create vm1 >/dev/null

still_there() {
    tplstore volume export vm1 "$tmp/out.raw" --force >/dev/null
    same "$tmp/golden.raw" "$tmp/out.raw"
    tplstore volume export vm2 "$tmp/out.raw" --force >/dev/null
}

echo "A template under a volume whose header cannot be read" >&2
cp "$vm1/header" "$tmp/header"
dd if=/dev/zero of="$vm1/header" bs=8192 count=1 conv=notrunc status=none
refuses 'which template it needs' tplstore template rm golden
refuses 'which template it needs' tplstore template rm other
refuses 'which template it needs' tplstore gc
cp "$tmp/header" "$vm1/header"
still_there

echo "A volume whose header cannot be read" >&2
tplstore volume create damaged --size 4M >/dev/null
damaged=$store/volumes/$(cat "$store/names/damaged")
serve
start_client write "$(uri damaged)"
dd if=/dev/zero of="$damaged/header" bs=8192 count=1 conv=notrunc status=none
refuses 'in use' tplstore volume rm damaged
refuses 'in use' tplstore volume rm damaged --force
kill_nbdkit
refuses 'volume rm damaged --force' tplstore volume rm damaged
[ -e "$damaged/data.1" ] || fail "a volume was removed that cannot be read"
tplstore volume rm damaged --force
[ ! -e "$damaged" ] || fail "a damaged volume stays, though it was to go"
still_there

echo "A volume whose lock is missing" >&2
mv "$vm1/lock" "$tmp/lock"
refuses 'in use by vm1' tplstore template rm golden
mv "$tmp/lock" "$vm1/lock"

echo "A template whose manifest is missing" >&2
mv "$store/templates/golden" "$tmp/golden.manifest"
refuses 'is missing' tplstore gc
refuses 'is missing' tplstore template rm other
mv "$tmp/golden.manifest" "$store/templates/golden"
still_there

echo "A name that leads elsewhere" >&2
cp "$store/names/vm2" "$tmp/name"
tr 0-9a-f 1-9a-f0 <"$tmp/name" >"$store/names/vm2"
refuses 'leads to no volume' tplstore gc
cp "$tmp/name" "$store/names/vm2"
still_there

echo "Names that are gone" >&2
mv "$store/names" "$tmp/names"
refuses 'is missing' tplstore gc
mv "$tmp/names" "$store/names"
still_there

echo "Two names of one volume" >&2
cp "$store/names/vm1" "$store/names/vm9"
refuses 'same volume' tplstore volume rm vm9
refuses 'same volume' tplstore volume rm vm1
refuses 'leads to the volume of' tplstore gc
rm "$store/names/vm9"
still_there

echo "A name that holds nothing" >&2
: >"$store/names/bad"
still_there
tplstore volume list | grep -q '^bad '
tplstore volume show vm1 >/dev/null
tplstore volume resize vm2 16M >/dev/null
refuses 'damaged' tplstore gc
tplstore volume create vm3 --size 4M >/dev/null
tplstore volume rm vm3
rm "$store/names/bad"

tplstore gc >/dev/null
tplstore template rm other >/dev/null
still_there

echo "A folder that leads to servers and is a link" >&2
mkdir "$tmp/elsewhere"
touch "$tmp/elsewhere/$(sed -E 's/^(.{8})(.{4})(.{4})(.{4})/\1-\2-\3-\4-/' /etc/machine-id).1"
rm -rf "$store/servers"
ln -s "$tmp/elsewhere" "$store/servers"
refuses 'servers' tplstore stats
[ -n "$(ls "$tmp/elsewhere")" ] || fail "a file outside the store was removed"
rm "$store/servers"

echo "Errors that cannot be printed, and standard files that are closed" >&2
status=0
tplstore volume show nosuch 2>/dev/full || status=$?
[ $status = 1 ] || fail "with a full stderr it ended with $status"
start_nbdkit server "$TPLSTORE_PLUGIN" "$store"
$python -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(bytes(4096), 0); h.flush()' "$(uri vm2)"
kill -9 "${nbdkit_pid[server]}"
wait_for_end "${nbdkit_pid[server]}" 10
status=0
(exec 0<&- 1>&- 2>&-; "$TPLSTORE" -v version create vm2) || status=$?
[ $status = 0 ] || fail "with closed standard files it ended with $status"
[ ! -s "$store/volumes/$(cat "$store/names/vm2")/lock" ] || fail "a message was written into a file of the store"
still_there

echo "A data file that was cut short" >&2
truncate -s 0 "$store/volumes/$(cat "$store/names/vm2")/data.1"
refuses 'data.1: has 0 bytes.*cut short' tplstore volume export vm2 "$tmp/out.raw" --force
tplstore volume export vm1 "$tmp/out.raw" --force >/dev/null
