#!/usr/bin/env bash
# Flattening gives a fork its own copy, also while a guest writes it, and changes no byte of any of its
# versions; after it the parent's removed versions give back their space, and the parent can go
# without a trace. Interrupted or killed, it goes on when it is asked again.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy jq python3

new_store
tplstore volume create vm1 --size 32M
serve

fill() {
    $python - "$(uri "$1")" "$2" "$3" <<'END'
import nbd, random, sys
chance = random.Random(sys.argv[2])
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for _ in range(int(sys.argv[3])):
    client.pwrite(chance.randbytes(1 << 16), chance.randrange(client.get_size() - 65536))
client.flush()
END
    await 20 is_free "$1"
}
kept_of() {
    tplstore volume show vm1 --json | jq -c '.versions | map(select(.hidden) | .number)'
}
used() {
    tplstore volume show "$1" --json | jq .unique_bytes
}

fill vm1 one 200
tplstore version create vm1 --name base
fill vm1 two 400  # most of what the fork needs is replaced in the parent
tplstore volume create fork --from vm1@base
fill fork three 25
tplstore version create fork --name early
fill fork four 25
nbdcopy "$(uri fork@early)" "$tmp/early.raw"
nbdcopy "$(uri vm1)" "$tmp/parent.raw"
shared=$(tplstore volume show fork --json | jq .shared_bytes)
[ "$shared" -ge $((5 << 20)) ] || fail "the fork shares $shared bytes only"

tplstore version rm vm1 base | grep 'kept for fork fork' || fail "it does not say what keeps it"
equals "kept versions" "$(kept_of)" "[1]"
tplstore gc >/dev/null
before=$(used vm1)

# While a guest writes the fork. Readers of it must leave before the parent is let go.
await 20 is_free fork
$python "$(dirname "$0")/wire_model.py" "$(uri fork)" 3000 1 >"$tmp/guest.out" 2>&1 &
guest=$!
on_exit kill -9 $guest
await 20 is_attached fork || fail "no guest"
tplstore volume flatten fork
has_ended $guest && fail "the guest has ended already"
equals "the fork's parent" "$(tplstore volume show fork --json | jq -c '[.parent, .shared_bytes]')" "[null,0]"
equals "kept versions" "$(kept_of)" "[]"
wait $guest || fail "the guest: $(cat "$tmp/guest.out")"
nbdcopy "$(uri fork@early)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/early.raw"
refuses "no fork" tplstore volume flatten fork
tplstore gc
freed=$((before - $(used vm1)))
echo "the parent has given back $freed bytes"
[ $freed -ge $((4 << 20)) ] || fail "the parent has given back $freed bytes only"
nbdcopy "$(uri vm1)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/parent.raw"
nbdcopy "$(uri fork)" "$tmp/fork.raw"
stop_nbdkit

# Without the parent, and without anything of it.
tplstore volume rm vm1
equals "volumes" "$(count_volumes)" 1
serve
nbdcopy "$(uri fork)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/fork.raw"
nbdcopy "$(uri fork@early)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/early.raw"

# A flattening that ends early: nothing is lost, and the next one does the rest.
tplstore version create fork --name late >/dev/null
nbdcopy "$(uri fork@late)" "$tmp/late.raw"
stop_nbdkit
tplstore volume create second --from fork@late
tplstore volume create third --from fork@late
parent_of() {
    tplstore volume show "$1" --json | jq .parent
}
ended_early=0
for moment in 0.004 0.010 0.016 0.024 0.040; do
    for signal in KILL INT; do
        volume=second
        [ $signal = KILL ] || volume=third
        timeout --foreground --signal=$signal $moment "$TPLSTORE" volume flatten $volume \
            >"$tmp/flatten.out" 2>&1 || true
        [ "$(parent_of $volume)" = null ] || ended_early=$((ended_early + 1))
        tplstore volume export $volume "$tmp/out.raw" --force >/dev/null
        same "$tmp/out.raw" "$tmp/late.raw"
    done
done
echo "$ended_early flattenings ended early"
[ $ended_early -gt 0 ] || fail "no flattening ended early"
for volume in second third; do
    [ "$(parent_of $volume)" = null ] || tplstore volume flatten $volume
    equals "the parent" "$(parent_of $volume)" null
done
tplstore volume rm fork
equals "volumes" "$(count_volumes)" 2
for volume in second third; do
    tplstore volume export $volume "$tmp/out.raw" --force >/dev/null
    same "$tmp/out.raw" "$tmp/late.raw"
done
