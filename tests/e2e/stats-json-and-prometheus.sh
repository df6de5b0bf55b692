#!/usr/bin/env bash
# `tplstore stats` counts what happened, in JSON, for Prometheus and for people.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq python3

make_image "$tmp/image.raw" 16
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
serve

# The counters are those of open volumes, so the client stays.
$python - "$(uri vm1)" <<'END' >"$tmp/client.out" 2>&1 &
import nbd, signal, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for block in range(10):
    client.pwrite(b"x" * 4096, block * 4096)
for block in range(20):
    client.pread(4096, block * 4096)
client.trim(8192, 1 << 20)
client.zero(4096, 2 << 20)
client.flush()
client.flush()
print("ready", flush=True)
signal.pause()
END
client=$!
on_exit kill $client
await 10 grep -qs ready "$tmp/client.out" || fail "$(cat "$tmp/client.out")"

tplstore stats --json >"$tmp/stats.json"
value() {
    jq -c ".volumes[] | select(.name == \"vm1\") | $1" "$tmp/stats.json"
}
equals "requests" "$(value '.requests | [.reads, .writes, .trims, .zeroes, .flushes]')" "[20,10,1,1,2]"
equals "bytes" "$(value '.bytes | [.reads, .writes, .trims, .zeroes]')" "[81920,40960,8192,4096]"
equals "errors" "$(value .errors)" 0
equals "connections" "$(value .connections)" 1
equals "first writes" "$(value .first_writes)" 10
jq -e '.volumes[0] | (.template_reads.reads > 0) and (.data_file_reads.reads > 0) and
       (.log.bytes > 0) and (.map.bytes > 0) and (.log.commits >= 1)' "$tmp/stats.json" >/dev/null ||
    fail "counters are missing: $(cat "$tmp/stats.json")"
jq -e '(.map.max_bytes > 0) and (.cache | type == "object") and (.tier | type == "object")
       and (.log | type == "object")' "$tmp/stats.json" >/dev/null

tplstore stats --prometheus >"$tmp/metrics"
grep -q '^# TYPE tplstore_.* counter' "$tmp/metrics" || fail "no counters: $(cat "$tmp/metrics")"
grep -q '^# HELP tplstore_' "$tmp/metrics"
grep -E '^tplstore_.*volume="vm1".*' "$tmp/metrics" | grep -E 'write.* 10$|op="write.* 10$' >/dev/null ||
    fail "10 writes are not among: $(cat "$tmp/metrics")"
# What a Prometheus server can read: every line is a comment or NAME{LABELS} NUMBER.
! grep -v -E '^(#.*|[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^}]*\})? [-+0-9.eE]+|)$' "$tmp/metrics" ||
    fail "these lines are no metrics"
tplstore stats | grep -q vm1 || fail "stats for people do not name vm1"

# Without a server there are none, and that is no error.
kill $client
wait $client 2>/dev/null || true
stop_nbdkit
equals "volumes without a server" "$(tplstore stats --json | jq -c .volumes)" "[]"
