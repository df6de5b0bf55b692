#!/usr/bin/env bash
# `tplstore check` finds each fault that is planted in a sound store, by the line that the table
# below has for it, changes nothing, and --repair mends what the table says it does, so that all
# disks have what they had.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd

# --- a store with something of everything, all closed

good=$tmp/good
store=$good
export TPLSTORE_STORE=$good
head -c 6M /dev/urandom >"$tmp/golden.raw"
head -c 1M /dev/urandom >"$tmp/other.raw"
new_store
tplstore template import golden "$tmp/golden.raw" --format raw >/dev/null
tplstore template import other "$tmp/other.raw" --format raw >/dev/null
tplstore volume create vm1 --template golden >/dev/null
tplstore volume create vm2 --size 6M >/dev/null
serve
# scribble EXPORT BYTE: 64 KiB of it here and there, and something of it alone.
scribble() {
    $python - "$(uri "$1")" "$2" <<'END'
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
byte = int(sys.argv[2])
for i in range(6):
    client.pwrite(bytes([byte]) * 65536, i * 720896 + byte * 4096)
client.flush()
client.shutdown()
END
}
for version in 1 2 3; do
    scribble vm1 $version
    scribble vm2 $((version + 100))
    tplstore version create vm1 >/dev/null
    tplstore version create vm2 >/dev/null
done
stop_server
# The parent as it was before it had a fork, and without the version of the fork.
cp -a "$good" "$tmp/before"
cp -a "$good" "$tmp/without"
tplstore -s "$tmp/without" version rm vm2 2
tplstore volume create fork --from vm2@2 >/dev/null
serve
scribble fork 55
tplstore version create fork >/dev/null
scribble vm1 4
scribble vm2 104
stop_server
tplstore version rm vm1 2 >/dev/null
tplstore check >/dev/null || fail "a sound store is said to have faults: $(tplstore check)"

uuid1=$(cat "$good/names/vm1")
uuid2=$(cat "$good/names/vm2")
uuidf=$(cat "$good/names/fork")
template=$(tplstore template show golden --json | grep -o '"uuid": "[^"]*' | cut -d '"' -f 4)
segment=$(cd "$good" && find segments -type f -size +3M | head -1)
small=$(cd "$good" && find segments -type f -size -1500k | head -1)

# --- what the table's commands use; they run in the store

