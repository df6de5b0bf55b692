#!/usr/bin/env bash
# Boots are told from what else reads a disk. A guest that resets itself boots each time, over one
# connection; with pauses it boots once, and its data disk a little. Who comes back after its server
# was started anew does not boot, nor does a migration's destination. Of who reads all of a disk,
# in the guest or outside, or here and there beside a boot, nothing is kept beyond 8 MiB, nor learnt.
. "$(dirname "$0")/../functions.sh"
requires qemu-system-x86_64 qemu-img nbdcopy jq as ld python-libnbd
# shellcheck source=SCRIPTDIR/../../examples/guest.sh
. "$checkout/examples/guest.sh"

# A guest of one sector, which firmware loads. It reads a little, says "up", and then does what it
# is told by two characters, the second of which is for telling the answers apart:
# b: reads a bit more; w: reads the whole disk; d: looks at the second disk; r: resets itself.
disk_sectors=65536
as --32 --defsym SECTORS=$disk_sectors -o "$tmp/guest.o" - <<'END'
.code16
begin:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    movb %dl, drive
    call more
    movw $0x7075, %bx           # "up"
answer:
    movb %bl, %al
    call say
    movb %bh, %al
    call say
    movb $';', %al
    call say
    movb $10, %al
    call say
next:
    call hear
    cmpb $' ', %al
    jbe next
    movb %al, %bl
    call hear
    movb %al, %bh
    movw $answer, %ax
    pushw %ax
    cmpb $'b', %bl
    je more
    cmpb $'w', %bl
    je whole
    cmpb $'d', %bl
    je other
    movb $0xfe, %al             # the keyboard controller's reset
    outb %al, $0x64
halt:
    hlt
    jmp halt
more:                           # 8 times 32 KiB, 128 KiB apart
    movw $8, %cx
1:  call read
    addl $256, sector
    loop 1b
    ret
whole:
    pushl sector
    movl $0, sector
1:  call read
    addl $64, sector
    cmpl $SECTORS, sector
    jb 1b
    popl sector
    ret
other:
    pushl sector
    incb drive
    movl $0, sector
    call read
    movl $512, sector
    call read
    decb drive
    popl sector
    ret
read:
    pusha
    movb $0x42, %ah
    movb drive, %dl
    movw $packet, %si
    int $0x13
    popa
    jc failed
    ret
failed:
    movb $'!', %al
    call say
    jmp halt
say:
    movw $0x3f8, %dx
    outb %al, %dx
    ret
hear:
    movw $0x3fd, %dx
    inb %dx, %al
    testb $1, %al
    jnz 1f
    hlt
    jmp hear
1:  movw $0x3f8, %dx
    inb %dx, %al
    ret
drive: .byte 0
packet: .byte 16, 0
    .word 64, 0, 0x1000
sector: .long 2048, 0
    .org 510
    .word 0xaa55
END
ld -m elf_i386 -Ttext 0x7c00 -e 0x7c00 --oformat binary -o "$tmp/guest.boot" "$tmp/guest.o"
head -c $((disk_sectors * 512)) /dev/urandom >"$tmp/golden.raw"
dd if="$tmp/guest.boot" of="$tmp/golden.raw" conv=notrunc status=none
head -c 16M /dev/urandom >"$tmp/data.raw"

on_exit guest_kill
new_store
tplstore template import golden "$tmp/golden.raw"
tplstore template import data "$tmp/data.raw"
for name in vm1 vm2 vm3; do tplstore volume create "$name" --template golden; done
tplstore volume create data1 --template data

# windows VOLUME [FIELDS]: of all its boots, one line.
windows() {
    tplstore boot show "$1" --json | jq -c "[.windows[] | ${2-.reason}]"
}
boots() {
    tplstore boot show "$1" --json | jq '.profile.boots // 0'
}
# has_ended_boots VOLUME COUNT
has_ended_boots() {
    [ "$(windows "$1" 'select(.reason != null)' | jq length)" = "$2" ]
}
# ends VOLUME COUNT: its boot, which is the one of that number.
ends() {
    tplstore boot done "$1" >"$tmp/done.out" 2>&1 || true
    equals "boots of $1 that have ended" "$(windows "$1" 'select(.reason != null)' | jq length)" "$2"
}
learnt() {
    [ "$(boots "$1")" = "$2" ]
}
# said TEXT COUNT
said() {
    [ "$(grep -o -F -e "$1" "$guest_console" | wc -l)" = "$2" ]
}
# does COMMAND: and its answer.
does() {
    guest_say "$1"
    guest_expect "$1;" 60
}
kept() {
    tplstore stats --json | jq '.boot_cache.fill_bytes'
}

# --- resets

serve boot-quiet=1
start_guest() {
    local export=$1 log=$2
    shift 2
    guest_start "$(uri "$export")" "$tmp/$log.log" -action reboot=reset "$@"
}
qemu_nbd='"driver":"nbd",,"server.type":"unix",,"server.path":"'$tmp/server.socket'",,"reconnect-delay":60'
guest_start 'json:{"driver":"raw",,"file":{'"$qemu_nbd"',,"export":"vm1"}}' "$tmp/first.log" \
    -action reboot=reset -drive "file=$(uri data1),if=virtio,format=raw"
