#!/usr/bin/env bash
# A server that is killed under VMs has lost nothing that it had acknowledged, flushed or not, and the
# VMs, which come back by themselves, see no error; versions that were made meanwhile are as they were.
# TPLSTORE_OPERATIONS=1000 kills it a thousand times.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd qemu-nbd nbdcopy jq

kills=${TPLSTORE_OPERATIONS-12}
for io in buffered direct; do
    rm -rf "$store" "$tmp"/*.expected "$tmp"/*.socket
    new_store
    uris=()
    pids=()
    for vm in 1 2 3 4; do
        tplstore volume create "vm$vm" --size 16M >/dev/null
        uris+=("nbd+unix:///?socket=$tmp/vm$vm.socket")
    done
    # qemu's NBD driver, as a VM has it. It connects when the server is there.
    (
        await 20 test -S "$tmp/server.socket" || exit
        for vm in 1 2 3 4; do
            exec_client() {
                exec qemu-nbd --socket "$tmp/vm$vm.socket" --discard=unmap --persistent --image-opts \
                    "driver=raw,discard=unmap,file.driver=nbd,file.server.type=unix,file.server.path=$tmp/server.socket,file.export=vm$vm,file.reconnect-delay=60,file.open-timeout=60"
            }
            exec_client >>"$tmp/clients.log" 2>&1 &
            echo $! >>"$tmp/clients.pid"
        done
    )&
    starter=$!
    cat >"$tmp/make-version" <<END
exec "$TPLSTORE" version create vm1 --json | jq -re .number
END
    status=0
    $python "$(dirname "$0")/death_under_load.py" "$kills" "$tmp/server.socket" "sh $tmp/make-version" \
        "${uris[@]}" -- nbdkit --foreground "$TPLSTORE_PLUGIN" "$store" io=$io \
        2>"$tmp/load.log" >"$tmp/load.out" || status=$?
    wait $starter
    while read -r pid; do
        kill -9 "$pid" 2>/dev/null || true
        wait_for_end "$pid" 10
    done <"$tmp/clients.pid"
    rm "$tmp/clients.pid"
    cat "$tmp/load.out"
    [ $status = 0 ] || fail "with io=$io: $(grep -v tplstore "$tmp/load.log" | tail -5)"
    grep -q "as after a power cut" "$tmp/load.log" && fail "a server says that it has lost something"

    rm -f "$tmp/server.socket"
    serve io=$io
    versions=0
    for expected in "$tmp"/*.expected; do
        [ -e "$expected" ] || continue
        number=$(basename "$expected" .expected)
        nbdcopy "$(uri "vm1@$number")" - | cmp - "$expected" || fail "version $number changed"
        versions=$((versions + 1))
    done
    [ $versions -gt 0 ] || fail "no version was made"
    await 20 tplstore version rollback vm1 "$number" >/dev/null 2>&1 || tplstore version rollback vm1 "$number"
    nbdcopy "$(uri vm1@current)" - | cmp - "$expected" || fail "rolled back to $number it is another"
    stop_nbdkit
    echo "io=$io: $versions versions are as they were"
done