v1=volumes/$uuid1 v2=volumes/$uuid2 vf=volumes/$uuidf
# flip FILE OFFSET: another byte there.
flip() {
    local byte
    byte=$(od -A n -t u1 -j "$2" -N 1 "$1")
    printf "%b" "\\x$(printf %x $((byte ^ 255)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
# of: the last one of these numbered files.
last() { printf '%s\n' "$@" | sort -t . -k 2 -n | tail -1; }
# Flips a byte of the first node that the log has of the tree.
flip_node() {
    local at
    at=$($python - "$1" <<'END'
import struct, sys
log = open(sys.argv[1], "rb").read()
at = 4096
while log[at:at + 4] == b"TFRM":
    length, kind = struct.unpack_from("<I", log, at + 4)[0], struct.unpack_from("<H", log, at + 52)[0]
    if kind == 3:
        print(at + 56 + 9)
        break
    at += length
END
    )
    flip "$1" "$at"
}
epoch_of() { od -A n -t u8 -j 240 -N 8 "$1/header" | tr -d ' '; }

# --- the table: what is done | what check must print of it | and whether it is mended
#
# UUID1, UUID2, UUIDF stand for the volumes, SEGMENT and SMALL for segments, TEMPLATE for a template;
# "lost:" lines stand behind a fault, here joined to it with a blank.
faults() {
    cat <<'END'
flip $v1/header 100 | volume vm1: volumes/UUID1/header: one of its two slots fails its checksum; the other one serves | mended
flip $v1/header 100; flip $v1/header 5000 | volume vm1: volumes/UUID1/header: damaged: neither of its two slots passes its checksum | no
rm $v1/header | volume vm1: volumes/UUID1/header: is missing, so the volume cannot be opened: .* | no
cp $v2/header $v1/header | volume vm1: volumes/UUID1/header: .*of volume UUID2.* | no
rm $v1/lock | volume vm1: volumes/UUID1/lock: is missing, so nobody can tell whether the volume is in use: .* | no
rm $v1/readers | volume vm1: volumes/UUID1/readers: is missing, so nobody can tell .* | no
: >$v1/owner.1 | volume vm1: volumes/UUID1/owner.1: a claim that is stale: the header is at epoch [0-9]+ | mended
: >$v1/owner.$(($(epoch_of $v1) + 1)) | volume vm1: volumes/UUID1/owner.[0-9]+: a claim that nothing came of: who made it has ended | mended
flip $v1/map 5000 | nothing | no
flip $v1/map 30 | volume vm1: volumes/UUID1/map: one of its two slots fails its checksum | mended
flip $v1/map 30; flip $v1/map 4126 | volume vm1: volumes/UUID1/map: damaged: neither of its two slots passes its checksum | no
rm $v1/map | volume vm1: .*volumes/UUID1/map: .*No such file.* | no
cp $v2/map $v1/map | volume vm1: volumes/UUID1/map: .*of volume UUID2.* | no
flip $v1/map.1 20 | volume vm1: volumes/UUID1/map.1: damaged: the header of the map log fails its checksum | no
rm $v1/map.1 | volume vm1: .*volumes/UUID1/map.1: damaged: it is missing | no
truncate -s 6000 $v1/map.1 | volume vm1: volumes/UUID1/map.1: damaged: the map log is broken at byte .* | no
flip_node $v1/map.1 | volume vm1: volumes/UUID1/map: .*map.1: damaged.* lost: vm1.* | no
cp $v1/map.1 $v1/map.2 | volume vm1: volumes/UUID1/map.2: is a map log that does not count: a compaction was interrupted | mended
rm $v1/data.1 | volume vm1: volumes/UUID1/data.1: is missing: .* of the volume are lost; restore them from a backup lost: vm1@1, bytes 4096 to .* lost: vm1, bytes .* | no
truncate -s 425984 $v2/data.1 | volume vm2: volumes/UUID2/data.1: was cut short, to 425984 bytes: .* are lost; restore them from a backup lost: vm2@1, bytes .* | no
truncate -s 425984 $v2/data.1 | volume fork: volumes/UUID2/data.1: was cut short, to 425984 bytes: .* lost: fork@3, bytes .* | no
truncate -s 6M $v2/data.9 | volume vm2: volumes/UUID2/data.9: is of no version of the volume | mended
echo x >$v2/data.9 | volume vm2: volumes/UUID2/data.9: has data, though the last version is 4: .* | no
cp $v1/data.1 $vf/data.1 | volume fork: volumes/UUIDF/data.1: is of no version of the volume | mended
flip $v2/data.2 5505024 | volume vm2: volumes/UUID2/data.2: 4.0 KiB in it are of no version | mended
rm -r $v2 names/vm2 | volume fork: volumes/UUID2: is missing, and the volume was forked from its version 2: what it shares with that is lost | no
rm -r $vf names/fork | volume vm2: volumes/UUID2/map: keeps version 2 for a fork that is not there, UUIDF | mended
rm -r $v2; cp -a $tmp/before/$v2 $v2 | volume fork: volumes/UUID2: does not keep its version 2 for the volume, which was forked from it | mended
rm -r $v2; cp -a $tmp/without/$v2 $v2 | volume fork: volumes/UUID2: its version 2, which the volume was forked from, is not there any more: .* | no
echo nobody >names/vm1 | volume vm1: names/vm1: holds no uuid, so nobody can tell which volume it is: .* | no
rm -r $v1 | volume vm1: names/vm1: leads to no volume: volumes/UUID1 is not there; put that back, or remove the name | no
cp names/vm1 names/vm9 | volume vm9: names/vm9: leads to the volume of vm1 too: one of the two is damaged | no
rm -r names | store: names: is missing or empty, though there are volumes: put it back | no
rm names/vm1 | volume UUID1: volumes/UUID1: has no name: 'tplstore gc' removes it, .* | no
mkdir volumes/$template; cp $v1/data.1 volumes/$template | volume .*: volumes/TEMPLATE: has neither a name nor a header: creating or removing a volume was interrupted | mended
tplstore volume create new --size 8M >/dev/null; rm names/new | volume .*: volumes/.*: has no name, and nobody has ever written it: creating it was interrupted | mended
rm templates/golden | volume vm1: volumes/UUID1/header: its template golden is missing: .* | no
mv templates/other templates/golden | volume vm1: .*template golden.* | no
flip templates/golden 150 | template golden: templates/golden: damaged: the manifest's checksum does not match; .* lost: template/golden | no
rm $segment | template golden: SEGMENT: a template needs this segment and it is missing; .* lost: template/golden, bytes .* | no
flip $small $(($(stat -c %s $small) - 500)) | template .*: SMALL: damaged.* lost: template/.*, bytes .* | no
truncate -s -16 $segment | template golden: SEGMENT: damaged: has [0-9]+ bytes instead of [0-9]+; .* lost: .* | no
flip $segment 8193; data=--data | template golden: SEGMENT: damaged: 1 of 1024 blocks do not have their hash lost: template/golden, bytes [0-9]+ to [0-9]+ \(4.0 KiB\) | no
cp $segment ${segment%/*}/${segment:9:2}000000000000000000000000000000 | store: segments/.*: 1 of the segments are of no template | mended
mkdir -p imports; : >imports/golden | import golden: imports/golden: is of an import that was complete | mended
flip boot/$template.tables 20 | template .*: boot/TEMPLATE.tables: has tables that are not those of the template's segments | mended
echo x >boot/$template.1 | store: boot/TEMPLATE.1: damaged.* | mended
echo x >boot/$uuid1.1 | store: boot/UUID1.1: is of a template that is not there | mended
echo x >$v1/boot.1 | volume vm1: volumes/UUID1/boot.1: damaged.* | mended
echo x >$v1/pack.1 | volume vm1: volumes/UUID1/pack.1: damaged.* | mended
mkdir -p packs; echo x >packs/$template.1 | store: packs/TEMPLATE.1: damaged.* | mended
mkdir -p tables; head -c 100 /dev/zero >tables/1 | store: tables/1: has a table that is none of its segment | mended
mkdir -p servers; : >servers/$(sed -E 's/^(.{8})(.{4})(.{4})(.{4})/\1-\2-\3-\4-/' /etc/machine-id).1 | nothing | no
rm gc.lock | store: gc.lock: is missing, so that nothing can be imported or created | mended
echo "$uuid1 /nowhere/segments" >origin.1 | store: .*/nowhere/segments.* | no
flip store 100 | store: .*: damaged: its identity .* | no
END
}

# --- each of them in a copy

# Whatever is written to a file, or in a folder, changes one of these times.
state_of() { (cd "$1" && find . -printf '%p %i %s %b %T@ %C@\n' | sort); }
# What check prints, with what is lost on the line of its fault.
joined() { sed -e ':a' -e 'N' -e '$!ba' -e 's/\n *lost:/ lost:/g' "$1" | sed -E 's/ \[(--repair|repaired)\]//'; }

disks="vm1 vm1@1 vm2@2 vm2 fork@3"
export_all() {
    local disk
    for disk in $disks; do
        tplstore -s "$1" volume export "$disk" "$tmp/out.raw" --force >/dev/null 2>&1 || continue
        echo "$disk $(sha256sum <"$tmp/out.raw")"
    done
}
expected=$(export_all "$good")
[ "$(wc -l <<<"$expected")" = 5 ] || fail "not all disks can be exported: $expected"

planted=0 mended=0 complaints=0
complain() {
    echo "$*" >&2
    complaints=$((complaints + 1))
}
while IFS='|' read -r command pattern is_mended; do
    command=${command% } pattern=${pattern# } pattern=${pattern% } is_mended=${is_mended# }
    pattern=$(sed -e "s/UUID1/$uuid1/g; s/UUID2/$uuid2/g; s/UUIDF/$uuidf/g; s/TEMPLATE/$template/g" \
        -e "s#SEGMENT#$segment#g; s#SMALL#$small#g" <<<"$pattern")
    rm -rf "$tmp/work"
    cp -a --sparse=always "$good" "$tmp/work"
    store=$tmp/work
    export TPLSTORE_STORE=$store
    data=
    cd "$store"
    eval "$command"
    cd "$tmp"
    before=$(state_of "$store")
    status=0
    timeout 20 "$TPLSTORE" check $data >"$tmp/out" 2>"$tmp/err" || status=$?
    [ "$(state_of "$store")" = "$before" ] || complain "$command: check changes something"
    if [ "$pattern" = nothing ]; then
        [ $status = 0 ] || complain "$command: ends with $status: $(cat "$tmp/out")"
        continue
    fi
    [ $status = 1 ] || complain "$command: ends with $status: $(cat "$tmp/out" "$tmp/err")"
    joined "$tmp/out" | grep -qE -x -- "$pattern" ||
        complain "$command: check does not say '$pattern' but: $(joined "$tmp/out")"
    planted=$((planted + 1))

    # Repair mends it, or leaves all as it is.
    is_hopeless=1
    ! grep -q '\[--repair\]' "$tmp/out" || is_hopeless=
    status=0
    timeout 20 "$TPLSTORE" check --repair $data >"$tmp/out" 2>"$tmp/err" || status=$?
    if [ "$is_mended" = no ]; then
        [ $status = 1 ] || complain "$command: repair ends with $status: $(cat "$tmp/out")"
        [ -z "$is_hopeless" ] || [ "$(state_of "$store")" = "$before" ] ||
            complain "$command: repair changes something, and mends nothing"
        continue
    fi
    [ $status = 0 ] || complain "$command: repair ends with $status: $(cat "$tmp/out" "$tmp/err")"
    grep -q '\[repaired\]' "$tmp/out" || complain "$command: nothing is repaired: $(cat "$tmp/out")"
    tplstore check $data >"$tmp/out" || complain "$command: behind it there is $(cat "$tmp/out")"
    after=$(export_all "$store")
    [[ "$command" == *names/fork* || "$command" == *before* ]] || [ "$after" = "$expected" ] ||
        complain "$command: disks differ: $after"
    mended=$((mended + 1))
done < <(faults)
[ $complaints = 0 ] || fail "$complaints of the faults"
[ $planted -ge 30 ] || fail "only $planted faults were planted"
echo "$planted faults found, $mended of them mended"
