#!/usr/bin/env bash
# A guest boots from a volume through qemu's NBD driver; a version taken while it runs has what the
# guest had written before and nothing of what it wrote after; its plug can be pulled, and its server
# be exchanged while it writes. What it boots with is kept for the next boot.
. "$(dirname "$0")/../functions.sh"
requires qemu-system-x86_64 mmdebstrap e2fsck debugfs nbdcopy jq
# shellcheck source=SCRIPTDIR/../../examples/guest.sh
. "$checkout/examples/guest.sh"

guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
"$checkout/examples/make-guest.sh" "$guest"
on_exit guest_kill
new_store
tplstore template import golden "$guest/disk.raw"
tplstore volume create vm1 --template golden
serve

# boot LOG MARKER [DRIVE [QEMU-OPTION...]]
boot() {
    guest_start "${3-$(uri vm1)}" "$tmp/$1.log" -kernel "$guest/vmlinuz" -initrd "$guest/initrd" \
        -append "console=ttyS0 root=/dev/vda rw quiet panic=-1 no_timer_check" "${@:4}"
    guest_expect "GUEST up, marker: $2" 240
}

# marker EXPORT: what the guest's file system has there after a power cut.
marker() {
    nbdcopy "$(uri "$1")" "$tmp/copy.raw"
    e2fsck -fp "$tmp/copy.raw" >"$tmp/fsck.log" 2>&1 || [ $? = 1 ] || fail "fsck of $1: $(cat "$tmp/fsck.log")"
    debugfs -R "cat /marker" "$tmp/copy.raw" 2>/dev/null
}

boot first none "$(uri vm1)" -qmp "unix:$tmp/qmp,server=on,wait=off"
guest_say "write before"
guest_expect "GUEST wrote before" 60
tplstore version create vm1
# Its disk is made larger while it runs.
tplstore volume resize vm1 1100M --qmp "$tmp/qmp"
guest_say 'run dd if=/dev/zero of=/dev/vda bs=1M seek=1096 count=4 oflag=direct 2>/dev/null && echo "GUEST has $(cat /sys/block/vda/size) sectors"'
guest_expect "GUEST has $((1100 << 11)) sectors" 60
guest_say "write after"
guest_expect "GUEST wrote after" 60
kill_nbdkit  # the host crashes
guest_kill
serve
equals "the version's marker" "$(marker vm1@1)" before
equals "the volume's marker" "$(marker vm1)" after

boot second after
guest_say poweroff
guest_wait 120
equals "boots seen to their end" "$(tplstore boot show golden --json | jq .profile.boots)" 1
tplstore version rollback vm1 1

# Backups and the like are no boots, and take nothing from them.
nbdcopy "$(uri vm1@current)" "$tmp/copy.raw"
nbdcopy "$(uri template/golden)" "$tmp/copy.raw"
boot third before
equals "what is booting" "$(tplstore boot show vm1 --json | jq '.windows[-1].reason')" null
tplstore boot done vm1 --json >"$tmp/boot.json"
guest_say poweroff
guest_wait 120
# All that the boots before have read is in memory.
jq -e '.reason == "done" and .bytes > 10000000 and .first_touch_hits > 0.9 * .blocks' \
    "$tmp/boot.json" >/dev/null || fail "the third boot: $(cat "$tmp/boot.json")"

# Its server is killed, or stopped, and started while it writes: it notices nothing.
nbd='"driver":"nbd",,"server.type":"unix",,"server.path":"'$tmp/server.socket'"'
boot fourth before 'json:{"driver":"raw",,"file":{'"$nbd"',,"export":"vm1",,"reconnect-delay":60}}'
# Killed while it writes what nothing flushes; what that should be is in the guest's memory.
guest_say 'run for i in $(seq 50); do dd if=/dev/urandom of=/dev/shm/part bs=64k count=2 2>/dev/null && cat /dev/shm/part >>/dev/shm/all && dd if=/dev/shm/part of=/unflushed bs=64k seek=$((2 * i - 2)) conv=notrunc oflag=direct 2>/dev/null && echo "GUEST at $i;"; done; dd if=/unflushed bs=64k iflag=direct 2>/dev/null | cmp - /dev/shm/all && echo "GUEST whole"'
for part in 8 20 32; do
    guest_expect "GUEST at $part;" 240
    kill_nbdkit
    serve
done
guest_expect "GUEST whole" 240
! grep "as after a power cut" "$tmp/server.log" || fail "a server says that it has lost something"
guest_say "run while dd if=/dev/zero of=/stream bs=64k count=64 conv=fsync 2>/dev/null; do :; done; echo GUEST failed"
for turn in 1 2 3; do
    stop_server
    serve
    guest_say "write turn$turn"
    guest_expect "GUEST wrote turn$turn" 60
done
guest_kill
! grep -i -E "I/O error|EXT4-fs error|GUEST failed" "$tmp/fourth.log" || fail "the guest has noticed"
await 10 is_free vm1 || fail "vm1 stays open behind the guest"
equals "the volume's marker" "$(marker vm1)" turn3
stop_nbdkit
