#!/usr/bin/env bash
# What the lock, and looking past it, cost a VM: tests/bench/lock.sh [OPTION...]
#
#   --runs N      hand-overs and first writes (21); a third of it of each row of fio
#   --volumes N   how many are listed (1000)
#   --moves N     migrations of a guest on each side (60); 0 for none. One takes 15 to 250 ms:
#                 medians of fewer than 100 move by a tenth
#   --json FILE   where the results go (build/lock.json)
#
# The rows, and what is wanted (what connecting costs is tests/bench/connect.sh's):
#   - the first write of a VM that a volume is handed over to, against one of a VM that has its
#     volume already: 20 ms longer at most;
#   - fio's overwrites of 4 KiB by a VM with a token, and with ;multi, against one without: no slower
#     than the runs of one row are apart;
#   - such overwrites, one at a time, while VOLUME@current is opened, read for two seconds and
#     closed: the slowest hundredth of 50 ms takes more than twice as long as before for a
#     second at most, in sum;
#   - `nbdinfo --list` of a thousand volumes: a second at most, and nothing of the store changes;
#   - how long a guest stands still that migrates: 10 % longer at most than with a raw file behind
#     nbdkit's file plugin.
# Ends with 1 when one of them takes longer.
. "$(dirname "$0")/../functions.sh"

runs=21
volumes=1000
moves=60
json=$checkout/build/lock.json
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=$2; shift ;;
    --volumes) volumes=$2; shift ;;
    --moves) moves=$2; shift ;;
    --json) json=$2; shift ;;
    *) sed -n '2,/^#   --json/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
requires python-libnbd nbdinfo fio jq
[ "$moves" = 0 ] || requires qemu-system-x86_64 mmdebstrap
mkdir -p "$(dirname "$json")"

new_store
serve

# Each hand-over is of a volume of its own; the other write is the next one of the same VM, to the
# next block that nobody has written.
cat >"$tmp/handover.py" <<'PYTHON'
import nbd, subprocess, sys, time
tplstore, uri, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
moved, plain = [], []
def write(client, offset):
    begun = time.monotonic()
    client.pwrite(b"x" * 4096, offset)
    return (time.monotonic() - begun) * 1000
for run in range(runs):
    name = f"moved{run}"
    subprocess.run([tplstore, "volume", "create", name, "--size", "1G"], check=True,
                   stdout=subprocess.DEVNULL)
    source, target = nbd.NBD(), nbd.NBD()
    source.connect_uri(uri.replace("VOLUME", f"{name};writer=source"))
    source.pwrite(b"s" * 4096, 0)
    source.flush()
    subprocess.run([tplstore, "volume", "handover", name, "--to", "target"], check=True,
                   stdout=subprocess.DEVNULL)
    target.connect_uri(uri.replace("VOLUME", f"{name};writer=target"))
    target.pread(512, 0)
    moved.append(write(target, 1 << 20))
    plain.append(write(target, 2 << 20))
    target.shutdown()
