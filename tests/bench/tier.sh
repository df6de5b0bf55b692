#!/usr/bin/env bash
# What importing costs, and what the tier gains: tests/bench/tier.sh [OPTION...]
#
#   --runs N      runs of each side (5)
#   --case REGEX  only the cases whose names match
#   --quick       smaller images and shorter runs: for trying, not for judging
#   --json FILE   where the results go (build/tier.json)
#
# Both sides of a case alternate; the table has the medians and their ratio. Directories of the tier
# are file systems on loop devices over memory, which a cgroup holds to so many reads a second: what
# is measured is then the limit and not this machine. Ends with 1 when a ratio misses what is
# required.
. "$(dirname "$0")/../functions.sh"

runs=5
only=
json=$checkout/build/tier.json
size_mib=1024
seconds=6
reads_per_second=500
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=$2; shift ;;
    --case) only=$2; shift ;;
    --json) json=$2; shift ;;
    --quick) size_mib=256 seconds=2 ;;
    *) sed -n '2,/^#.*--json/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
requires root loop fio jq qemu-img mkfs.ext4 python-libnbd
mkdir -p "$(dirname "$json")"

missed=0
results=()
# row NAME AGAINST RATIO RELATION REQUIRED: RELATION is >= or <=.
row() {
    local verdict
    verdict=$(jq -rn "if $3 $4 $5 then \"ok\" else \"MISSED\" end")
    [ "$verdict" = ok ] || missed=1
    printf '%-46s %-34s %8.3f  %s %-6s %s\n' "$1" "$2" "$3" "$4" "$5" "$verdict"
    results+=("$(jq -n --arg case "$1" --arg against "$2" --argjson ratio "$3" \
        --arg relation "$4" --argjson required "$5" --arg verdict "$verdict" '$ARGS.named')")
}
wanted() {
    [[ $1 =~ $only ]]
}
end_with_results() {
    printf '%s\n' "${results[@]}" | jq -s --arg kernel "$(uname -r)" --argjson size_mib "$size_mib" \
        --argjson runs "$runs" --arg time "$(date -u +%FT%TZ)" \
        '{time: $time, kernel: $kernel, size_mib: $size_mib, runs: $runs, cases: .}' >"$json"
    echo "Written to $json"
    exit $missed
}
median() {
    printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"
}
ratio() {
    jq -n "$1 / $2"
}
# alternate OURS PEER: runs both functions, which print a number, in turn; leaves $ours and $theirs.
alternate() {
    local run of_ours=() of_peer=()
    for ((run = 0; run < runs; run++)); do
        of_ours+=("$("$1" "$run")")
        of_peer+=("$("$2" "$run")")
    done
    ours=$(median "${of_ours[@]}") theirs=$(median "${of_peer[@]}")
}
# seconds COMMAND...: how long it takes, from cold, until all is on disk.
seconds() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    local began=${EPOCHREALTIME/./}
    "$@" >/dev/null
    sync
    jq -n "($(date +%s%6N) - $began) / 1000000"
}

# --- importing

image=$tmp/image.raw
dd if=/dev/urandom of="$image" bs=1M count="$size_mib" status=none
qemu-img convert -f raw -O qcow2 "$image" "$tmp/image.qcow2"
new_store

import_anew() {
    rm -rf "$tmp/imported"
    tplstore init "$tmp/imported" >/dev/null
    seconds tplstore -s "$tmp/imported" template import golden "$1"
}
import_raw() { import_anew "$image"; }
import_qcow2() { import_anew "$tmp/image.qcow2"; }
import_again() { seconds tplstore -s "$tmp/imported" template import "again$1" "$image"; }
copy_raw() {
    rm -f "$tmp/copy.raw"
    seconds cp --sparse=always "$image" "$tmp/copy.raw"
}
convert_qcow2() {
    rm -f "$tmp/copy.raw"
    seconds qemu-img convert -f qcow2 -O raw "$tmp/image.qcow2" "$tmp/copy.raw"
}
if wanted "import of a raw image"; then
    alternate import_raw copy_raw
    row "import of a raw image" "cp --sparse=always" "$(ratio "$theirs" "$ours")" ">=" 0.7
fi
if wanted "import of a qcow2"; then
    alternate import_qcow2 convert_qcow2
    row "import of a qcow2" "qemu-img convert" "$(ratio "$theirs" "$ours")" ">=" 0.9
