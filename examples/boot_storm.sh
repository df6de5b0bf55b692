#!/usr/bin/env bash
# Many guests of one template boot at once: examples/boot_storm.sh [VMS] [OUTDIR]
#
# As root, after examples/quickstart.sh has built tplstore. Boots VMS (4) small Debian guests, each
# from a volume of its own, at the same time and from a cold start, with the boot cache and
# without, on a file system that may be read 300 times a second (where the kernel lets a cgroup say
# so): as if it were a disk. The third round boots them again with the cache, when it knows from
# the first what they read. Prints a table, and draws OUTDIR/boot_storm.svg (the current folder):
# how many guests were up when. The guests run in qemu's emulator, so the processor is their limit
# too.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$(dirname "$here")
# shellcheck source=SCRIPTDIR/packages.sh
. "$here/packages.sh"

case ${1-} in
-h | --help) sed -n '2,/^set/{/^# \{0,1\}/s///p}' "${BASH_SOURCE[0]}"; exit ;;
esac
vms=${1:-4}
outdir=$(cd "${2:-.}" && pwd)
reads_per_second=300
tplstore=${TPLSTORE:-$source/build/release/tools/tplstore}
plugin=${TPLSTORE_PLUGIN:-$source/build/release/plugin/nbdkit-tplstore-plugin.so}
[ "$(id -u)" = 0 ] || { echo "$0: needs to be root, to have a cold start" >&2; exit 1; }
[ -x "$tplstore" ] || { echo "$0: run examples/quickstart.sh first, which builds it" >&2; exit 1; }
install_packages run guest
guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
"$here/make-guest.sh" "$guest"

unset TMPDIR
work=$(mktemp -d /var/tmp/tplstore-storm-XXXXXX)
group=/sys/fs/cgroup/blkio/tplstore-storm-$$
server=
guests=()

