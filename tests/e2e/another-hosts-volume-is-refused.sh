#!/usr/bin/env bash
# What another host has, or has left in a crash, is refused whatever the file lock says, and named,
# until an operator has made sure that the other host writes no more.
. "$(dirname "$0")/../functions.sh"
requires root unshare python-libnbd nbdinfo jq

# as_host_b COMMAND...: on a host with another name and machine id.
echo 0123456789abcdef0123456789abcdef >"$tmp/machine-id"
cat >"$tmp/host-b" <<END
#!/bin/sh
mount --bind "$tmp/machine-id" /etc/machine-id && hostname host-b && exec "\$@"
END
chmod +x "$tmp/host-b"
as_host_b() {
    unshare -m -u "$tmp/host-b" "$@"
}
[ -e /etc/machine-id ] || skip "this host has no machine id"
as_host_b true 2>/dev/null || skip "no other host can be made up here"

new_store
tplstore volume create vm1 --size 16M
serve
start_client write "$(uri vm1)"
kill_nbdkit
kill -9 $client
wait $client 2>/dev/null || true

# The file lock is free, and the VM has gone; but host-b cannot see that.
lock_of_b() { as_host_b "$TPLSTORE" lock show vm1 --json; }
equals "state here" "$(tplstore lock show vm1 --json | jq -r .state)" crashed
equals "state on host-b" "$(lock_of_b | jq -r .state)" foreign
equals "host" "$(lock_of_b | jq -r .writer.host_name)" "$(hostname)"
refuses "in use by .* on host $(hostname).* since .*lock break vm1 --epoch" \
    as_host_b "$TPLSTORE" version create vm1
refuses "lock break" as_host_b "$TPLSTORE" volume rm vm1

epoch=$(lock_of_b | jq .epoch)
as_host_b "$TPLSTORE" lock break vm1 --epoch "$epoch" --yes >"$tmp/break.out" 2>&1
equals "state" "$(lock_of_b | jq -r .state)" free
as_host_b "$TPLSTORE" version create vm1 >"$tmp/version.out"
# What was freed is anybody's.
tplstore version create vm1 >"$tmp/version.out"