fi
if wanted "import of what is there"; then
    import_raw >/dev/null
    alternate import_again copy_raw
    again=$ours
    alternate import_raw copy_raw
    row "import of what is there" "the first import" "$(ratio "$ours" "$again")" ">=" 2.0
fi
if wanted "resumed after kill -9 at 90 %"; then
    import_killed() {
        rm -rf "$tmp/imported"
        tplstore init "$tmp/imported" >/dev/null
        start_nbdkit source --filter=log file "$image" logfile="$tmp/source.log"
        : >"$tmp/source.log"
        "$TPLSTORE" -s "$tmp/imported" template import golden "$(uri "" source)" >/dev/null 2>&1 &
        local importer=$!
        $python - "$importer" "$tmp/source.log" $((size_mib * 1048576 * 9 / 10)) <<'END'
import os, re, signal, sys, time
log = open(sys.argv[2])
text = ""
while True:
    text = text[-4096:] + log.read()
    read = [int(offset, 16) for offset in re.findall(r" Read id=\d+ offset=(0x[0-9a-f]+) ", text)]
    if max(read, default=0) >= int(sys.argv[3]):
        break
    time.sleep(0.002)
os.kill(int(sys.argv[1]), signal.SIGKILL)
END
        wait "$importer" 2>/dev/null || true
        kill_nbdkit source
        tplstore -s "$tmp/imported" template import golden "$image" --json |
            jq ".stored_bytes / ($size_mib * 1048576)"
    }
    stored=()
    for ((run = 0; run < runs; run++)); do stored+=("$(import_killed)"); done
    row "resumed after kill -9 at 90 %" "all of it, stored again" "$(median "${stored[@]}")" "<=" 0.15
fi
rm -rf "$tmp/imported" "$tmp/copy.raw" "$tmp/image.qcow2"

if wanted "two images with common files"; then
    # Two file systems of the same files, made separately; one has more.
    mkdir "$tmp/tree"
    cp -r /usr/include /usr/share/doc /usr/lib/python3 "$tmp/tree" 2>/dev/null || true
    mke2fs -q -t ext4 -d "$tmp/tree" "$tmp/one.raw" 1500M
    dd if=/dev/urandom of="$tmp/tree/aaa" bs=1M count=100 status=none
    mke2fs -q -t ext4 -d "$tmp/tree" "$tmp/two.raw" 1500M
    ideal=$($python - "$tmp/one.raw" "$tmp/two.raw" <<'END'
import hashlib, sys
zero, seen = bytes(4096), set()
for path in sys.argv[1:]:
    with open(path, "rb") as image:
        while block := image.read(4096):
            if block != zero:
                seen.add(hashlib.blake2b(block, digest_size=16).digest())
print(len(seen) * 4096)
END
    )
    tplstore init "$tmp/common" >/dev/null
    for name in one two; do
        tplstore -s "$tmp/common" template import "$name" "$tmp/$name.raw" >/dev/null
    done
    stored=$(($(du -sk "$tmp/common/segments" | cut -f 1) * 1024))
    row "two images with common files" "each 4 KiB once" "$(ratio "$ideal" "$stored")" ">=" 0.9
    rm -rf "$tmp/tree" "$tmp/one.raw" "$tmp/two.raw" "$tmp/common"
fi

# --- reading from the tier

group=/sys/fs/cgroup/blkio/tplstore-bench-$$
mkdir "$group" 2>/dev/null || skip "no cgroup that limits reads here"
on_exit rmdir "$group"
mkdir "$tmp/ram"
mount -t tmpfs -o size=$((8 * size_mib + 4096))M none "$tmp/ram" || skip "cannot mount here"
on_exit umount -l "$tmp/ram"

# device_of NAME: of the file system at $tmp/NAME.
device_of() {
    echo "/sys/class/block/$(basename "$(findmnt -no SOURCE "$tmp/$1")")"
}
# make_disk NAME MIB: a small file system at $tmp/NAME that a server in the group reads slowly.
make_disk() {
    truncate -s "$2M" "$tmp/ram/$1.img"
    mkfs.ext4 -q -m 0 "$tmp/ram/$1.img"
    mkdir "$tmp/$1"
    mount -o loop "$tmp/ram/$1.img" "$tmp/$1"
    on_exit umount -l "$tmp/$1"
    echo "$(cat "$(device_of "$1")/dev") $reads_per_second" >"$group/blkio.throttle.read_iops_device"
}
limit() {
    echo "${nbdkit_pid[$1]}" >"$group/cgroup.procs"
}

