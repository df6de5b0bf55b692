#!/usr/bin/env bash
# A server is stopped and started under its VMs, exchanged for one of another version, and back: they
# notice a pause. No request of theirs fails, nothing that was answered is lost, and others do not get
# their volumes meanwhile.
. "$(dirname "$0")/../functions.sh"
requires qemu-io nbdcopy nbdinfo jq

new_store
for name in vm1 vm2; do tplstore volume create $name --size 64M; done

# writes FILE COUNT SEED: commands for qemu-io, a group of writes to different blocks at once, and
# then the next; what the disk is after them goes to FILE.
writes() {
    $python - "$@" <<'END'
import random, sys
path, count, chance = sys.argv[1], int(sys.argv[2]), random.Random(sys.argv[3])
disk = bytearray(64 << 20)
for group in range(count // 40):
    for block in chance.sample(range(16 << 10), 40):
        pattern = chance.randrange(1, 256)
        disk[block * 4096:(block + 1) * 4096] = bytes([pattern]) * 4096
        print(f"aio_write -q -P {pattern} {block * 4}k 4k")
    print("aio_flush")
open(path, "wb").write(disk)
END
}
# vm NAME SOCKET COUNT: a VM that writes, in the background; its pid in $vm.
vm() {
    writes "$tmp/$1.disk" "$3" "$1" >"$tmp/$1.commands"
    qemu-io --image-opts "driver=nbd,server.type=unix,server.path=$2,export=$1,reconnect-delay=60" \
        <"$tmp/$1.commands" >"$tmp/$1.out" 2>&1 &
    vm=$!
    on_exit kill -9 $vm
}
# vm_is_right NAME SOCKET: no request has failed, and all are there.
vm_is_right() {
    wait $vm || fail "qemu-io ended with $?: $(tail -n 3 "$tmp/$1.out")"
    ! grep -v "^qemu-io> *$" "$tmp/$1.out" | grep -i -E "failed|error" ||
        fail "requests of $1 have failed"
    nbdcopy "nbd+unix:///$1?socket=$2" "$tmp/$1.copy"
    same "$tmp/$1.copy" "$tmp/$1.disk"
}
has_written() {
    [ "$(tplstore stats --json | jq '[.volumes[].requests.writes] | add // 0')" -ge "$1" ]
}

echo "Eight restarts" >&2
serve
vm vm1 "$tmp/server.socket" 40000
for turn in {1..8}; do
    await 60 has_written 2000 || fail "the VM writes nothing"
    ! has_ended $vm || fail "the VM has ended before all restarts"
    stopped=${EPOCHREALTIME/./}
    stop_server
    closed=${EPOCHREALTIME/./}
    equals "what was said" "$(sed 's/server [0-9]*/server PID/' "$tmp/stop.out")" \
        "server PID: stopped, 1 volumes closed"
    if [ "$turn" = 1 ]; then
        equals "state in between" "$(tplstore lock show vm1 --json | jq -r .state)" crashed
        refuses "kept for .*pid $vm.*lock break" tplstore version create vm1
    fi
    serve
    echo "restart $turn: $(((closed - stopped) / 1000)) ms to stop" >&2
done
vm_is_right vm1 "$tmp/server.socket"
! grep -i -E "cannot send after|shutdown" "$tmp/server.log" || fail "an error was answered"
await 10 is_free vm1 || fail "vm1 stays open behind its VM"
stop_server
for which in "" "--pid $$"; do
    # shellcheck disable=SC2086
    equals "with no server" "$(tplstore server stop $which)" "no such server runs here"
done

echo "One of two servers" >&2
serve
start_nbdkit other "$TPLSTORE_PLUGIN" "$store"
# What a unit says whose server has ended by itself.
equals "of no pid" "$(tplstore server stop --pid "")" "no such server runs here"
tplstore server stop --pid "${nbdkit_pid[server]}"
wait "${nbdkit_pid[server]}" || fail "the server ended with $?"
unset "nbdkit_pid[server]"
equals "who is left" "$(tplstore stats --json | jq -c '[.servers[].pid]')" "[${nbdkit_pid[other]}]"
stop_server other

echo "Another version, at a socket that is always there" >&2
# The old one is this build with another version in it; TPLSTORE_OLD_BUILD may be the folder of one that
# is really another.
for build in old new; do
    mkdir -p "$tmp/$build/tools" "$tmp/$build/plugin"
    cp "$TPLSTORE" "$tmp/$build/tools/tplstore"
    cp "$TPLSTORE_PLUGIN" "$tmp/$build/plugin/nbdkit-tplstore-plugin.so"
done
if [ -n "${TPLSTORE_OLD_BUILD-}" ]; then
    cp "$TPLSTORE_OLD_BUILD/tools/tplstore" "$tmp/old/tools/"
    cp "$TPLSTORE_OLD_BUILD/plugin/nbdkit-tplstore-plugin.so" "$tmp/old/plugin/"
else
    $python - "$("$TPLSTORE" --version | cut -d ' ' -f 2)" "$tmp"/old/*/* <<'END'
import sys
version = sys.argv[1].encode() + b"\0"
for path in sys.argv[2:]:
    content = open(path, "rb").read()
    assert version in content, path
    open(path, "wb").write(content.replace(version, version[:-2] + b"~\0"))
END
fi
version_of() {
    "$tmp/$1/tools/tplstore" --version | cut -d ' ' -f 2
}
[ "$(version_of old)" != "$(version_of new)" ] || fail "both are of one version"
# What a service manager does: it has the socket, and a server as often as the last one has ended.
cat >"$tmp/manager.py" <<'END'
import os, signal, socket, sys, time
folder = sys.argv[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{folder}/managed.socket")
listener.listen(64)
while True:
    server = os.fork()
    if server == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        tool = os.path.realpath(f"{folder}/current/tools/tplstore")
        os.execv(tool, [tool, "serve"])
    signal.signal(signal.SIGTERM, lambda *_: os.kill(server, signal.SIGTERM) or sys.exit())
    _, status = os.waitpid(server, 0)
    print("ended", status, flush=True)
    while not os.path.exists(f"{folder}/go-on"):
        time.sleep(0.01)
    os.remove(f"{folder}/go-on")
END
ln -s old "$tmp/current"
env -u TPLSTORE_PLUGIN python3 "$tmp/manager.py" "$tmp" >"$tmp/manager.out" 2>"$tmp/managed.log" &
manager=$!
on_exit kill $manager
serves() {
    [ "$(tplstore stats --json | jq -r '.servers[0].version')" = "$(version_of "$1")" ]
}
have_ended() { [ "$(grep -c "^ended 0$" "$tmp/manager.out")" = "$1" ]; }
# Beside the listener: a newcomer, and the VM, which tries again.
two_wait() { [ "$(grep -c "$tmp/managed.socket" /proc/net/unix)" -ge 3 ]; }
await 60 serves old || fail "no server starts at the socket"
refuses "LISTEN_FDS" env LISTEN_FDS=1 bash -c 'LISTEN_PID=$$ exec "$0" serve --socket x' "$TPLSTORE"
vm vm2 "$tmp/managed.socket" 12000
# An upgrade and a downgrade: the tool of the one ends the server of the other, whose place it takes.
exchanges=0
for version in new old; do
    exchanges=$((exchanges + 1))
    await 60 has_written 2000 || fail "the VM writes nothing"
    ln -sfn $version "$tmp/current"
    "$tmp/$version/tools/tplstore" server stop
    await 10 have_ended $exchanges || fail "the server ended badly: $(cat "$tmp/manager.out")"
    ! has_ended $vm || fail "the VM has ended too early"
    # Whoever comes while there is no server waits for the next one.
    nbdinfo --size "nbd+unix:///vm1@current?socket=$tmp/managed.socket" >"$tmp/size" 2>&1 &
    newcomer=$!
    await 30 two_wait || fail "nobody waits at the socket"
    touch "$tmp/go-on"
    await 60 serves $version || fail "the $version version does not serve"
    wait $newcomer || fail "who came in between was turned away: $(cat "$tmp/size")"
    equals "size" "$(cat "$tmp/size")" $((64 << 20))
done
vm_is_right vm2 "$tmp/managed.socket"
! grep -i -E "cannot send after|shutdown" "$tmp/managed.log" || fail "an error was answered"
