#!/usr/bin/env bash
# One volume, one VM: while a process has a volume, others are refused, be it through the same
# server or another one, and are told who has it; when it is gone or killed, they get it.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdinfo jq

new_store
tplstore volume create vm1 --size 16M
tplstore volume create vm2 --size 16M
serve
start_nbdkit other "$TPLSTORE_PLUGIN" "$store"

# hold: a VM that has vm1 until it is killed.
hold() {
    start_client write "$(uri vm1 "${1-server}")"
    owner=$client
}
let_go() {
    kill -9 $owner
    wait $owner 2>/dev/null || true
}
attached() {
    tplstore volume show vm1 --json | jq -r .attached
}

equals "attached before" "$(attached)" false
hold
refuses "" nbdinfo "$(uri vm1)"
grep -q "pid $owner" "$tmp/server.log" || fail "the server's log does not name the owner $owner"
refuses "" nbdinfo "$(uri vm1 other)"
grep -q -E "pid ($owner|${nbdkit_pid[server]})" "$tmp/other.log" ||
    fail "the other server's log names neither the owner $owner nor its server"

equals "attached" "$(attached)" true
tplstore volume show vm1 --json | jq -e --arg pid "$owner" '.writer.peer | contains($pid)' >/dev/null ||
    fail "volume show names no owner: $(tplstore volume show vm1 --json | jq -c .writer)"
tplstore volume show vm1 | grep -q "$owner" || fail "volume show for people names no owner"
equals "server" "$(tplstore volume show vm1 --json | jq .writer.server_pid)" "${nbdkit_pid[server]}"

# What is not the same volume, or not writing, is no matter.
nbdinfo "$(uri vm2)" >"$tmp/info.out"
tplstore version create vm1
nbdinfo "$(uri vm1@1)" >"$tmp/info.out"
nbdinfo "$(uri vm1@1 other)" >"$tmp/info.out"
refuses "$owner|connected|attached|in use|busy" tplstore volume rm vm1

let_go
await 5 nbdinfo "$(uri vm1)" >"$tmp/info.out" 2>&1 || fail "the owner is gone and its volume still taken"
await 5 nbdinfo "$(uri vm1 other)" >"$tmp/info.out" 2>&1 || fail "the other server gets no turn"
await 5 is_free vm1 || fail "nobody is connected and the volume is still attached"

# What a server leaves that is killed is the VM's that was connected, as long as that may come back.
hold
kill_nbdkit server
refuses "" nbdinfo "$(uri vm1 other)"
grep -q "kept for .*pid $owner .*lock break vm1 --epoch" "$tmp/other.log" ||
    fail "the log does not say for whom the volume is kept"
refuses "kept for .*pid $owner" tplstore version create vm1
refuses "kept for .*pid $owner" tplstore volume rm vm1
equals "state" "$(tplstore lock show vm1 --json | jq -r .state)" crashed
let_go
await 5 nbdinfo "$(uri vm1 other)" >"$tmp/info.out" 2>&1 || fail "a VM that has gone keeps its volume"
stop_nbdkit other
