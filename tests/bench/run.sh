#!/usr/bin/env bash
# How fast tplstore is beside its peers: tests/bench/run.sh [OPTION...]
#
#   --runs N      runs of each case on each side (5), after one that does not count
#   --case REGEX  only the cases whose names match
#   --quick       smaller disks and shorter runs: for trying, not for judging
#   --json FILE   where the results go (build/bench.json)
#   --before DIR  measure also what another build has made (DIR has its tools/ and plugin/), in the
#                 same runs, and what we are in relation to it; 0.97 of it is required of each case
#   --server ARGS what tplstore is served with, like boot-cache=0
#   --self        nbdkit file in the place of tplstore: how far from 1 this machine's noise goes
#   --keep        keep the files
#
# Each case does the same I/O, through fio's NBD engine over Unix sockets, on a volume of tplstore
# and on its peer. Both are prepared with the same requests, everything that is read is in the page
# cache, and what was written before is on disk. The runs of both sides alternate; the table
# has their medians. Ends with 1 when a ratio misses what is required.
#
# Rows are requests per second; latency in ns; or what the server used of a processor, user and
# system, in ns for each request: the number that a busy machine changes least. How often its threads
# sleep and wake each other is still chance, worth more than what is looked for, so these have three
# times as many runs, short ones.
. "$(dirname "$0")/../functions.sh"

runs=5
only=
json=$checkout/build/bench.json
self=
server_args=()
before=
before_required=0.97
size_mib=1024
seconds=4
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=$2; shift ;;
    --case) only=$2; shift ;;
    --json) json=$2; shift ;;
    --quick) size_mib=256 seconds=1 ;;
    --before) before=$(cd "$2" && pwd); shift ;;
    --server) read -ra server_args <<<"$2"; shift ;;
    --self) self=1 ;;
    --keep) export KEEP=1 ;;
    *) sed -n '2,/^#.*--keep/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
requires fio jq nbdcopy qemu-img qemu-nbd
mkdir -p "$(dirname "$json")"

# name; peer; metric; required ratio or "-"; what is prepared, here and there; fio's options.
#
# Prepared are: `template`: data as it was imported; `own`: every block written once with 4 KiB
# requests, ours over a template, the peer's in a sparse file; `fresh`: as template, but anew for each run; `empty`: nothing, anew for each
# run; `large`: as fresh, of a template four times as large, so that most requests are the first in a
# cluster of qcow2 too; `overlay`: a new qcow2 file over the same image.
#
# Runs that write for the first time end when they have done so many requests, the others by time:
# a file that was written here and there takes minutes to remove where the host discards.
timed="--time_based --runtime=$seconds"
many="--number_ios=$((96 * size_mib))"
few="--number_ios=$((16 * size_mib)) --loops=2"
cases="
random read of template data      | file  | iops    | 0.95 | template | template | $timed --rw=randread --bs=4k --iodepth=32
random read of own data           | file  | iops    | 0.95 | own      | own      | $timed --rw=randread --bs=4k --iodepth=32
random overwrite                  | file  | iops    | 0.95 | own      | own      | $timed --rw=randwrite --bs=4k --iodepth=32
random first write                | qcow2 | iops    | 5.0  | large    | overlay  | --number_ios=$((48 * size_mib)) --rw=randwrite --bs=4k --iodepth=32
random fill of an empty volume    | file  | iops    | 0.9  | empty    | empty    | --rw=randwrite --bs=4k --iodepth=32
sequential read of template data  | file  | iops    | 0.9  | template | template | $timed --rw=read --bs=128k --iodepth=32
sequential read of own data       | file  | iops    | 0.9  | own      | own      | $timed --rw=read --bs=128k --iodepth=32
sequential overwrite              | file  | iops    | 0.9  | own      | own      | $timed --rw=write --bs=128k --iodepth=32
sequential first write            | file  | iops    | -    | fresh    | empty    | --rw=write --bs=128k --iodepth=32
overwrite, flush after every 32   | file  | iops    | 0.9  | own      | own      | $timed --rw=randwrite --bs=4k --iodepth=32 --fsync=32
first write, flush after every 32 | file  | iops    | 0.75 | fresh    | empty    | --number_ios=$((32 * size_mib)) --rw=randwrite --bs=4k --iodepth=32 --fsync=32
latency of a template read        | file  | latency | 1.05 | template | template | $timed --rw=randread --bs=4k --iodepth=1
latency of a read of own data     | file  | latency | 1.05 | own      | own      | $timed --rw=randread --bs=4k --iodepth=1
processor, 4 KiB template read    | file  | cpu     | 1.03 | template | template | $many --rw=randread --bs=4k --iodepth=32
processor, 4 KiB read of own data | file  | cpu     | 1.03 | own      | own      | $many --rw=randread --bs=4k --iodepth=32
processor, 4 KiB overwrite        | file  | cpu     | 1.03 | own      | own      | $many --rw=randwrite --bs=4k --iodepth=32
processor, 128 KiB read           | file  | cpu     | 1.02 | own      | own      | $few --rw=randread --bs=128k --iodepth=32
processor, 128 KiB overwrite      | file  | cpu     | 1.02 | own      | own      | $few --rw=randwrite --bs=128k --iodepth=32
processor, 4 KiB first write      | file  | cpu     | 0.95 | empty    | empty    | --rw=randwrite --bs=4k --iodepth=32
"