finish() {
    trap - EXIT
    [ ${#guests[@]} = 0 ] || kill -9 "${guests[@]}" 2>/dev/null || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    umount -l "$work/disk" "$work/ram" 2>/dev/null || true
    rmdir "$group" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

# A disk in memory, whose reads are counted and limited.
mkdir "$work/ram" "$work/disk"
mount -t tmpfs -o size=4G none "$work/ram"
truncate -s 3G "$work/ram/disk.img"
mkfs.ext4 -q -m 0 "$work/ram/disk.img"
mount -o loop "$work/ram/disk.img" "$work/disk"
device=$(cat "/sys/class/block/$(basename "$(findmnt -no SOURCE "$work/disk")")/dev")
if mkdir "$group" 2>/dev/null &&
    echo "$device $reads_per_second" >"$group/blkio.throttle.read_iops_device"; then
    limit="limited to $reads_per_second reads a second"
else
    group=
    limit="not limited: no cgroup does that here"
fi

export TPLSTORE_STORE=$work/disk/store
"$tplstore" init "$TPLSTORE_STORE" >/dev/null
"$tplstore" template import golden "$guest/disk.raw"
printf '%d guests at once; the disk is %s\n\n' "$vms" "$limit"
printf '%-34s %10s %10s %12s\n' "" "first up" "all up" "disk reads"

reads() {
    [ -n "$group" ] || { echo -; return; }
    awk -v device="$device" '$1 == device && $2 == "Read" { count = $3 } END { print count + 0 }' \
        "$group/blkio.throttle.io_serviced"
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# storm NAME COLOUR NBDKIT-PARAMETER...
curves=
storm() {
    local name=$1 colour=$2 i begin before up=() waiting points
    shift 2
    for ((i = 0; i < vms; i++)); do
        "$tplstore" volume rm "vm$i" 2>/dev/null || true
        "$tplstore" volume create "vm$i" --template golden >/dev/null
    done
    rm -f "$work/socket"
    sync
    echo 3 >/proc/sys/vm/drop_caches
    sh -c '[ -z "$0" ] || echo $$ >"$0/cgroup.procs"; exec "$@"' "$group" \
        nbdkit -f -U "$work/socket" "$plugin" "$TPLSTORE_STORE" io=direct "$@" \
        2>"$work/server.log" &
    server=$!
    until [ -S "$work/socket" ]; do
        kill -0 "$server" || { cat "$work/server.log" >&2; exit 1; }
        sleep 0.05
    done
    before=$(reads)
    begin=$(now_ms)
    guests=()
    for ((i = 0; i < vms; i++)); do
        : >"$work/console$i"
        qemu-system-x86_64 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot \
            -serial "file:$work/console$i" -kernel "$guest/vmlinuz" -initrd "$guest/initrd" \
            -append "console=ttyS0 root=/dev/vda rw quiet panic=-1" \
            -drive "file=nbd+unix:///vm$i?socket=$work/socket,file.reconnect-delay=60,if=virtio,format=raw,cache=none,discard=unmap" \
            </dev/null >"$work/qemu$i.log" 2>&1 &
        guests+=($!)
    done
    waiting=$(seq 0 $((vms - 1)))
    while [ -n "$waiting" ]; do
        local still=
        for i in $waiting; do
            kill -0 "${guests[$i]}" 2>/dev/null || { cat "$work/qemu$i.log" >&2; exit 1; }
            if grep -q "GUEST up" "$work/console$i"; then
                up+=($(($(now_ms) - begin)))
            else
                still+="$i "
            fi
        done
        waiting=$still
        [ -z "$waiting" ] || sleep 0.1
    done
    local after
    after=$(reads)
    for ((i = 0; i < vms; i++)); do
        TPLSTORE_STORE=$TPLSTORE_STORE "$tplstore" boot "done" "vm$i" >/dev/null 2>&1 || true
    done
    kill -9 "${guests[@]}"
    wait "${guests[@]}" 2>/dev/null || true
    guests=()
    kill "$server"
    wait "$server" || true
    server=
    local count=-
    [ "$after" = - ] || count=$((after - before))
    printf '%-34s %8.1f s %8.1f s %12s\n' "$name" "$((up[0] / 100))e-1" \
        "$((up[vms - 1] / 100))e-1" "$count"
    points="0,0"
    for ((i = 0; i < vms; i++)); do points+=" ${up[$i]},$i ${up[$i]},$((i + 1))"; done
    curves+="$name|$colour|$points"$'\n'
}

storm "without a boot cache" "#888888" boot-cache=0
storm "with it, never seen before" "#d97706" boot-cache=256M
storm "with it, known" "#0f766e" boot-cache=256M

# --- the picture

printf '%s' "$curves" | awk -F'|' -v vms="$vms" '
    { name[NR] = $1; colour[NR] = $2; points[NR] = $3
      n = split($3, at, " "); split(at[n], last, ","); if (last[1] > longest) longest = last[1] }
    END {
        width = 720; height = 360; left = 50; right = 20; top = 30; bottom = 70
        xs = (width - left - right) / longest; ys = (height - top - bottom) / vms
        printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, height
        printf "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n"
        printf "<text x=\"%d\" y=\"18\" font-size=\"14\">Guests that are up, of %d that boot at once</text>\n", left, vms
        for (i = 0; i <= vms; i++) {
            y = height - bottom - i * ys
            printf "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#dddddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d</text>\n", left, y, width - right, y, left - 8, y + 4, i
        }
        step = longest > 60000 ? 20000 : longest > 20000 ? 5000 : 2000
        for (ms = 0; ms <= longest; ms += step)
            printf "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d s</text>\n", left + ms * xs, height - bottom + 18, ms / 1000
        for (c = 1; c <= NR; c++) {
            n = split(points[c], at, " "); line = ""
            for (i = 1; i <= n; i++) {
                split(at[i], p, ",")
                line = line sprintf("%.1f,%.1f ", left + p[1] * xs, height - bottom - p[2] * ys)
            }
            printf "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", line, colour[c]
            x = left + (c - 1) * 220
            printf "<rect x=\"%d\" y=\"%d\" width=\"12\" height=\"12\" fill=\"%s\"/><text x=\"%d\" y=\"%d\">%s</text>\n", x, height - 30, colour[c], x + 18, height - 20, name[c]
        }
        print "</svg>"
    }' >"$outdir/boot_storm.svg"
echo
echo "Drawn in $outdir/boot_storm.svg"
