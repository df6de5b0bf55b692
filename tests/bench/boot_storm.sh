#!/usr/bin/env bash
# How fast VMs boot, one or many at once, beside qcow2 overlays and nbdkit's own plugins:
# tests/bench/boot_storm.sh [OPTION...]
#
#   --runs N      runs of each side of a row (5)
#   --case REGEX  only the rows whose names match
#   --trace FILE  what a guest asks of its disk (tests/bench/replay_trace.cpp); recorded from the
#                 test guest's boot when it is not given
#   --json FILE   where the results go (build/bench-boot.json)
#   --keep        keep the files
#
# The trace is replayed without the guest's pauses, writes and flushes included, on new volumes, by
# as many clients as there are VMs. All files are on a file system of their own, of which the
# servers may read 300 times a second; before each run everything is dropped from the page cache
# and the servers start anew. The sides of a row alternate; the table has medians. Ends with 1 when
# a requirement is missed.
. "$(dirname "$0")/../functions.sh"

json=$checkout/build/bench-boot.json
trace=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --runs | --case) arguments+=("$1" "$2"); shift ;;
    --trace) trace=$(realpath "$2"); shift ;;
    --json) json=$2; shift ;;
    --keep) export KEEP=1 ;;
    *) sed -n '2,/^#.*--keep/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
requires root loop qemu-img qemu-nbd jq qemu-system-x86_64 mmdebstrap mkfs.ext4
# shellcheck source=SCRIPTDIR/../../examples/guest.sh
. "$checkout/examples/guest.sh"
mkdir -p "$(dirname "$json")"
: "${REPLAY_TRACE:=$checkout/build/release/tests/replay_trace}"

guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
"$checkout/examples/make-guest.sh" "$guest"

# --- what a guest asks for

if [ -z "$trace" ]; then
    echo "Recording a boot" >&2
    trace=$tmp/trace
    on_exit guest_kill
    cp --sparse=always "$guest/disk.raw" "$tmp/recorded.raw"
    start_nbdkit recorder --filter=log file "$tmp/recorded.raw" logfile="$tmp/recorded"
    guest_start "$(uri "" recorder)" "$tmp/guest.log" -kernel "$guest/vmlinuz" \
        -initrd "$guest/initrd" -append "console=ttyS0 root=/dev/vda rw quiet panic=-1"
    guest_expect "GUEST up" 240
    guest_say poweroff
    guest_wait 120
    stop_nbdkit recorder
    sed -nE 's/.*connection=[0-9]+ (Read|Write|Trim|Zero) id=[0-9]+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+).*/\1 \2 \3/p
             s/.*connection=[0-9]+ Flush .*/F/p' "$tmp/recorded" |
        while read -r kind offset length; do
            case $kind in
            F) echo F ;;
            *) echo "${kind:0:1} $((offset)) $((length))" ;;
            esac
        done >"$trace"
    rm "$tmp/recorded.raw"
fi

# --- where it is slow

group=/sys/fs/cgroup/blkio/tplstore-bench-$$
mkdir "$group" 2>/dev/null || skip "no cgroup that limits reads here"
on_exit rmdir "$group"
mkdir "$tmp/ram" "$tmp/slow"
mount -t tmpfs -o size=12G none "$tmp/ram" || skip "cannot mount here"
on_exit umount -l "$tmp/ram"
truncate -s 10G "$tmp/ram/slow.img"
mkfs.ext4 -q -m 0 "$tmp/ram/slow.img"
mount -o loop "$tmp/ram/slow.img" "$tmp/slow"
on_exit umount -l "$tmp/slow"
device=$(cat "/sys/class/block/$(basename "$(findmnt -no SOURCE "$tmp/slow")")/dev")
echo "$device 300" >"$group/blkio.throttle.read_iops_device"

$python -B "$(dirname "$0")/boot_storm.py" --tplstore "$TPLSTORE" --plugin "$TPLSTORE_PLUGIN" \
    --replay-trace "$REPLAY_TRACE" --trace "$trace" --image "$guest/disk.raw" --group "$group" \
    --device "$device" --directory "$tmp/slow" --json "$json" \
    "${arguments[@]+"${arguments[@]}"}"
