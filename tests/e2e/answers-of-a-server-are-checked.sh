#!/usr/bin/env bash
# What a server answers is believed only when it is an answer: the tool refuses anything else with
# one line. What others wrote reaches no terminal as control characters.
. "$(dirname "$0")/../functions.sh"
requires jq

new_store
tplstore volume create vm1 --size 1M

# answer_with RESULT: a server of the store that answers this, whatever it is asked.
answer_with() {
    rm -f "$tmp/ready"
    "$python" - "$store" "$1" "$tmp" <<'PYTHON' &
import fcntl, json, os, socket, sys, uuid
store, result, tmp = sys.argv[1:]
with open("/etc/machine-id") as host, open(os.path.join(store, "store"), "rb") as identity:
    host_id, store_id = uuid.UUID(host.read().strip()), uuid.UUID(bytes=identity.read()[32:48])
path = os.path.join(tmp, f"{store_id}.{os.getpid()}.sock")
os.makedirs(os.path.join(store, "servers"), exist_ok=True)
announcement = open(os.path.join(store, "servers", f"{host_id}.{os.getpid()}"), "w+")
announcement.write(path)
announcement.flush()
fcntl.lockf(announcement, fcntl.LOCK_SH, 1)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(8)
open(os.path.join(tmp, "ready"), "w").close()
while True:
    connection, _ = listener.accept()
    try:
        request = json.loads(connection.makefile().readline())
        answer = '{"pid": 1, "version": "x"}' if request["op"] == "ping" else result
        connection.sendall(b'{"protocol": 1, "ok": true, "result": %s}\n' % answer.encode())
    except OSError:
        pass
    connection.close()
PYTHON
    answerer=$!
    on_exit kill -9 "$answerer"
    await 10 test -e "$tmp/ready"
}
stop_answering() {
    kill -9 "$answerer"
    wait "$answerer" 2>/dev/null || true
}

for result in null 7 '[]' '{}' '[{}]' '{"number": 1, "name": "a\u001bb"}' \
    '{"versions": [], "volumes": [{"name": "vm1"}], "servers": [{}]}' \
    "$(printf '[%.0s' $(seq 5000))$(printf ']%.0s' $(seq 5000))"; do
    answer_with "$result"
    for command in "version create vm1" "volume resize vm1 2M" "volume flatten vm1" stats \
        "stats --json" "stats --prometheus" gc; do
        # shellcheck disable=SC2086
        refuses "server $answerer: its answer makes no sense" tplstore $command
        [ ! -s "$tmp/refused.out" ] || fail "$command printed: $(cat "$tmp/refused.out")"
        equals "lines of $command" "$(wc -l <"$tmp/refused.err")" 1
    done
    stop_answering
done
# Whom nobody can ask any more is forgotten.
tplstore stats >/dev/null
equals "servers" "$(ls "$store/servers")" ""
[ -z "$(ls "$tmp"/*.sock 2>/dev/null)" ] || fail "a dead server's socket is left"

# Escape, a newline, DEL, and C1 in UTF-8 and without.
note=$'a\e[2Jb\nc\x7fd\xc2\x9b2Je\x9bf'
tplstore version create vm1 --note "$note" >"$tmp/out"
{ tplstore version list vm1; tplstore volume show vm1; tplstore version list vm1 --json; } >>"$tmp/out"
{ tplstore version rm vm1 "$note" || true; tplstore template import "$note" "$note" || true
  tplstore -s "$tmp/$note" volume list || true; } >>"$tmp/out" 2>&1
serve
nbdinfo --list "$(uri "")" >>"$tmp/out" 2>&1 || true
! grep -n -a -P '[\x00-\x08\x0b-\x1f\x7f\x9b]' "$tmp/out" || fail "control characters were printed"
equals "the note" "$(tplstore version list vm1 --json | jq -r '.[0].note' | head -c 5)" $'a\e[2J'
