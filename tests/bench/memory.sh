#!/usr/bin/env bash
# What tplstore's memory is beside nbdkit's own: tests/bench/memory.sh [--json FILE]
#
# 100 connections, each to a volume of 100 GiB, each with the same random reads and writes; once to
# tplstore and once to nbdkit null. What their servers' resident memory differs by is what tplstore
# needs, and must stay within 64 MiB.
. "$(dirname "$0")/../functions.sh"

json=$checkout/build/memory.json
[ "${1-}" != --json ] || json=$2
volumes=100
size=100G
limit_mib=64
requires python-libnbd jq
mkdir -p "$(dirname "$json")"

# measure NAME EXPORT...: connects, makes the requests, and leaves the server's VmRSS in $rss_kib,
# before anybody connected in $idle_kib.
measure() {
    local name=$1 status=/proc/${nbdkit_pid[$1]}/status name_of_export uris=()
    shift
    for name_of_export; do
        uris+=("$(uri "$name_of_export" "$name")")
    done
    idle_kib=$(sed -n 's/^VmRSS:\s*\([0-9]*\) kB/\1/p' "$status")
    mkfifo "$tmp/$name.stdin"
    $python "$(dirname "$0")/connections.py" "${uris[@]}" \
        <"$tmp/$name.stdin" >"$tmp/$name.out" 2>"$tmp/client.log" &
    local client=$!
    exec {hold}>"$tmp/$name.stdin"
    await 300 eval "grep -q ready '$tmp/$name.out' || has_ended $client"
    grep -q ready "$tmp/$name.out" || fail "the client failed: $(cat "$tmp/client.log")"
    rss_kib=$(sed -n 's/^VmRSS:\s*\([0-9]*\) kB/\1/p' "$status")
    [ "$name" != server ] || tplstore stats --json >"$tmp/stats.json"
    exec {hold}>&-
    wait $client
}

new_store
names=()
for ((number = 0; number < volumes; number++)); do
    names+=("vm$number")
    tplstore volume create "vm$number" --size $size >/dev/null
done
start_nbdkit null null $size
measure null "${names[@]}"
null_kib=$rss_kib
serve
measure server "${names[@]}"

jq -n --argjson ours "$rss_kib" --argjson idle "$idle_kib" --argjson null "$null_kib" \
    --argjson limit $limit_mib --argjson volumes $volumes \
    --argjson map "$(jq '.map.bytes' "$tmp/stats.json")" '
    ($ours - $null) as $more |
    {volumes: $volumes, rss_kib: $ours, rss_idle_kib: $idle, null_rss_kib: $null,
     difference_mib: ($more / 102.4 | round / 10), limit_mib: $limit,
     map_bytes: $map, ok: ($more <= $limit * 1024)}' >"$json"
jq -r '"\(.volumes) volumes of 100 GiB: \(.rss_kib) KiB, nbdkit null \(.null_rss_kib) KiB; difference " +
    "\(.difference_mib) MiB (of it \(.map_bytes / 104857.6 | round / 10) MiB map), at most " +
    "\(.limit_mib) MiB: \(if .ok then "ok" else "MISSED" end)"' "$json"
echo "Written to $json"
jq -e .ok "$json" >/dev/null