middle = lambda times: sorted(times)[len(times) // 2]
print("%.3f %.3f %.3f" % (middle(moved), middle(plain), max(moved)))
PYTHON
read -r moved plain slowest < <($python "$tmp/handover.py" "$TPLSTORE" "$(uri VOLUME)" "$runs")

# fio_writes EXPORT SECONDS OPTION...
fio_writes() {
    local export=$1 seconds=$2
    shift 2
    fio --name=writes --thread --ioengine=nbd --uri="$(uri "$export")" --rw=randwrite --bs=4k \
        --size=1G --randrepeat=0 --norandommap --time_based --runtime="$seconds" "$@" \
        2>"$tmp/fio.log" || fail "fio: $(cat "$tmp/fio.log")"
}
# From here on every write is an overwrite.
tplstore volume create busy --size 1G >/dev/null
fio --name=fill --thread --ioengine=nbd --uri="$(uri busy)" --rw=write --bs=1M --size=1G \
    --end_fsync=1 >"$tmp/fio.out" 2>"$tmp/fio.log" || fail "fio: $(cat "$tmp/fio.log")"
for ((run = 0; run <= runs / 3; run++)); do
    for who in 'busy' 'busy;writer=fio' 'busy;writer=fio;multi'; do
        fio_writes "$who" 2 --iodepth=8 --output-format=json --output="$tmp/fio.out"
        # fio's remarks stand before it.
        [ $run = 0 ] || sed '/^{/,$!d' "$tmp/fio.out" |
            jq -c --arg who "$who" '[$who, .jobs[0].write.iops]' >>"$tmp/iops"
        sync -f "$store"
    done
done

fio_writes busy 14 --iodepth=1 --write_lat_log="$tmp/writes" --log_unix_epoch=1 \
    --output="$tmp/fio.out" &
fio=$!
sleep 7  # of which the last five seconds are what was before
opened=$($python - "$(uri busy@current)" <<'PYTHON'
import nbd, random, sys, time
opened = time.time()
client = nbd.NBD()
client.connect_uri(sys.argv[1])
while time.time() < opened + 2:
    client.pread(4096, random.randrange(1 << 18) << 12)
    time.sleep(0.002)
client.shutdown()
print(int(opened * 1000))
PYTHON
)
wait $fio
read -r before worst slow_ms slow_before_ms longest < <($python - "$tmp/writes_clat.1.log" "$opened" <<'PYTHON'
import sys
opened = int(sys.argv[2])
WINDOW = 50
writes = [tuple(map(int, line.split(",")[:2])) for line in open(sys.argv[1])]
def p99(part):
    return sorted(part)[len(part) * 99 // 100] / 1000
def windows(begin, end):
    parts = {}
    for at, t in writes:
        if begin <= at < end:
            parts.setdefault((at - begin) // WINDOW, []).append(t)
    # One in which nothing ended is part of what the next one's took.
    return [p99(part) for part in parts.values()] + [1e9] * ((end - begin) // WINDOW - len(parts))
before = p99([t for at, t in writes if opened - 5000 <= at < opened])
slow = lambda parts: WINDOW * sum(part > 2 * before for part in parts)
after = windows(opened, opened + 6000)
print("%.0f %.0f %d %d %.0f" % (before, max(w for w in after if w < 1e9), slow(after),
                                slow(windows(opened - 5000, opened)),
                                max(t for at, t in writes if at >= opened) / 1000))
PYTHON
)

seq $((volumes - runs - 1)) |
    xargs -P 8 -I '{}' "$TPLSTORE" volume create 'listed{}' --size 1G >/dev/null
state() { find "$store" -printf '%p %s %T@ %C@\n' | sort; }
nbdinfo --list "$(uri "")" >/dev/null
state >"$tmp/before"
list_ms=()
for run in 1 2 3; do
    begun=${EPOCHREALTIME/./}
    nbdinfo --list --json "$(uri "")" >"$tmp/list"
    list_ms+=($(((${EPOCHREALTIME/./} - begun) / 1000)))
done
state >"$tmp/after"
listed=$(jq '.exports | length' "$tmp/list")
cmp -s "$tmp/before" "$tmp/after" && changes=false || changes=true

migration=null
if [ "$moves" != 0 ]; then
    stop_nbdkit
    rm -rf "$store"
    guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
    "$checkout/examples/make-guest.sh" "$guest" >"$tmp/guest.log" 2>&1 || fail "no guest"
    new_store
    tplstore template import golden "$guest/disk.raw" >/dev/null
    tplstore volume create vm1 --template golden >/dev/null
    export tmp TPLSTORE TPLSTORE_PLUGIN
    $python "$checkout/tests/bench/migration.py" "$guest" "$moves" >"$tmp/migration.out"
    migration=$(tail -n 1 "$tmp/migration.out")
fi

jq -n --argjson moved "$moved" --argjson plain "$plain" --argjson slowest "$slowest" \
    --argjson before "$before" --argjson worst "$worst" --argjson slow_ms "$slow_ms" \
    --argjson slow_before_ms "$slow_before_ms" --argjson longest "$longest" \
    --argjson list "$(printf '%s\n' "${list_ms[@]}" | jq -s 'sort | .[1]')" \
    --argjson listed "$listed" --argjson changes $changes --argjson migration "$migration" \
    --slurpfile iops "$tmp/iops" '
    def median: sort | .[length / 2 | floor];
    def runs($who): [$iops[] | select(.[0] == $who)[1]];
    ($iops | map(.[0]) | unique | map({key: ., value: (runs(.) | median)}) | from_entries) as $medians |
    (runs("busy") | (max - min) / median) as $noise |
    {handover: {first_write_ms: $moved, other_write_ms: $plain, slowest_ms: $slowest,
                ok: ($moved - $plain <= 20)},
     fio: {iops: $medians, noise: $noise,
           ok: all($medians[]; . >= $medians.busy * (1 - ([$noise, 0.03] | max)))},
     current: {p99_before_us: $before, p99_worst_us: $worst, longest_us: $longest,
               slow_for_ms: $slow_ms, slow_before_for_ms: $slow_before_ms, ok: ($slow_ms <= 1000)},
     list: {volumes: $listed, ms: $list, store_changes: $changes,
            ok: ($list <= 1000 and ($changes | not))}} |
    if $migration then
        .migration = ($migration | map_values({downtime_ms: (.downtime_ms | median),
                                               pause_ms: (.pause_ms | median), runs: .})) |
        .migration.ok = (.migration | .volume.downtime_ms <= 1.1 * .file.downtime_ms)
    else . end |
    .ok = all(.[]; .ok)' >"$json"
jq -r '"handed over: the first write takes \(.handover.first_write_ms) ms (slowest \(
        .handover.slowest_ms)), another one \(.handover.other_write_ms)",
    (.fio.iops | to_entries[] | "overwrites of \(.key): \(.value | round) a second"),
    "@current: the slowest hundredth took \(.current.p99_before_us) us before, then at most \(
        .current.p99_worst_us), one write \(.current.longest_us); more than twice as long for \(
        .current.slow_for_ms) ms (before: \(.current.slow_before_for_ms))",
    "nbdinfo --list of \(.list.volumes): \(.list.ms) ms, the store \(
        if .list.store_changes then "CHANGES" else "stays as it is" end)",
    if .migration then .migration | "moved: the guest stood still for \(.volume.downtime_ms) ms, with a raw file \(
        .file.downtime_ms); its writes for \(.volume.pause_ms) and \(.file.pause_ms)" else empty end' "$json"
echo "Written to $json"
jq -e .ok "$json" >/dev/null
