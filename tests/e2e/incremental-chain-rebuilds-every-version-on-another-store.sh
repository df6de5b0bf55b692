#!/usr/bin/env bash
# A whole version and then incremental files carry every version of a volume to another store, byte
# for byte, with sizes, names, notes and branches, while a guest has the volume; each file is about
# as large as what changed; a damaged one, or an import that is killed, leaves the other store as it
# was.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy qemu-img jq python3

make_image "$tmp/image.raw" 24
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
serve

# change SEED: random writes, zeroes and trims, 2 MiB of data at most.
change() {
    $python - "$(uri vm1)" "$1" <<'END'
import nbd, random, sys
chance = random.Random(sys.argv[2])
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for _ in range(100):
    length = chance.randrange(1, 20000)
    offset = chance.randrange(client.get_size() - length)
    kind = chance.random()
    if kind < 0.7:
        client.pwrite(chance.randbytes(length), offset)
    elif kind < 0.85:
        client.zero(length, offset)
    else:
        client.trim(length, offset)
client.flush()
END
    await 20 is_free vm1
}

tplstore version create vm1 --name installed --note "from the template alone"
change 2
tplstore version create vm1 --note "Größer: ✓"
tplstore volume resize vm1 32M
change 3
tplstore version create vm1 --name grown
change 4
tplstore version create vm1
tplstore version rollback vm1 2 >/dev/null
change 6
tplstore version create vm1 --name branch
change 7

# A guest writes while the versions are exported.
$python "$(dirname "$0")/wire_model.py" "$(uri vm1)" 2000 1 >"$tmp/guest.out" 2>&1 &
guest=$!
on_exit kill -9 $guest
await 20 is_attached vm1 || fail "no guest"
tplstore version create vm1 >/dev/null
# Version 5 is what the rollback froze: like version 4.
equals "parents" "$(tplstore version list vm1 --json | jq -c 'map(.parent)')" "[null,1,2,3,4,2,6,7]"
parents=([2]=1 [3]=installed [4]=3 [5]=4 [6]=2 [7]=branch)
tplstore volume export vm1@1 "$tmp/1.full" --format increment
for number in 2 3 4 5 6 7; do
    tplstore volume export "vm1@$number" "$tmp/$number.part" --since "${parents[$number]}"
done
equals "nothing changed" "$(tplstore volume export vm1@5 "$tmp/none" --since 4 --json | jq .data_bytes)" 0
for number in 2 3 4 6; do
    bytes=$(stat -c %s "$tmp/$number.part")
    [ "$bytes" -le $((5 << 20)) ] || fail "$number.part has $bytes bytes"
done
for number in 1 2 3 4 5 6 7; do
    tplstore volume export "vm1@$number" "$tmp/$number.raw" >/dev/null
done
wait $guest || fail "the guest: $(cat "$tmp/guest.out")"
stop_nbdkit

# The other store; numbers are its own.
first=$store
store=$tmp/other
export TPLSTORE_STORE=$store
tplstore init "$store"
tplstore volume import copy "$tmp/1.full"
uuid=$(tplstore -s "$first" volume show vm1 --json | jq -r .uuid)
# number_of N: what version N of vm1 is here.
number_of() {
    tplstore version list copy --json |
        jq --arg origin "$uuid@$1" '.[] | select(.origin == $origin) | .number'
}
bases=([2]=1 [3]=1 [4]=3 [5]=4 [6]=2 [7]=6)
for number in 2 3 4 5 6 7; do
    tplstore volume import copy "$tmp/$number.part" --base "$(number_of "${bases[$number]}")"
done
origins() {
    tplstore -s "$1" version list "$2" --json |
        jq -c 'map(select(.origin | startswith($uuid)) | [.origin, .name, .note, .size])' --arg uuid "$3"
}
equals "the versions" "$(origins "$store" copy "$uuid")" \
    "$(origins "$first" vm1 "$uuid" | jq -c '.[:7]')"

