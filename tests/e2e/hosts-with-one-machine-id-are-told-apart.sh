#!/usr/bin/env bash
# Hosts that were cloned from one image have one machine id. Each has a number of its own, so what
# the other one left is refused; when that was cloned too, the second one's server does not start.
. "$(dirname "$0")/../functions.sh"
requires root unshare python-libnbd jq

# on HOST COMMAND...: on a host of that number, with a name, a state directory and a boot of its own,
# and the machine id of all.
for host in 1 2; do
    mkdir "$tmp/state-$host" "$tmp/run-$host"
    echo "00000000-0000-4000-8000-00000000000$host" >"$tmp/boot-$host"
done
made=
[ -e /var/lib/tplstore ] || { mkdir /var/lib/tplstore && made=yes; }
[ -z "$made" ] || on_exit rmdir /var/lib/tplstore
cat >"$tmp/host" <<END
#!/bin/sh
number=\$1
shift
mount --bind "$tmp/state-\$number" /var/lib/tplstore && hostname clone-\$number &&
    mount --bind "$tmp/boot-\$number" /proc/sys/kernel/random/boot_id &&
    mkdir -p /run/tplstore && mount --bind "$tmp/run-\$number" /run/tplstore && exec "\$@"
END
chmod +x "$tmp/host"
on() { unshare -m -u "$tmp/host" "$@"; }
on 1 true 2>/dev/null || skip "no other host can be made up here"

new_store
tplstore volume create vm1 --size 16M
start_on() {
    rm -f "$tmp/host-$1.pid" "$tmp/host-$1.socket"
    on "$1" env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"} \
        nbdkit --foreground --unix "$tmp/host-$1.socket" --pidfile "$tmp/host-$1.pid" \
        "$TPLSTORE_PLUGIN" "$store" </dev/null >>"$tmp/host-$1.log" 2>&1 &
    nbdkit_pid[host-$1]=$!
    await 60 server_is_ready_or_gone "host-$1" || fail "the server on host $1 hangs"
    # What was started is a shell.
    [ ! -s "$tmp/host-$1.pid" ] || nbdkit_pid[host-$1]=$(cat "$tmp/host-$1.pid")
}
start_on 1
[ -s "$tmp/host-1.pid" ] || fail "the server on host 1 does not start"
start_client write "$(uri vm1 host-1)"
kill -9 $client "${nbdkit_pid[host-1]}"
wait_for_end "${nbdkit_pid[host-1]}" 20 || fail "the server on host 1 does not end"
unset "nbdkit_pid[host-1]"
{ wait $client; } 2>/dev/null || true
state_on() { on "$1" "$TPLSTORE" lock show vm1 --json | jq -r .state; }
equals "state on host 1" "$(state_on 1)" crashed
equals "state on host 2" "$(state_on 2)" foreign
refuses "on host clone-1.*lock break vm1" on 2 "$TPLSTORE" version create vm1
[ "$(cat "$tmp/state-1/host-id")" != "$(cat "$tmp/state-2/host-id")" ] || fail "one number for two"

# Cloned with its number.
cp "$tmp/state-1/host-id" "$tmp/state-2/host-id"
start_on 1
[ -s "$tmp/host-1.pid" ] || fail "the server on host 1 does not start again"
start_on 2
await 20 has_ended "${nbdkit_pid[host-2]}" || fail "the server on host 2 serves"
{ wait "${nbdkit_pid[host-2]}"; } 2>/dev/null || true
unset "nbdkit_pid[host-2]"
grep -q "with the ids of this one.*remove /var/lib/tplstore/host-id" "$tmp/host-2.log" ||
    fail "it does not say why: $(cat "$tmp/host-2.log")"
rm "$tmp/state-2/host-id"
start_on 2
[ -s "$tmp/host-2.pid" ] || fail "the server on host 2 does not start with a number of its own"
