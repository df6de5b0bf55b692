#!/usr/bin/env bash
# A VM's network is cut, and its server is never told: the connection stays there for it, as when a
# host loses its power or its address. When there is a network again the VM, which names itself, has
# its volume within 10 seconds, and what it flushed; another VM is refused before and after.
. "$(dirname "$0")/../functions.sh"
requires root ip ss jq python-libnbd
ns=tplstore-$$
{ ip netns add "$ns-a" && ip netns add "$ns-b"; } 2>/dev/null || skip "no network namespaces here"
on_exit ip netns del "$ns-a"
on_exit ip netns del "$ns-b"
{ ip link add "tpla$$" netns "$ns-a" type veth peer name "tplb$$" netns "$ns-b"; } 2>/dev/null ||
    skip "no veth pair can be made here"
on_a() { ip netns exec "$ns-a" "$@"; }
on_b() { ip netns exec "$ns-b" "$@"; }
on_a ip addr add 10.99.0.1/24 dev "tpla$$"
on_b ip addr add 10.99.0.2/24 dev "tplb$$"
on_a ip link set "tpla$$" up
on_b ip link set "tplb$$" up

new_store
tplstore volume create vm1 --size 16M
on_a env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"} \
    nbdkit --foreground --ipaddr 10.99.0.1 --port 10809 --pidfile "$tmp/server.pid" \
    "$TPLSTORE_PLUGIN" "$store" </dev/null >>"$tmp/server.log" 2>&1 &
nbdkit_pid[server]=$!
await 60 server_is_ready_or_gone server || fail "the server does not start"
nbdkit_pid[server]=$(cat "$tmp/server.pid")

# TOKEN VALUE EXPECTED SECONDS START: a VM that connects, reads EXPECTED, writes VALUE, flushes, and
# stays; refused for so long since START it gives up.
cat >"$tmp/vm.py" <<'END'
import nbd, signal, sys, time
token, value, expected = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seconds, start = map(float, sys.argv[4:6])
while True:
    client = nbd.NBD()
    try:
        client.connect_uri("nbd://10.99.0.1:10809/vm1" + (";writer=" + token if token else ""))
        break
    except nbd.Error as error:
        if time.time() - start >= seconds:
            sys.exit("refused for %.1f s: %s" % (time.time() - start, error))
        time.sleep(0.2)
if seconds and time.time() - start >= seconds:
    sys.exit("connected only after %.1f s" % (time.time() - start))
found = client.pread(4096, 0)
if found != bytes([expected]) * 4096:
    sys.exit("finds %d instead of %d" % (found[0], expected))
client.pwrite(bytes([value]) * 4096, 0)
client.flush()
print("has written after %.1f s" % (time.time() - start), flush=True)
signal.pause()
END
start_vm() {
    rm -f "$tmp/vm.out"
    ip netns exec "$ns-b" $python "$tmp/vm.py" "$@" >"$tmp/vm.out" 2>&1 &
    vm=$!
    on_exit kill -9 "$vm"
}
nobody_has_it() { [ "$(tplstore lock show vm1 --json | jq .writer.connections)" = 0 ]; }
is_connected_from() { on_a ss -Htn state established src 10.99.0.1 | grep -q "$1:"; }

for round in 1 2; do
    address=10.99.0.$((1 + round))
    start_vm a $round $((round - 1)) 0 "$EPOCHREALTIME"
    await 20 grep -qs written "$tmp/vm.out" || fail "no connection: $(cat "$tmp/vm.out")"
    # The VM's host goes, and comes back under another address: nothing ends the connection.
    on_b ip link set "tplb$$" down
    kill -9 "$vm"
    { wait "$vm"; } 2>/dev/null || true
    on_b ip addr flush dev "tplb$$"
    on_b ip addr add "10.99.0.$((2 + round))/24" dev "tplb$$"
    on_b ip link set "tplb$$" up
    start_vm a $round $round 10 "$EPOCHREALTIME"
    is_connected_from "$address" || fail "the server has noticed"
    for other in b ""; do
        ! on_b timeout 30 $python "$tmp/vm.py" "$other" 9 $round 0 "$EPOCHREALTIME" >"$tmp/other.out" 2>&1 ||
            fail "another VM has it"
        grep -q refused "$tmp/other.out" || fail "$(cat "$tmp/other.out")"
    done
    await 30 grep -qs . "$tmp/vm.out" || fail "the VM hangs"
    grep -q written "$tmp/vm.out" || fail "after the network came back: $(cat "$tmp/vm.out")"
    echo "the VM $(cat "$tmp/vm.out")"
    is_connected_from "$address" || fail "the server has noticed"
    ! on_b timeout 30 $python "$tmp/vm.py" b 9 $round 0 "$EPOCHREALTIME" >"$tmp/other.out" 2>&1 ||
        fail "another VM has it"
    kill -9 "$vm"
    { wait "$vm"; } 2>/dev/null || true
    # The dead connection keeps it open, and out of nobody's way.
    await 20 nobody_has_it || fail "the volume stays taken: $(tplstore lock show vm1)"
done
