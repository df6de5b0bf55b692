#!/usr/bin/env bash
# `tplstore stats` counts what happened, in JSON, for Prometheus and for people; of volumes that are
# not open it has what they take. Alerts and dashboard name no metric that is not there.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq python3

make_image "$tmp/image.raw" 16
new_store
# With all that has metrics.
export TPLSTORE_TIER_STATE=$tmp/tier-state
mkdir "$tmp/ssd"
tplstore tier add "$tmp/ssd" --weight 64M
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
tplstore volume create vm2 --size 1G
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

# How long requests took: all of them, in one of the histogram's parts each.
for op in reads writes trims zeroes flushes; do
    equals "timed $op" "$(jq ".request_durations.$op.counts | add" "$tmp/stats.json")" \
        "$(value ".requests.$op")"
    [ "$(value ".request_ns.$op")" -gt 0 ] || fail "no time was spent on $op"
    equals "time of $op" "$(jq ".request_durations.$op.sum_ns" "$tmp/stats.json")" \
        "$(value ".request_ns.$op")"
done
grep -q '^tplstore_request_duration_seconds_bucket{.*op="write",le="10"} 10$' "$tmp/metrics" ||
    fail "no histogram: $(grep duration "$tmp/metrics")"
grep -q '^tplstore_request_duration_seconds_count{.*op="read"} 20$' "$tmp/metrics"

# What volumes take, and what is left.
equals "of vm1's own" "$(value .space.unique_bytes)" 40960
equals "vm2 is known" "$(jq -c '.volumes[] | select(.name == "vm2") |
    [.open, .size, .connections, .current_version, .requests.reads]' "$tmp/stats.json")" \
    '[false,1073741824,0,1,null]'
[ "$(jq .file_systems.store.free_bytes "$tmp/stats.json")" -gt 0 ] || fail "nothing is free"
grep -q "^tplstore_build_info{.*component=\"server\",version=\"$(tplstore --version | cut -d ' ' -f 2)\"} 1\$" \
    "$tmp/metrics" || fail "no build info: $(grep build "$tmp/metrics")"

# A file for node_exporter: whole, for everybody, under its name at once, whatever was there.
(umask 077 && tplstore stats --textfile "$tmp/tplstore.prom")
equals "mode" "$(stat -c %a "$tmp/tplstore.prom")" 644
names_in() {
    grep -o -h -E 'tplstore_[a-z_]+' "$@" | sort -u
}
# The names of series: those of histograms are made of their family's.
sed -E '/^#/d; s/[{ ].*//' "$tmp/metrics" | sort -u >"$tmp/names"
equals "what is in the file" "$(sed -E '/^#/d; s/[{ ].*//' "$tmp/tplstore.prom" | sort -u)" \
    "$(cat "$tmp/names")"
inode=$(stat -c %i "$tmp/tplstore.prom")
tplstore stats --textfile "$tmp/tplstore.prom"
[ "$(stat -c %i "$tmp/tplstore.prom")" != "$inode" ] || fail "the file was written in place"
equals "files" "$(find "$tmp" -maxdepth 1 -name '*.part' -o -maxdepth 1 -name '.tpl*')" ""
refuses "not a regular file" tplstore stats --textfile "$tmp/ssd"
[ -d "$tmp/ssd" ]

for file in prometheus-alerts.yml grafana-dashboard.json; do
    names_in "$checkout/examples/$file" >"$tmp/named"
    [ "$(wc -l <"$tmp/named")" -gt 5 ] || fail "$file names no metrics"
    equals "names in $file that are no metrics" "$(comm -23 "$tmp/named" "$tmp/names")" ""
done
jq -e '[.panels[].targets[].expr] | length > 20' "$checkout/examples/grafana-dashboard.json" >/dev/null

# Without a server nothing is counted, and that is no error; what volumes take was noted.
kill $client
wait $client 2>/dev/null || true
await 20 is_free vm1
stop_nbdkit
equals "volumes without a server" "$(tplstore stats --json | jq -c \
    '[.volumes[] | [.name, .open, .requests.writes, .space.unique_bytes, .space.old]]')" \
    '[["vm1",false,null,40960,false],["vm2",false,null,0,false]]'
tplstore stats --prometheus >"$tmp/closed"
grep -q '^tplstore_volume_unique_bytes{.*volume="vm1"} 40960$' "$tmp/closed"
! grep -q '^tplstore_requests_total' "$tmp/closed" || fail "what nobody counts is told"
# After a crash that is old, until somebody closes it.
serve
$python - "$(uri vm1)" <<'END' &
import nbd, signal, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"x" * 4096, 8 << 20)
client.flush()
signal.pause()
END
client=$!
on_exit kill $client
has_one_write() {
    [ "$(tplstore stats --json | jq '.volumes[0].requests.flushes')" = 1 ]
}
await 10 has_one_write || fail "the client does not write"
kill_nbdkit
kill $client
wait $client 2>/dev/null || true
equals "after a crash" "$(tplstore stats --json | jq -c '.volumes[0].space | [.unique_bytes, .old]')" \
    '[40960,true]'
tplstore version create vm1
equals "after the next close" \
    "$(tplstore stats --json | jq -c '.volumes[0].space | [.unique_bytes, .old]')" '[45056,false]'