trim() {
    local text=${1#"${1%%[! ]*}"}
    echo "${text%"${text##*[! ]}"}"
}

# --- preparation: prepare_SIDE KIND RUN leaves the URI in $target.

image=$tmp/image.raw
peers=$tmp/peers  # nbdkit file serves what is in here
mkdir "$peers"

# fill URI: every block of the disk once, with 4 KiB requests.
fill() {
    fio --name=fill --thread --ioengine=nbd --uri="$1" --rw=randwrite --bs=4k --iodepth=32 \
        --output="$tmp/fill.out" >/dev/null 2>"$tmp/fio.log"
}

prepare_file() {
    local file=$peers/$2-$1
    target=$(uri "$2-$1" file)
    case $1 in
    template) [ -e "$file" ] || cp "$image" "$file" ;;
    # As our data file is: sparse, and written with 4 KiB requests. A copy would have large folios in
    # the page cache, which no volume filled like this can have.
    own) [ -e "$file" ] || { truncate -s "${size_mib}M" "$file"; fill "$target"; } ;;
    fresh) rm -f "$file"; cp "$image" "$file" ;;
    empty) rm -f "$file"; truncate -s "${size_mib}M" "$file" ;;
    esac
}

make_large() {
    [ -e "$image-large" ] ||
        dd if=/dev/urandom of="$image-large" bs=1M count=$((4 * size_mib)) status=none
    tplstore template show large >/dev/null 2>&1 ||
        tplstore template import large "$image-large" >/dev/null
}

# measure() runs in a subshell: what it starts is known by its pid file only.
stop_qcow2() {
    local pid
    pid=$(cat "$tmp/qcow2.pid" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || true
    await 10 has_ended "$pid"
    rm -f "$tmp/qcow2.pid" "$tmp/qcow2.socket"
}
on_exit stop_qcow2

prepare_qcow2() {
    stop_qcow2
    rm -f "$tmp/overlay.qcow2"
    make_large
    qemu-img create -q -f qcow2 -b "$image-large" -F raw "$tmp/overlay.qcow2"
    qemu-nbd -t -e 8 -f qcow2 --cache=writeback --aio=io_uring -k "$tmp/qcow2.socket" \
        --pid-file="$tmp/qcow2.pid" "$tmp/overlay.qcow2" >"$tmp/qcow2.log" 2>&1 &
    nbdkit_pid[qcow2]=$!  # for the next line
    await 10 server_is_ready_or_gone qcow2
    target=$(uri "" qcow2)
}

# prepare_tplstore KIND SERVER, where the environment says which build and which store it is.
prepare_tplstore() {
    target=$(uri "$1" "$2")
    case $1 in
    template) volume_exists template || tplstore volume create template --template golden ;;
    own)
        volume_exists own || {
            tplstore volume create own --template golden
            fill "$target"
        } ;;
    fresh)
        remove_volume fresh
        tplstore volume create fresh --template golden ;;
    large)
        make_large
        remove_volume large
        tplstore volume create large --template large ;;
    empty)
        remove_volume empty
        tplstore volume create empty --size "${size_mib}M" ;;
    esac >/dev/null
}