serve
for number in 1 2 3 4 5 6 7; do
    here=$(number_of "$number")
    tplstore volume export "copy@$here" "$tmp/out.raw" --force >/dev/null
    same "$tmp/out.raw" "$tmp/$number.raw"
    qemu-img compare -q -f raw "$(uri "copy@$here")" "$tmp/$number.raw" || fail "version $number"
done
stop_nbdkit

# What goes wrong changes nothing.
before=$(tplstore version list copy --json | jq -c 'map([.number, .origin])')
tplstore volume export copy "$tmp/before.raw" >/dev/null
unchanged() {
    equals "versions $1" "$(tplstore version list copy --json | jq -c 'map([.number, .origin])')" \
        "$before"
    tplstore volume export copy "$tmp/out.raw" --force >/dev/null
    same "$tmp/out.raw" "$tmp/before.raw"
}
last=$(number_of 7)
size=$(stat -c %s "$tmp/3.part")
for at in 5 200 $((size / 2)) $((size - 20)); do
    cp "$tmp/3.part" "$tmp/damaged"
    printf '\xa5\x5a' | dd of="$tmp/damaged" bs=1 seek=$at conv=notrunc status=none
    cmp -s "$tmp/damaged" "$tmp/3.part" && fail "nothing was damaged"
    refuses "damaged" tplstore volume import copy "$tmp/damaged" --base 1
    head -c "$at" "$tmp/3.part" >"$tmp/damaged"
    refuses "damaged|is not an incremental" tplstore volume import copy "$tmp/damaged" --base 1
done
refuses "not the one" tplstore volume import copy "$tmp/2.part" --base "$last"
unchanged "after damaged files"

# A whole version whose import is killed leaves no volume.
$python - "$tmp/large" <<'END'
import random, sys
open(sys.argv[1], "wb").write(random.Random(1).randbytes(64 << 20))
END
tplstore template import large "$tmp/large" >/dev/null
tplstore volume create large --template large >/dev/null
tplstore version create large >/dev/null
tplstore volume export large@1 "$tmp/large.full" --format increment >/dev/null
interrupted=0
for moment in 0.005 0.010 0.015 0.020 0.025 0.030 0.040 0.050; do
    timeout --foreground --signal=KILL $moment "$TPLSTORE" volume import whole "$tmp/large.full" \
        >/dev/null 2>&1 || interrupted=$((interrupted + 1))
    # It is there when it is whole, and not before.
    if tplstore volume show whole >/dev/null 2>&1; then
        tplstore volume export whole@1 "$tmp/out.raw" --force >/dev/null
        same "$tmp/out.raw" "$tmp/large"
        tplstore volume rm whole
    fi
done
echo "$interrupted imports of a whole version were killed"
[ $interrupted -gt 0 ] || fail "no import was killed"
tplstore gc
equals "remnants" "$(count_volumes)" "$(tplstore volume list --json | jq length)"

# Killed at some moment of the import: the next import of the same file does it.
killed=0
for moment in 0.004 0.008 0.012 0.016 0.020 0.030; do
    timeout --foreground --signal=KILL $moment "$TPLSTORE" volume import copy "$tmp/7.part" \
        --base "$(number_of 6)" >/dev/null 2>&1 || killed=$((killed + 1))
    mapfile -t copies < <(number_of 7)
    [ ${#copies[@]} = 0 ] || tplstore version rm copy "${copies[@]}" >/dev/null
    tplstore volume import copy "$tmp/7.part" --base "$(number_of 6)" --json >"$tmp/imported"
    here=$(jq .number "$tmp/imported")
    tplstore volume export "copy@$here" "$tmp/out.raw" --force >/dev/null
    same "$tmp/out.raw" "$tmp/7.raw"
    refuses "not the one" tplstore volume import copy "$tmp/2.part" --base "$here"
done
tplstore volume export "copy@$(number_of 6)" "$tmp/out.raw" --force >/dev/null
same "$tmp/out.raw" "$tmp/6.raw"
echo "$killed imports were killed"
[ $killed -gt 0 ] || fail "no import was killed"
