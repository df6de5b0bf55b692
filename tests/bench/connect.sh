#!/usr/bin/env bash
# What connecting costs, and what several connections gain: tests/bench/connect.sh [OPTION...]
#
#   --runs N      runs of each row (5), after one that does not count
#   --size MIB    what nbdcopy copies (1024)
#   --json FILE   where the results go (build/connect.json)
#
# Connecting, and leaving again, a hundred times in a run: to a volume without a token, with one, with
# one and the longest list of losers, and to nbdkit null. nbdcopy into and out of a volume that was
# written before: without a token, with one, with ;multi, and a file of nbdkit's. The runs of all rows
# alternate; the table has medians. Ends with 1 when connecting takes more than 10 ms.
. "$(dirname "$0")/../functions.sh"

runs=5
size_mib=1024
json=$checkout/build/connect.json
limit_ms=10
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=$2; shift ;;
    --size) size_mib=$2; shift ;;
    --json) json=$2; shift ;;
    *) sed -n '2,/^#   --json/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
requires python-libnbd nbdcopy jq
mkdir -p "$(dirname "$json")" "$tmp/peers"

new_store
for name in plain losers copy; do
    tplstore volume create $name --size "${size_mib}M" >/dev/null
done
dd if=/dev/urandom of="$tmp/image" bs=1M count="$size_mib" status=none
truncate -s "${size_mib}M" "$tmp/peers/copy"
serve
start_nbdkit null null 1G
start_nbdkit file file dir="$tmp/peers"

cat >"$tmp/connect.py" <<'PYTHON'
import nbd, sys, time
uri, count, writes = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["write"]
times = []
for _ in range(count):
    begun = time.monotonic()
    client = nbd.NBD()
    client.connect_uri(uri)
    times.append(time.monotonic() - begun)
    if writes:
        client.pwrite(bytes(4096), 0)
    client.shutdown()
    time.sleep(0.02)  # in which the server closes the volume
print("%.3f" % (sorted(times)[count // 2] * 1000))
PYTHON
connect() { $python "$tmp/connect.py" "$@"; }
for name in plain copy; do
    nbdcopy "$tmp/image" "$(uri $name)"
done
nbdcopy "$tmp/image" "$(uri copy file)"
for number in {1..9}; do
    connect "$(uri "losers;writer=loser-$number")" 1 write >/dev/null
    await 10 is_free losers || fail "volume losers stays taken"
done

# seconds COMMAND...
seconds() {
    local begun=${EPOCHREALTIME/./}
    "$@"
    local ended=${EPOCHREALTIME/./}
    printf '%d.%06d\n' $(((ended - begun) / 1000000)) $(((ended - begun) % 1000000))
}

# The rows: a name, and the command that prints a number.
rows=(
    "connecting, ms: nbdkit null" 'connect "$(uri "" null)" 100'
    "connecting, ms: no token" 'connect "$(uri plain)" 100'
    "connecting, ms: a token" 'connect "$(uri "plain;writer=a")" 100'
    "connecting, ms: a token, losers" 'connect "$(uri "losers;writer=a")" 100'
)
for where in file "no token" "a token" multi; do
    case $where in
    file) export='uri copy file' ;;
    "no token") export='uri copy' ;;
    "a token") export='uri "copy;writer=$run-s"' ;;
    multi) export='uri "copy;writer=$run-m;multi"' ;;
    esac
    rows+=("nbdcopy in, s: $where" "seconds nbdcopy '$tmp/image' \"\$($export)\""
           "nbdcopy out, s: $where" "seconds nbdcopy \"\$($export)\" null:")
done

for ((run = 0; run <= runs; run++)); do
    for ((row = 0; row < ${#rows[@]}; row += 2)); do
        number=$(eval "${rows[row + 1]}")
        [ $run = 0 ] || printf '%s\t%s\n' "${rows[row]}" "$number" >>"$tmp/numbers"
    done
done
jq -R -s --argjson limit $limit_ms '
    [split("\n")[] | select(. != "") | split("\t") | {row: .[0], number: (.[1] | tonumber)}] |
    group_by(.row) |
    map({row: .[0].row, runs: map(.number), median: (map(.number) | sort | .[length / 2 | floor])}) |
    {limit_ms: $limit, rows: .,
     ok: all(.[]; (.row | startswith("connecting") | not) or .median <= $limit)}' \
    "$tmp/numbers" >"$json"
jq -r '.rows[] | "\(.median)\t\(.row)"' "$json" | expand -t 10
echo "Written to $json"
jq -e .ok "$json" >/dev/null