remove_volume() {
    volume_exists "$1" || return 0
    await 60 is_free "$1"
    tplstore volume rm "$1"
}

volume_exists() {
    tplstore volume show "$1" >/dev/null 2>&1
}

# measure SIDE KIND METRIC FIO-OPTION...: prints the number.
measure() {
    local side=$1 kind=$2 metric=$3
    shift 3
    case $side in
    ours)
        if [ -n "$self" ]; then prepare_file "$kind" ours; else prepare_tplstore "$kind" server; fi ;;
    before)
        use_before
        prepare_tplstore "$kind" before ;;
    file) prepare_file "$kind" peer ;;
    qcow2) prepare_qcow2 ;;
    esac
    sync
    case $kind in template | own) nbdcopy "$target" null: ;; esac
    local server=$side ticks_before ticks
    [ "$side" != ours ] || server=$([ -n "$self" ] && echo file || echo server)
    ticks_before=$(ticks_of "${nbdkit_pid[$server]}")
    fio --name=case --thread --ioengine=nbd --uri="$target" "$@" --output-format=json \
        --output="$tmp/fio.out" >/dev/null 2>"$tmp/fio.log" || fail "fio $* on $target"
    ticks=$(($(ticks_of "${nbdkit_pid[$server]}") - ticks_before))
    sed '/^{/,$!d' "$tmp/fio.out" >"$tmp/fio.json"  # fio's remarks stand before it
    case $metric in
    iops) jq '.jobs[0] | .read.iops + .write.iops | round' "$tmp/fio.json" ;;
    cpu) jq --argjson ns "$((ticks * (1000000000 / $(getconf CLK_TCK))))" \
        '.jobs[0] | $ns / (.read.total_ios + .write.total_ios) | round' "$tmp/fio.json" ;;
    latency) jq '.jobs[0].read.clat_ns.percentile["50.000000"]' "$tmp/fio.json" ;;
    esac
}

# ticks_of PID: what the process, with all threads that it had, used of processors so far.
ticks_of() {
    # The name in parentheses may have spaces.
    sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'
}

# Makes `tplstore` that of the other build, on its own store. measure() runs in a subshell.
use_before() {
    TPLSTORE=$before/tools/tplstore
    export TPLSTORE_STORE=$tmp/store-before
}

median() {
    printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"
}

# --- the servers

echo "Preparing (disks of $size_mib MiB, $runs runs of each)" >&2
dd if=/dev/urandom of="$image" bs=1M count="$size_mib" status=none
start_nbdkit file file dir="$peers"
if [ -z "$self" ]; then
    new_store
    tplstore template import golden "$image" >/dev/null
    start_nbdkit server "$TPLSTORE_PLUGIN" "$store" "${server_args[@]}"
fi
if [ -n "$before" ]; then
    (
        use_before
        tplstore init "$TPLSTORE_STORE" >/dev/null
        tplstore template import golden "$image" >/dev/null
    )
    start_nbdkit before "$before/plugin/nbdkit-tplstore-plugin.so" "$tmp/store-before"
fi

# --- the table