# --- a boot, from cold

guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
if wanted "cold first boot of 1 VM" && ! command -v qemu-system-x86_64 >/dev/null; then
    echo "cold first boot of 1 VM: skipped, there is no qemu-system-x86_64" >&2
elif wanted "cold first boot of 1 VM"; then
    # shellcheck source=SCRIPTDIR/../../examples/guest.sh
    . "$checkout/examples/guest.sh"
    on_exit guest_kill
    "$checkout/examples/make-guest.sh" "$guest"
    # What a guest reads while it boots.
    start_nbdkit recorded --filter=log --filter=cow file "$guest/disk.raw" logfile="$tmp/boot.log"
    guest_start "$(uri "" recorded)" "$tmp/guest.log" -kernel "$guest/vmlinuz" \
        -initrd "$guest/initrd" -append "console=ttyS0 root=/dev/vda rw quiet panic=-1"
    guest_expect "GUEST up" 240
    guest_kill
    stop_nbdkit recorded
    sed -n 's/.* Read .*offset=\(0x[0-9a-f]*\) count=\(0x[0-9a-f]*\) .*/\1 \2/p' "$tmp/boot.log" \
        >"$tmp/boot.trace"
    make_disk boot-file 2048
    cp --sparse=always "$guest/disk.raw" "$tmp/boot-file/disk.raw"
    start_nbdkit boot-file file "$tmp/boot-file/disk.raw"
    make_disk boot-store 2048
    tplstore init "$tmp/boot-store/store" >/dev/null
    tplstore -s "$tmp/boot-store/store" template import guest "$guest/disk.raw" >/dev/null
    tplstore -s "$tmp/boot-store/store" volume create vm1 --template guest >/dev/null
    start_nbdkit boot-store "$TPLSTORE_PLUGIN" "$tmp/boot-store/store"
    # boot SERVER EXPORT: reads of the device, and seconds to stderr.
    boot() {
        limit "$1"
        sync
        echo 3 >/proc/sys/vm/drop_caches
        local before began=${EPOCHREALTIME/./}
        before=$(awk '{ print $1 }' "$(device_of "$1")/stat")
        $python - "$(uri "$2" "$1")" "$tmp/boot.trace" <<'END'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for line in open(sys.argv[2]):
    offset, count = (int(word, 16) for word in line.split())
    h.pread(count, offset)
END
        echo $(($(awk '{ print $1 }' "$(device_of "$1")/stat") - before))
        echo "$1: $(jq -n "($(date +%s%6N) - $began) / 1000000") s" >&2
    }
    boot_ours() { boot boot-store vm1; }
    boot_file() { boot boot-file ""; }
    alternate boot_ours boot_file
    segments=$(find "$tmp/boot-store/store/segments" -type f | wc -l)
    echo "$(wc -l <"$tmp/boot.trace") reads of the guest; of the device $ours of ours," \
        "$theirs of nbdkit file; $segments segments" >&2
    row "cold first boot of 1 VM, device reads" "nbdkit file, and 1 a segment" \
        "$(jq -n "$ours / ($theirs + $segments)")" "<=" 1.0
    stop_nbdkit boot-file
    stop_nbdkit boot-store
fi

if ! wanted "copies in 4 equal directories" && ! wanted "16 VMs, 4 directories" &&
    ! wanted "16 VMs, 3 of 4 directories" && ! wanted "p99 while copies are moved"; then
    end_with_results
fi
make_disk origin $((size_mib * 5 / 4))
tplstore template move-origin "$tmp/origin/segments" >/dev/null
tplstore template import golden "$image" >/dev/null
# The limits are for the servers only, so all is filled before.
for ((i = 1; i <= 4; i++)); do
    make_disk "ssd$i" $((size_mib / 2))
    tplstore tier add "$tmp/ssd$i" --tier-state "$tmp/four" >/dev/null
done
make_disk alone $((size_mib * 5 / 4))
tplstore tier add "$tmp/alone" --tier-state "$tmp/one" >/dev/null
make_disk whole $((size_mib * 5 / 4))
cp "$image" "$tmp/whole/image"
for state in four one; do
    tplstore template warm golden --tier-state "$tmp/$state" >/dev/null
