#!/usr/bin/env bash
# Directories come and go while a guest reads. What moves the copies is killed, runs twice at once,
# and goes on; in the end every copy is in its place, and the guest saw nothing of it.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq

export TPLSTORE_TIER_STATE=$tmp/tier-state
new_store
make_image "$tmp/image" 384
tplstore template import golden "$tmp/image"
segments=$(find "$store/segments" -type f | wc -l)
mkdir "$tmp"/{a,b,c}
tplstore tier add "$tmp/a" --weight 1G
tplstore tier add "$tmp/b" --weight 1G
tplstore template warm golden
copies() {
    find "$@" -path '*/segments/*' -type f | wc -l
}
equals copies "$(copies "$tmp/a" "$tmp/b")" "$segments"
in_a=$(copies "$tmp/a")

serve
tplstore volume create vm1 --template golden
cat >"$tmp/read.py" <<'END'
import nbd, os, random, sys
image = open(sys.argv[2], "rb").read()
client = nbd.NBD()
client.connect_uri(sys.argv[1])
chance = random.Random(1)
print("connected", flush=True)
while not os.path.exists(sys.argv[3]):
    for i in range(200):
        length = chance.choice([512, 4096, 65536, 1 << 20])
        offset = chance.randrange((len(image) - length) // 512) * 512
        assert client.pread(length, offset) == image[offset:offset + length], f"at {offset}"
print("read all")
END
$python "$tmp/read.py" "$(uri vm1)" "$tmp/image" "$tmp/ends" >"$tmp/reader.out" 2>&1 &
reader=$!
on_exit kill -9 "$reader"
await 20 grep -qs connected "$tmp/reader.out"

# A third one takes a third, of each in the same proportion, which by chance may be few; killed again
# and again, it goes on.
tplstore tier add "$tmp/c" --weight 1G
tplstore tier rebalance --dry-run | tee "$tmp/dry-run"
few=$(sed -nE 's/^([0-9]+) copies are out of place.*/\1/p' "$tmp/dry-run")
has_copies() {
    [ "$(copies "$tmp/c")" -ge "$1" ]
}
killed=0
for ((i = 1; i <= (few < 5 ? few : 5); ++i)); do
    tplstore tier rebalance >/dev/null &
    mover=$!
    await 60 has_copies "$i" || fail "nothing moves"
    kill -9 $mover 2>/dev/null && killed=$((killed + 1))
    wait $mover 2>/dev/null || true
done
echo "killed $killed times"
[ $killed -gt 0 ] || fail "it was never killed"
tplstore tier rebalance
[ "$(copies "$tmp/a")" -le "$in_a" ] || fail "the first one got more"
equals copies "$(copies "$tmp/a" "$tmp/b" "$tmp/c")" "$segments"
is_in_place() {
    [ "$(tplstore tier list --json | jq "map(.bytes_out_of_place) | add")" = 0 ]
}
await 20 is_in_place || fail "$(tplstore tier list --json)"

# Out again, and drained: its copies are in the others before it goes.
tplstore tier rm "$tmp/b" --drain
equals "copies of what is gone" "$(copies "$tmp/b")" 0
tplstore tier rebalance
equals copies "$(copies "$tmp/a" "$tmp/c")" "$segments"
refuses "not in the tier" tplstore tier rm "$tmp/b"

# Two at once: the second says so.
tplstore tier add "$tmp/b" --weight 2G
tplstore tier rebalance >/dev/null &
mover=$!
lock=$(find "$TPLSTORE_TIER_STATE" -name rebalance.lock)
[ -n "$lock" ] || fail "no lock"
wait $mover
$python - "$lock" "$tmp/held" <<'END' &
import fcntl, os, struct, sys, time
F_OFD_SETLK, lock = 37, os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(lock, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
open(sys.argv[2], "w").close()
time.sleep(600)
END
holder=$!
on_exit kill "$holder"
await 20 test -e "$tmp/held" || fail "the lock was not taken"
refuses "another" tplstore tier rebalance
kill $holder
wait $holder 2>/dev/null || true
tplstore tier rebalance

touch "$tmp/ends"
wait $reader || fail "$(cat "$tmp/reader.out")"
grep -q "read all" "$tmp/reader.out"
equals "errors" "$(tplstore tier list --json | jq 'map(.errors) | add')" 0

# What no template needs is gone from the tier when its own host has swept it.
tplstore volume rm vm1 2>/dev/null || { await 10 is_free vm1 && tplstore volume rm vm1; }
tplstore template rm golden
stop_nbdkit
tplstore tier rebalance
equals "copies that nobody needs" "$(copies "$tmp/a" "$tmp/b" "$tmp/c")" 0