format="%-34s %-16s %12s %12s %7s %9s  %-8s%s\n"
# shellcheck disable=SC2059
printf "$format" case against ours peer ratio required verdict "${before:+before}"
declare -A peer_names=([file]="nbdkit file" [qcow2]="qemu-nbd qcow2")
missed=0
results=()
while IFS='|' read -r name peer metric required ours theirs options; do
    name=$(trim "$name") peer=$(trim "$peer") metric=$(trim "$metric") required=$(trim "$required")
    ours=$(trim "$ours") theirs=$(trim "$theirs")
    [[ -n $name && $name =~ $only ]] || continue
    [ -z "$self" ] || [ "$peer" = file ] || continue
    [ -z "$self" ] || ours=$theirs
    # shellcheck disable=SC2206  # they are words
    options=($options)
    of_ours=() of_peer=() of_before=()
    # Run 0 is a rehearsal: it finds files, memory and processors cold.
    rounds=$runs
    [ "$metric" != cpu ] || rounds=$((3 * runs))
    for ((run = 0; run <= rounds; run++)); do
        # Who goes first alternates too.
        for side in $( ((run % 2)) && echo "$peer ours ${before:+before}" ||
            echo "${before:+before} ours $peer"); do
            case $side in
            ours) of_ours[run]=$(measure ours "$ours" "$metric" "${options[@]}") ;;
            before) of_before[run]=$(measure before "$ours" "$metric" "${options[@]}") ;;
            *) of_peer[run]=$(measure "$peer" "$theirs" "$metric" "${options[@]}") ;;
            esac
        done
    done
    unset 'of_ours[0]' 'of_peer[0]' 'of_before[0]'
    row=$(jq -n --arg case "$name" --arg peer "$peer" --arg metric "$metric" \
        --argjson required "${required/#-/null}" \
        --argjson ours "$(median "${of_ours[@]}")" --argjson theirs "$(median "${of_peer[@]}")" \
        --argjson of_ours "$(printf '%s\n' "${of_ours[@]}" | jq -s .)" \
        --argjson of_peer "$(printf '%s\n' "${of_peer[@]}" | jq -s .)" \
        --argjson before "$(if [ -n "$before" ]; then median "${of_before[@]}"; else echo null; fi)" \
        --argjson of_before "$(printf '%s\n' "${of_before[@]}" | jq -s .)" \
        --argjson before_required "$before_required" '
        ($ours / $theirs) as $ratio |
        (if $before == null then null
         elif $metric != "iops" then $before / $ours else $ours / $before end) as $of_before_ratio |
        {case: $case, peer: $peer, unit: (if $metric == "iops" then "iops" else "ns" end),
         ours: $ours, theirs: $theirs, ratio: ($ratio * 1000 | round / 1000), required: $required,
         ok: (if $required == null then true elif $metric != "iops" then $ratio <= $required else $ratio >= $required end),
         of_ours: $of_ours, of_peer: $of_peer} +
        (if $before == null then {}
         else {before: $before, before_ratio: ($of_before_ratio * 1000 | round / 1000),
               of_before: $of_before, ok_before: ($of_before_ratio >= $before_required)} end)')
    results+=("$row")
    # shellcheck disable=SC2059,SC2046
    printf "$format" "$name" "${peer_names[$peer]}" $(jq -r '
        "\(.ours) \(.theirs) \(.ratio) " +
        if .required == null then "- -"
        else (if .unit == "ns" then "<=" else ">=" end) + "\(.required) " +
             (if .ok then "ok" else "MISSED" end)
        end +
        if .before == null then "" else
            " \(.before_ratio)" + (if .ok_before then "" else "_MISSED" end)
        end' <<<"$row")
    jq -e '.ok and .ok_before != false' <<<"$row" >/dev/null || missed=1
done <<<"$cases"

printf '%s\n' "${results[@]}" | jq -s --arg kernel "$(uname -r)" --arg nbdkit "$(nbdkit --version)" \
    --arg fio "$(fio --version)" --argjson cpus "$(nproc)" --argjson size_mib "$size_mib" \
    --argjson runs "$runs" --arg time "$(date -u +%FT%TZ)" '
    {time: $time, kernel: $kernel, nbdkit: $nbdkit, fio: $fio, cpus: $cpus, size_mib: $size_mib,
     runs: $runs, cases: .}' >"$json"
echo "Written to $json"
exit $missed
