#!/usr/bin/env bash
# A VM that lost its connection, or its server, gets the volume back as long as nobody else has
# written to it; after that never again, until it is started anew.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd qemu-io nbdinfo jq script

new_store
tplstore volume create vm1 --size 16M
serve

state() { tplstore lock show vm1 --json | jq -r .state; }
is_free_of_vms() { [ "$(state)" = free ]; }
# other COMMAND...: another VM, that comes and goes.
other() {
    qemu-io -f raw "$@" "$(uri vm1)" >"$tmp/other.out" 2>&1 ||
        fail "the other VM: $(cat "$tmp/other.out")"
    ! grep -q "failed" "$tmp/other.out" || fail "the other VM: $(cat "$tmp/other.out")"
    await 10 is_free_of_vms || fail "the volume stays taken"
}

# The VM does a step for each line that it reads.
cat >"$tmp/vm.py" <<'END'
import nbd, sys
client = None
for line in sys.stdin:
    try:
        if line == "connect\n":
            client = nbd.NBD()
            client.connect_uri(sys.argv[1])
        elif line == "cut\n":
            client = None
        else:
            client.pwrite(b"old!" * 1024, 0)
            client.flush()
        print("done", flush=True)
    except nbd.Error as error:
        print("refused", error.errnum or 0, flush=True)
END
# start_vm EXPORT, then vm STEP: what it answers is in $answer.
start_vm() {
    coproc vm_process { exec $python "$tmp/vm.py" "$(uri "$1")"; }
    vm_pid=$vm_process_PID
    on_exit kill -9 "$vm_pid"
}
vm() {
    echo "$1" >&"${vm_process[1]}"
    read -r -t 60 answer <&"${vm_process[0]}" || fail "no answer to $1"
}
end_vm() {
    kill -9 "$vm_pid"
    wait "$vm_pid" 2>/dev/null || true
    await 10 is_free_of_vms || fail "the volume stays taken"
}

for export in vm1 'vm1;writer=a' 'vm1;writer=a;multi'; do
    start_vm "$export"
    vm connect
    vm write
    equals "the first write" "$answer" "done"
    vm cut
    await 10 is_free_of_vms
    # Somebody only reads, and somebody has it and writes nothing.
    nbdinfo "$(uri vm1@current)" >/dev/null
    other -c "read 0 4k"
    vm connect
    equals "connecting when nobody has written" "$answer" "done"
    vm write
    vm cut
    await 10 is_free_of_vms
    other -c "write -P 7 0 4k" -c flush
    vm connect
    equals "connecting when another VM has written" "${answer%% *}" refused
    grep -q "vm1.*others have changed it since this VM had it" "$tmp/server.log" ||
        fail "the log does not say why"
    tplstore lock show vm1 --json | jq -e '.losers | length > 0' >/dev/null ||
        fail "lock show names no loser"
    end_vm
    other -c "read -P 7 0 4k"
done

# When a server is killed it is not the first to come who has the volume, but who had it.
start_vm vm1
vm connect
vm write
kill_nbdkit
serve
equals "state" "$(state)" crashed
refuses "" nbdinfo "$(uri vm1)"
grep -q "vm1.*kept for .*pid $vm_pid" "$tmp/server.log" || fail "the log does not say for whom"
vm connect
equals "coming back" "$answer" "done"
vm write
equals "writing again" "$answer" "done"

# An operator gives it to another one, once.
epoch=$(tplstore lock show vm1 --json | jq .epoch)
refuses "epoch" tplstore lock break vm1 --epoch $((epoch - 1)) --yes
refuses "say --yes" tplstore lock break vm1 --epoch "$epoch" </dev/null
# reply TEXT: to the question that is asked on a terminal.
reply() {
    script -qec "$(printf '%q ' "$TPLSTORE" lock break vm1 --epoch "$epoch")" /dev/null <<<"$1" >"$tmp/asked.out"
}
! reply no || fail "broken without a yes"
grep -q "requests fail from now on.*never gets the volume again" "$tmp/asked.out" ||
    fail "it does not say what is at stake: $(cat "$tmp/asked.out")"
grep -q "its lock is as it was" "$tmp/asked.out" || fail "$(cat "$tmp/asked.out")"
vm write
equals "writing when it was not broken" "$answer" "done"
reply yes || fail "not broken: $(cat "$tmp/asked.out")"
vm write
equals "writing when the lock was broken" "$answer" "refused 108"  # ESHUTDOWN
qemu-io -f raw -c "write -P 9 0 4k" -c flush "$(uri vm1)" >"$tmp/other.out"
vm cut
vm connect
equals "connecting when the lock was broken" "${answer%% *}" refused
end_vm
other -c "read -P 9 0 4k"
stop_nbdkit

# qemu's own way of coming back, over TCP, where only its token says who it is.
port=$($python -c '
import socket
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1])')
serve_tcp() {
    rm -f "$tmp/tcp.pid"
    env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"} \
        nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" --pidfile "$tmp/tcp.pid" \
        "$TPLSTORE_PLUGIN" "$store" reconnect-grace=60 </dev/null >>"$tmp/tcp.log" 2>&1 &
    nbdkit_pid[tcp]=$!
    await 60 test -s "$tmp/tcp.pid" || fail "the TCP server does not start"
}
serve_tcp
server=file.server.type=inet,file.server.host=127.0.0.1,file.server.port=$port
coproc qemu { exec qemu-io --image-opts \
    "driver=raw,file.driver=nbd,$server,file.reconnect-delay=60,file.export=vm1;writer=q" 2>&1; }
qemu_pid=$qemu_PID
on_exit kill -9 "$qemu_pid"
qemu_writes() {
    local line
    echo "write -P $1 0 4k" >&"${qemu[1]}"
    while read -r -t 60 line <&"${qemu[0]}"; do
        case $line in *wrote*) return ;; *failed*) fail "qemu: $line" ;; esac
    done
    fail "qemu does not answer"
}
qemu_writes 1
kill_nbdkit tcp
serve_tcp
refuses "" nbdinfo "nbd://127.0.0.1:$port/vm1"
grep -q "vm1.*kept for 127.0.0.1" "$tmp/tcp.log" || fail "the log does not say for whom"
qemu_writes 2
kill -9 "$qemu_pid"
await 10 is_free_of_vms || fail "the volume stays taken"
qemu-io -f raw -c "read -P 2 0 4k" "nbd://127.0.0.1:$port/vm1" >"$tmp/other.out"
! grep -q "failed" "$tmp/other.out" || fail "the last write is gone: $(cat "$tmp/other.out")"
stop_nbdkit tcp
