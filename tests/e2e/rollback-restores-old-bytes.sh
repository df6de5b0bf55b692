#!/usr/bin/env bash
# Rolling back gives the bytes and the size of the version, forgets nothing that was there before,
# and is refused while a VM is connected.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy jq python3

make_image "$tmp/image.raw" 16
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
serve

# change SEED: random writes and trims.
change() {
    $python - "$(uri vm1)" "$1" <<'END'
import nbd, random, sys
chance = random.Random(sys.argv[2])
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for _ in range(200):
    length = chance.randrange(1, 20000)
    offset = chance.randrange(client.get_size() - length)
    if chance.random() < 0.3:
        client.trim(length, offset)
    else:
        client.pwrite(chance.randbytes(length), offset)
client.flush()
END
    nbdcopy "$(uri vm1)" "$tmp/after-$1.raw"
}
holds() {
    nbdcopy "$(uri "$1")" "$tmp/out.raw"
    same "$tmp/out.raw" "$2"
}

change 1
tplstore version create vm1 --name first
change 2
tplstore version create vm1
tplstore volume resize vm1 24M
change 3

# On a server that has the volume open, but for nobody who could write.
tplstore version rollback vm1 first
holds vm1 "$tmp/after-1.raw"
# What was current before has become a version.
holds vm1@3 "$tmp/after-3.raw"
holds vm1@2 "$tmp/after-2.raw"
equals "parents" "$(tplstore version list vm1 --json | jq -c 'map(.parent)')" "[null,1,2,1]"
equals "sizes" "$(tplstore version list vm1 --json | jq -c 'map(.size / 1048576)')" "[16,16,24,16]"
change 4
holds vm1@1 "$tmp/after-1.raw"
stop_nbdkit

# Without a server.
tplstore version rollback vm1 3
serve
holds vm1 "$tmp/after-3.raw"
holds vm1@4 "$tmp/after-4.raw"
holds vm1@first "$tmp/after-1.raw"
holds vm1@2 "$tmp/after-2.raw"

# With a VM connected.
$python -c '
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()' "$(uri vm1)" >"$tmp/vm.out" < <(exec tail -f /dev/null) &
vm=$!
on_exit kill $vm
await 10 grep -qs connected "$tmp/vm.out" || fail "the VM is not connected"
refuses "connected|attached|in use|busy" tplstore version rollback vm1 1
kill $vm
wait $vm 2>/dev/null || true
refuses "no version" tplstore version rollback vm1 77
refuses "no version" tplstore version rollback vm1 nameless
tplstore version rollback vm1 1
holds vm1 "$tmp/after-1.raw"
stop_nbdkit
