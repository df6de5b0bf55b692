#!/usr/bin/env bash
# A process is not a VM: proxies, storage daemons and passed sockets stand for many. Of two VMs whose
# connections come from one process the second one is refused; VMs are told apart by their tokens.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdinfo jq

new_store
tplstore volume create vm1 --size 16M
serve

# Lets each connection to the first socket through to the second one.
cat >"$tmp/proxy.py" <<'END'
import contextlib, socket, sys, threading
def copy(source, to):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    client, _ = listener.accept()
    server = socket.socket(socket.AF_UNIX)
    server.connect(sys.argv[2])
    for ends in ((client, server), (server, client)):
        threading.Thread(target=copy, args=ends, daemon=True).start()
END
$python "$tmp/proxy.py" "$tmp/proxy.socket" "$tmp/server.socket" &
proxy=$!
on_exit kill -9 $proxy
await 10 test -S "$tmp/proxy.socket"

is_free_of_vms() { [ "$(tplstore lock show vm1 --json | jq -r .state)" = free ]; }
end_client() {
    kill -9 $client
    wait $client 2>/dev/null || true
    await 10 is_free_of_vms || fail "the volume stays taken"
}

start_client write "$(uri vm1 proxy)"
refuses "" timeout 100 nbdinfo "$(uri vm1 proxy)"
grep -q "vm1.*in use by .*pid $proxy" "$tmp/server.log" || fail "the log does not name the owner"
end_client

start_client write "$(uri 'vm1;writer=one' proxy)"
refuses "" nbdinfo "$(uri 'vm1;writer=two' proxy)"
refuses "" nbdinfo "$(uri 'vm1;writer=two;multi' proxy)"
refuses "" nbdinfo "$(uri vm1 proxy)"
equals "token" "$(tplstore lock show vm1 --json | jq -r .writer.token)" one
end_client

# Several connections with one token are one VM's.
start_client write "$(uri 'vm1;writer=one;multi' proxy)" "$(uri 'vm1;writer=one;multi' proxy)"
equals "connections" "$(tplstore lock show vm1 --json | jq .writer.connections)" 2
refuses "" nbdinfo "$(uri 'vm1;writer=two;multi' proxy)"
end_client
stop_nbdkit