done

if wanted "copies in 4 equal directories"; then
    furthest=$(tplstore tier list --tier-state "$tmp/four" --json |
        jq '(map(.segments) | add) as $all | map((.segments / $all - 0.25) * 100 | fabs) | max')
    # Three standard deviations.
    allowed=$(jq -n "300 * ((0.25 * 0.75 / ($size_mib / 4)) | sqrt)")
    row "copies in 4 equal directories" "25 %, points" "$furthest" "<=" "$allowed"
fi

declare -A serves=([four]=a [one]=b)
for state in four one; do
    start_nbdkit "$state" "$TPLSTORE_PLUGIN" "$store" io=direct tier-state="$tmp/$state"
    limit "$state"
    for ((i = 1; i <= 16; i++)); do
        tplstore volume create "${serves[$state]}$i" --template golden >/dev/null
    done
done
start_nbdkit whole file "$tmp/whole/image" fadvise=random cache=none
limit whole

# read_with_16 SERVER EXPORT-PREFIX: reads a second of 16 VMs together.
read_with_16() {
    local i name=$1 prefix=$2 jobs=()
    for ((i = 1; i <= 16; i++)); do
        jobs+=(--name="vm$i" --uri="$(uri "${prefix:+$prefix$i}" "$name")")
    done
    sync
    echo 3 >/proc/sys/vm/drop_caches
    fio --thread --ioengine=nbd --rw=randread --bs=4k --iodepth=4 --time_based --randrepeat=0 \
        --runtime="$seconds" --output-format=json --output="$tmp/fio.out" "${jobs[@]}" \
        >/dev/null 2>"$tmp/fio.log" || fail "fio: $(cat "$tmp/fio.log")"
    sed '/^{/,$!d' "$tmp/fio.out" >"$tmp/fio.json"
    jq '[.jobs[].read.iops] | add' "$tmp/fio.json"
}
read_four() { read_with_16 four a; }
read_one() { read_with_16 one b; }
read_whole() { read_with_16 whole ""; }

if wanted "16 VMs, 4 directories"; then
    alternate read_four read_one
    echo "reads a second: $ours of 4 directories, $theirs of one" >&2
    row "16 VMs, 4 directories" "1 directory" "$(ratio "$ours" "$theirs")" ">=" 3.0
    alternate read_four read_whole
    row "16 VMs, 4 directories" "nbdkit file, the image on one" "$(ratio "$ours" "$theirs")" ">=" 3.0
fi
stop_nbdkit one
stop_nbdkit whole

if wanted "p99 while copies are moved"; then
    # Nothing limits the server here.
    echo "${nbdkit_pid[four]}" >/sys/fs/cgroup/blkio/cgroup.procs
    p99() {
        read_with_16 four a >/dev/null
        jq '[.jobs[].read.clat_ns.percentile["99.000000"]] | max' "$tmp/fio.json"
    }
    p99_moving() {
        (
            weight=$((size_mib / 4 * (1 + $1 % 2)))M
            tplstore tier add "$tmp/ssd1" --weight "$weight" --tier-state "$tmp/four"
            tplstore tier rebalance --tier-state "$tmp/four"
        ) >"$tmp/moving.log" 2>&1 &
        local moving=$!
        p99
        wait $moving || fail "$(cat "$tmp/moving.log")"
    }
    alternate p99_moving p99
    row "p99 while copies are moved" "p99 when nothing is" "$(ratio "$ours" "$theirs")" "<=" 2.0
    limit four
fi

if wanted "16 VMs, 3 of 4 directories"; then
    with_all=()
    for ((run = 0; run < runs; run++)); do with_all+=("$(read_four)"); done
    umount -l "$tmp/ssd4"
    await 60 eval "[ \"\$(tplstore tier list --tier-state '$tmp/four' --json |
        jq -r '.[] | select(.path | endswith(\"ssd4\")).state')\" = absent ]"
    with_three=()
    for ((run = 0; run < runs; run++)); do with_three+=("$(read_four)"); done
    row "16 VMs, 3 of 4 directories" "all 4" \
        "$(ratio "$(median "${with_three[@]}")" "$(median "${with_all[@]}")")" ">=" 0.6
fi
stop_nbdkit four

end_with_results
