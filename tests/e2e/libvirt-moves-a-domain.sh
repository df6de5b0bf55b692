#!/usr/bin/env bash
# libvirt runs a domain whose disk is a volume. Its file systems stand still while a version is made, its
# disk grows while it runs, its server is exchanged; it is reset, and moves to another host and back while
# it runs, where the example of a hook hands the disk over; when that is cancelled the domain stays
# where it was. The token that its definition keeps is refused when the domain is started anew.
# Two daemons, each with folders, a name and a UUID of its own, stand for the two hosts.
. "$(dirname "$0")/../functions.sh"
requires root unshare libvirtd virsh qemu-system-x86_64 mmdebstrap python-libnbd jq nbdcopy dumpe2fs

[ -n "${TPLSTORE_LONG-}" ] || skip "takes minutes: run it with TPLSTORE_LONG=yes"

guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest-with-agent
"$checkout/examples/make-guest.sh" "$guest" qemu-guest-agent
new_store
tplstore template import golden "$guest/disk.raw"
tplstore volume create vm1 --template golden
free_port() {
    $python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
port=$(free_port)
serve_port() {
    rm -f "$tmp/server.pid"
    nbdkit --foreground --ipaddr 127.0.0.1 --port "$port" --pidfile "$tmp/server.pid" \
        "$TPLSTORE_PLUGIN" "$store" </dev/null >>"$tmp/server.log" 2>&1 &
    nbdkit_pid[server]=$!
    await 60 test -s "$tmp/server.pid" || fail "the server does not start"
}
serve_port

cat >"$tmp/host" <<'END'
#!/bin/sh
for part in etc var/lib run var/cache; do
    mkdir -p "/$part/libvirt" && mount --bind "$2/$part" "/$part/libvirt" || exit
done
# Whom it wants to be there; the domain is run by root.
if ! id libvirt-qemu >/dev/null 2>&1; then
    (cat /etc/passwd && echo libvirt-qemu:x:64055:64055::/:/bin/false) >"$2/passwd" &&
        (cat /etc/group && echo libvirt-qemu:x:64055:) >"$2/group" &&
        mount --bind "$2/passwd" /etc/passwd && mount --bind "$2/group" /etc/group || exit
fi
hostname "$1" && shift 2 && exec "$@"
END
chmod +x "$tmp/host"
declare -A libvirt
for host in a b; do
    mkdir -p "$tmp/$host"/{etc/hooks/qemu.d,var/lib,run,var/cache}
    cat >"$tmp/$host/etc/qemu.conf" <<'END'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
    libvirt[$host]=$(free_port)
    cat >"$tmp/$host/etc/libvirtd.conf" <<END
listen_tls = 0
listen_tcp = 1
listen_addr = "127.0.0.1"
tcp_port = "${libvirt[$host]}"
auth_tcp = "none"
host_uuid = "0000000$host-0000-4000-8000-00000000000$host"
unix_sock_group = "root"
END
    cat >"$tmp/$host/etc/hooks/qemu.d/tplstore" <<END
#!/bin/sh
TPLSTORE="$TPLSTORE -s $store" exec "$checkout/examples/libvirt-hook" "\$@"
END
    chmod +x "$tmp/$host/etc/hooks/qemu.d/tplstore"
    unshare -m -u "$tmp/host" "host-$host" "$tmp/$host" libvirtd --listen \
        -f "$tmp/$host/etc/libvirtd.conf" -p "$tmp/$host/libvirtd.pid" </dev/null >"$tmp/$host.log" 2>&1 &
    on_exit kill $!
done
# on HOST COMMAND...
on() {
    local host=$1
    shift
    virsh -q -c "qemu+tcp://127.0.0.1:${libvirt[$host]}/system" "$@"
}
for host in a b; do
    await 30 eval "on $host version >'$tmp/version' 2>&1" || skip "libvirtd does not run here: $(cat "$tmp/$host.log")"
done
grep -i "library\|hypervisor" "$tmp/version"

cat >"$tmp/guest.xml" <<END
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64'>hvm</type>
    <kernel>$guest/vmlinuz</kernel>
    <initrd>$guest/initrd</initrd>
    <cmdline>console=ttyS0 root=/dev/vda rw quiet panic=-1 no_timer_check</cmdline>
  </os>
  <cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source protocol='nbd' name='vm1;writer=first'>
        <host name='127.0.0.1' port='$port'/>
        <reconnect delay='60'/>
      </source>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='file'><source path='$tmp/console' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:$tmp/qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
END
has_booted() { [ "$(grep -ac "GUEST up" "$tmp/console")" -ge "$1" ]; }
token() { tplstore lock show vm1 --json | jq -r .writer.token; }
runs_on() { [ "$(on "$1" domstate guest 2>/dev/null)" = running ]; }

on a define "$tmp/guest.xml"
on_exit on b destroy guest
on_exit on a destroy guest
on a start guest
await 240 has_booted 1 || fail "the guest does not boot"

# in_guest HOST COMMAND: what that prints there.
in_guest() {
    local pid
    pid=$(on "$1" qemu-agent-command guest '{"execute": "guest-exec", "arguments":
        {"path": "/bin/sh", "arg": ["-c", "'"$2"'"], "capture-output": true}}' | jq .return.pid)
    has_exited() {
        on "$1" qemu-agent-command guest '{"execute": "guest-exec-status", "arguments": {"pid": '"$pid"'}}' \
            >"$tmp/status" && jq -e .return.exited "$tmp/status" >/dev/null
    }
    await 60 has_exited "$1" || fail "$2 does not end in the guest"
    jq -r '.return["out-data"] // ""' "$tmp/status" | base64 -d
}
has_agent() { on a domfsfreeze guest >/dev/null 2>&1; }
await 60 has_agent || fail "the guest's agent does not answer"
tplstore version create vm1 --name frozen
on a domfsthaw guest >/dev/null
in_guest a "echo later >/later; sync"
nbdcopy "nbd://127.0.0.1:$port/vm1@frozen" "$tmp/frozen.raw"
! dumpe2fs -h "$tmp/frozen.raw" 2>/dev/null | grep -q needs_recovery || fail "the version is as after a power cut"
rm "$tmp/frozen.raw"

tplstore volume resize vm1 1100M --qmp "$tmp/qmp"
equals "sectors that the guest sees" "$(in_guest a "cat /sys/block/vda/size")" $((1100 << 11))
stop_server
serve_port
equals "what it reads" "$(in_guest a "echo 3 >/proc/sys/vm/drop_caches; cat /later")" later

on a reset guest
await 240 has_booted 2 || fail "the guest does not boot again"
equals "token" "$(token)" first

# move FROM TO [OPTION...]
move() {
    local from=$1 to=$2
    shift 2
    on "$from" migrate --live guest "qemu+tcp://127.0.0.1:${libvirt[$to]}/system" \
        --migrateuri "tcp://127.0.0.1:$(free_port)" "$@"
}
move a b --bandwidth 5 >"$tmp/move.out" 2>&1 &
moving=$!
cancel() { on a domjobabort guest 2>/dev/null; }
await 60 cancel || fail "the migration cannot be cancelled"
! wait $moving || fail "the migration was not cancelled"
runs_on a || fail "the domain does not run where it was"
equals "token" "$(token)" first
is_off() { [ "$(tplstore lock show vm1 --json | jq .handover)" = null ]; }
await 10 is_off || fail "the hand-over is not over: $(tplstore lock show vm1)"

before=first
for way in "a b" "b a"; do
    read -r from to <<<"$way"
    move "$from" "$to" || fail "it does not move from $from to $to"
    runs_on "$to" || fail "it does not run on $to"
    ! runs_on "$from" || fail "it runs on $from still"
    [ "$(token)" != "$before" ] || fail "the token is the same"
    before=$(token)
    equals "what it reads on $to" "$(in_guest "$to" "echo 3 >/proc/sys/vm/drop_caches; echo $to >>/later; sync; cat /later" | tail -n 1)" "$to"
done
! grep -a -i -E "I/O error|EXT4-fs error" "$tmp/console" || fail "the guest has noticed"

on a destroy guest
await 10 is_free vm1 || fail "the volume stays taken"
refuses "export not available" on a start guest
grep -q "vm1.*others have changed it since this VM had it" "$tmp/server.log" || fail "the log does not say why"
on a dumpxml --inactive guest | sed 's/writer=first/writer=second/' >"$tmp/guest.xml"
on a define "$tmp/guest.xml"
on a start guest
await 240 has_booted 3 || fail "the guest does not boot under another token"
equals "token" "$(token)" second
on a destroy guest
on a undefine guest
