#!/usr/bin/env bash
# A template may come from an NBD server: over a Unix socket, over TCP, and out of the store itself.
. "$(dirname "$0")/../functions.sh"
requires nbdcopy python3

make_image "$tmp/image.raw"
new_store
start_nbdkit source file "$tmp/image.raw"
tplstore template import over-unix "$(uri "" source)"

port=$($python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" --pidfile "$tmp/tcp.pid" \
    file "$tmp/image.raw" </dev/null >"$tmp/tcp.log" 2>&1 &
nbdkit_pid[tcp]=$!
await 10 server_is_ready_or_gone tcp
tplstore template import over-tcp "nbd://127.0.0.1:$port"

# From this very store, as one template is made out of another's volume.
serve
tplstore volume create vm1 --template over-tcp
tplstore template import from-volume "$(uri vm1)"

for name in over-unix over-tcp from-volume; do
    nbdcopy "$(uri template/$name)" "$tmp/out.raw"
    same "$tmp/out.raw" "$tmp/image.raw"
done

# Servers that are not there, or have no such export.
refuses "" tplstore template import nobody "nbd+unix:///?socket=$tmp/no.socket"
refuses "" tplstore template import nobody "$(uri template/nothing)"
[ ! -e "$store/templates/nobody" ] || fail "a template came from nowhere"
stop_nbdkit
stop_nbdkit source
