#!/usr/bin/env bash
# A fork of a version is there at once, also while a guest writes its parent, and occupies next to
# nothing; neither sees what is written to the other; and what forks need outlives the parent, until
# the last of them is gone.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy jq python3

make_image "$tmp/image.raw" 32
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden --size 96M
serve

# fill VOLUME SEED MIB: so many MiB of data of its own, in pieces all over it.
fill() {
    $python - "$(uri "$1")" "$2" "$3" <<'END'
import nbd, random, sys
chance = random.Random(sys.argv[2])
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for place in chance.sample(range(client.get_size() >> 18), int(sys.argv[3]) * 4):
    client.pwrite(chance.randbytes(1 << 18), place << 18)
client.trim(1 << 20, chance.randrange(client.get_size() >> 20) << 20)
client.flush()
END
}
copy() {
    nbdcopy "$(uri "$1")" "$2"
}

fill vm1 one 24
tplstore version create vm1 --name base
fill vm1 two 8
copy vm1@base "$tmp/base.raw"
$python "$(dirname "$0")/wire_model.py" "$(uri vm1)" 2500 1 >"$tmp/guest.out" 2>&1 &
guest=$!
on_exit kill -9 $guest
await 20 is_attached vm1 || fail "no guest"

times_us=()
for number in {1..7}; do
    begin=${EPOCHREALTIME/./}
    tplstore volume create "fork$number" --from vm1@base >/dev/null
    times_us+=($((${EPOCHREALTIME/./} - begin)))
done
median_us=$(printf '%s\n' "${times_us[@]}" | sort -n | sed -n 4p)
echo "median of ${#times_us[@]} forks ${median_us} us, the tool's start included"
[ "$median_us" -lt 500000 ] || fail "that takes too long"
occupied=$(tplstore volume list --json |
    jq 'map(select(.name | startswith("fork")) | .unique_bytes) | max')
[ "$occupied" -lt 1048576 ] || fail "a new fork occupies $occupied bytes"
shared=$(tplstore volume show fork1 --json | jq .shared_bytes)
[ "$shared" -ge $((20 << 20)) ] || fail "a fork shares no more than $shared bytes"

# Each goes its own way, forks of forks too.
fill fork1 three 4
copy fork1 "$tmp/fork1.raw"
! cmp -s "$tmp/fork1.raw" "$tmp/base.raw" || fail "nothing was written to fork1"
tplstore version create fork1 >/dev/null
number=$(tplstore version list fork1 --json | jq '.[0].number')
tplstore volume create grandchild --from "fork1@$number"
fill grandchild four 4
copy grandchild "$tmp/grandchild.raw"
wait $guest || fail "the parent's guest: $(cat "$tmp/guest.out")"
check() {
    copy fork1 "$tmp/out.raw" && same "$tmp/out.raw" "$tmp/fork1.raw"
    copy fork2 "$tmp/out.raw" && same "$tmp/out.raw" "$tmp/base.raw"
    copy grandchild "$tmp/out.raw" && same "$tmp/out.raw" "$tmp/grandchild.raw"
}
check
copy vm1@base "$tmp/out.raw" && same "$tmp/out.raw" "$tmp/base.raw"

# The parent goes, the version first.
for number in 3 4 5 6 7; do tplstore volume rm "fork$number"; done
tplstore version rm vm1 base | tee "$tmp/rm.out"
grep -q 'kept for forks fork1 and fork2' "$tmp/rm.out" || fail "it does not say what keeps it"
refuses "no version" tplstore volume export vm1@base "$tmp/gone.raw"
check
await 20 is_free vm1
tplstore volume rm vm1 | tee "$tmp/rm.out"
grep -q fork1 "$tmp/rm.out" || fail "it does not say what keeps it"
refuses "is not there" tplstore volume show vm1
refuses "in use" tplstore template rm golden
check
stop_nbdkit
refuses "in use" tplstore template rm golden
tplstore gc
serve
check

# The name is free for another volume, which has nothing to do with it.
tplstore volume create vm1 --size 1M
check
tplstore volume rm vm1

# What nobody needs any more goes with the last fork.
tplstore volume rm fork2
tplstore volume rm fork1
copy grandchild "$tmp/out.raw" && same "$tmp/out.raw" "$tmp/grandchild.raw"
await 20 is_free grandchild
equals "volumes kept for it" "$(count_volumes)" 3
tplstore volume rm grandchild
equals "what is left" "$(ls "$store/volumes")" ""
tplstore template rm golden
stop_nbdkit