guest_expect "up;" 60
await 20 has_ended_boots vm1 1 || fail "the first boot does not end: $(windows vm1)"
does d0
for boot in 2 3 4; do
    sleep 1  # no boot begins before
    guest_say r0
    await 60 said "up;" $boot || fail "the guest does not come up"
    does b$boot
    ends vm1 $boot
done
equals "why boots have ended" "$(windows vm1)" '["quiet","done","done","done"]'
await 20 learnt golden 4 || fail "of 4 boots $(boots golden) were learnt"
equals "blocks of a boot" "$(windows vm1 .blocks)" "[65,129,129,129]"
equals "what the last boots found" "$(windows vm1 .first_touch_hits | jq -c '.[2:]')" "[129,129]"
await 20 has_ended_boots data1 1 || fail "the data disk's boot does not end"
equals "blocks of the data disk's boot" "$(windows data1 .blocks)" "[16]"

# --- its server is started anew

kill_nbdkit
serve boot-quiet=2
for part in 5 6 7; do does b$part; done
equals "boots after the server's" "$(windows vm1)" "[]"
equals "what is kept of that" "$(kept)" 0

# --- pauses, in proportion to those of 10 s where boot-quiet is 15

guest_say r0
await 60 said "up;" 5 || fail "the guest does not come up"
longest=0
for pause in A B; do
    before=${EPOCHREALTIME/./}
    sleep 1.3
    does b$pause
    took=$((${EPOCHREALTIME/./} - before))
    [ $took -lt $longest ] || longest=$took
done
ends vm1 1
if [ $longest -lt 1800000 ]; then
    equals "a boot with pauses" "$(windows vm1 '[.reason, .blocks]')" '[["done",193]]'
else
    echo "This machine is too busy to tell a pause from an end"
fi
guest_kill
await 20 learnt golden 5 || fail "of 5 boots $(boots golden) were learnt"

# --- the whole disk is read, in the guest and outside

start_guest "vm2" second
guest_expect "up;" 60
does w0
ends vm2 1
tplstore boot show vm2 --json | jq -e '.windows[0].bytes <= 9.1 * 1024 * 1024' >/dev/null ||
    fail "the whole disk is a boot: $(windows vm2 .bytes)"
guest_kill
before=$(kept)
nbdcopy "$(uri vm3)" "$tmp/copy.raw"
same "$tmp/golden.raw" "$tmp/copy.raw"
await 10 is_free vm3 || fail "vm3 stays open"
qemu-img convert -n -f raw -O raw "$(uri vm3)" "$tmp/copy.raw"
qemu-img convert -f raw -O qcow2 "$(uri vm3@current)" "$tmp/copy.qcow2"
await 10 is_free vm3 || fail "vm3 stays open"
[ $(($(kept) - before)) -le $((10 << 20)) ] || fail "copies of a disk are kept: $before, then $(kept)"
stop_nbdkit
equals "boots that count" "$(boots golden)" 5

# --- somebody reads here and there, beside a boot

serve
$python - "$(uri 'vm3;writer=one;multi')" <<'END'
import random
import sys
import nbd

guest, other = nbd.NBD(), nbd.NBD()
for client in (guest, other):
    client.connect_uri(sys.argv[1])
guest.pread(4096, 0)
for i in range(2000):
    if i < 200:
        guest.pread(16384, 8 << 20 | i << 16)
    other.pread(16384, random.randrange(1900) << 14)
END
[ "$(kept)" -le $((14 << 20)) ] || fail "random reads beside a boot are kept: $(kept)"
[ "$(windows vm3 .bytes | jq '.[-1]')" -le $((14 << 20)) ] ||
    fail "random reads beside a boot are part of it: $(windows vm3)"
await 10 is_free vm3 || fail "vm3 stays open"

# --- a migration

start_guest "vm2;writer=source" source -monitor "unix:$tmp/monitor,server=on,wait=off"
source_pid=$guest_pid
guest_expect "up;" 60
tplstore boot done vm2 >"$tmp/done.out"
ended=$(windows vm2)
tplstore volume handover vm2 --to destination
start_guest "vm2;writer=destination" destination -incoming "unix:$tmp/migration"
await 60 test -S "$tmp/migration" || fail "the destination does not listen"
$python - "$tmp/monitor" "$tmp/migration" <<'END'
import socket
import sys

monitor = socket.socket(socket.AF_UNIX)
monitor.connect(sys.argv[1])
monitor.sendall(f"migrate unix:{sys.argv[2]}\nquit\n".encode())
while monitor.recv(4096):
    pass
END
wait_for_end "$source_pid" 60 || fail "the source does not end"
for part in 1 2 3; do does b$part; done
equals "boots after a migration" "$(windows vm2)" "$ended"
guest_kill
stop_nbdkit
