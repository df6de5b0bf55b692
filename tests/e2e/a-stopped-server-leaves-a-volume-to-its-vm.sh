#!/usr/bin/env bash
# A server that is told to end, and is killed if it waits for its client (as nbdkit 1.32 does), leaves
# a volume to the VM that was connected, whether that was at work or not: it gets the volume back at
# once, others are refused until it has gone, and told what to do.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdinfo jq

new_store
tplstore volume create vm1 --size 16M
state() { tplstore lock show vm1 --json | jq -r .state; }

# Does a step for each line that it reads; `work` goes on until the connection ends.
cat >"$tmp/vm.py" <<'END'
import nbd, sys
for line in sys.stdin:
    try:
        if line == "connect\n":
            client = nbd.NBD()
            client.connect_uri(sys.argv[1])
        if line == "work\n":
            print("works", flush=True)
        while True:
            client.pwrite(b"mine" * 1024, 4096)
            client.flush()
            if line != "work\n":
                break
        print("done", flush=True)
    except nbd.Error as error:
        print("refused", error.errnum or 0, flush=True)
END
end_server() {
    kill "${nbdkit_pid[server]}"
    wait_for_end "${nbdkit_pid[server]}" 1 || kill -9 "${nbdkit_pid[server]}"
    wait "${nbdkit_pid[server]}" 2>/dev/null || true
    unset "nbdkit_pid[server]"
}
vm() {
    echo "$1" >&"${vm_process[1]}"
    read -r -t 60 answer <&"${vm_process[0]}" || fail "no answer to $1"
}

for what in idle working; do
    for export in vm1 'vm1;writer=a' 'vm1;writer=a;multi'; do
        serve
        coproc vm_process { exec $python "$tmp/vm.py" "$(uri "$export")"; }
        vm_pid=$vm_process_PID
        on_exit kill -9 "$vm_pid"
        vm connect
        equals "connecting" "$answer" "done"
        [ $what = idle ] || vm work
        end_server
        if [ $what = working ]; then
            read -r -t 60 answer <&"${vm_process[0]}" || fail "the VM is not told"
            equals "what was under way" "${answer%% *}" refused
        fi
        equals "state behind $what $export" "$(state)" crashed
        refuses "kept for .*pid $vm_pid.*lock break vm1 --epoch" tplstore version create vm1
        serve
        refuses "" nbdinfo "$(uri vm1)"
        refuses "" nbdinfo "$(uri 'vm1;writer=b')"
        vm connect
        equals "coming back" "$answer" "done"
        equals "state with $what $export" "$(state)" held
        kill -9 "$vm_pid"
        wait "$vm_pid" 2>/dev/null || true
        await 10 nbdinfo "$(uri vm1)" >"$tmp/info.out" 2>&1 || fail "a VM that has gone keeps it"
        await 10 is_free vm1 || fail "nobody is connected and the volume is still attached"
        stop_nbdkit
        equals "state when nobody is connected" "$(state)" free
    done
done
grep -q "kept for .*lock break vm1 --epoch" "$tmp/server.log" || fail "the log names no way out"
