#!/usr/bin/env bash
# A volume is made larger under a qemu that runs, however its disk was given to it, and what is
# written behind the former end arrives.
. "$(dirname "$0")/../functions.sh"
requires qemu-system-x86_64 python-libnbd jq

new_store
serve
server="server.type=unix,server.path=$tmp/server.socket"

# qmp COMMAND [ARGUMENTS-IN-JSON]: what qemu returns.
qmp() {
    $python - "$tmp/qmp" "$@" <<'END'
import json, socket, sys
channel = socket.socket(socket.AF_UNIX)
channel.connect(sys.argv[1])
lines = channel.makefile("rw")
lines.readline()
for command in [["qmp_capabilities"], sys.argv[2:]]:
    request = {"execute": command[0]}
    if command[1:]:
        request["arguments"] = json.loads(command[1])
    lines.write(json.dumps(request) + "\n")
    lines.flush()
    while "event" in (answer := json.loads(lines.readline())):
        pass
print(json.dumps(answer["return"]))
END
}
end_qemu() {
    [ -n "${qemu-}" ] || return 0
    kill -9 "$qemu" 2>/dev/null || true
    wait "$qemu" 2>/dev/null || true
    qemu=
}
on_exit end_qemu

# grows VOLUME QEMU-OPTION...: and its disk is the device of the id "disk", or the only one.
grows() {
    local volume=$1 drive
    shift
    tplstore volume create "$volume" --size 16M >/dev/null
    rm -f "$tmp/qmp"
    qemu-system-x86_64 -M q35 -accel tcg -m 64 -S -nodefaults -display none \
        -qmp "unix:$tmp/qmp,server=on,wait=off" "$@" </dev/null >"$tmp/qemu.log" 2>&1 &
    qemu=$!
    await 20 test -S "$tmp/qmp" || fail "qemu does not start"
    await 20 is_attached "$volume"
    drive=$(qmp query-block | jq -r '.[0].qdev')
    qmp human-monitor-command "{\"command-line\": \"qemu-io -d $drive \\\"write -P 0x11 15M 1M\\\"\"}" >/dev/null
    refuses "no disk which is that volume" tplstore volume resize another 32M --qmp "$tmp/qmp"
    tplstore volume resize "$volume" 32M --qmp "$tmp/qmp" >"$tmp/resize.out"
    equals "what it says" "$(cat "$tmp/resize.out")" "$volume: 32.0 MiB"
    equals "the size that $volume's VM sees" \
        "$(qmp query-block | jq '.[0].inserted.image["virtual-size"]')" $((32 << 20))
    qmp human-monitor-command "{\"command-line\": \"qemu-io -d $drive \\\"write -P 0x22 30M 1M\\\"\"}" >/dev/null
    # Only the new connection is left; it has the volume as the one before had it.
    await 10 has_connections "$volume" 1 || fail "$volume has more than one connection"
    refuses "in use" tplstore volume rm "$volume"
    # And once more.
    tplstore volume resize "$volume" +32M --qmp "$tmp/qmp" >/dev/null
    equals "the size that $volume's VM sees" \
        "$(qmp query-block | jq '.[0].inserted.image["virtual-size"]')" $((64 << 20))
    await 10 has_connections "$volume" 1 || fail "$volume has more than one connection"
    end_qemu
    await 20 is_free "$volume" || fail "$volume stays in use"
    $python - "$(uri "$volume@current")" <<'END' || fail "$volume has not what was written"
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
assert client.get_size() == 64 << 20
assert client.pread(1 << 20, 15 << 20) == b"\x11" * (1 << 20)
assert client.pread(1 << 20, 30 << 20) == b"\x22" * (1 << 20)
END
}
has_connections() {
    [ "$(tplstore lock show "$1" --json | jq .writer.connections)" = "$2" ]
}

tplstore volume create another --size 16M >/dev/null
# As README shows it; with a name of its own for the node; as libvirt does it; without a raw node.
grows plain -drive "file.driver=nbd,file.${server/,/,file.},file.export=plain,file.reconnect-delay=60,format=raw,if=virtio,discard=unmap"
grows named -drive "file=$(uri 'named;writer=some-vm'),format=raw,if=virtio,discard=unmap,node-name=disk"
grows layers -blockdev "nbd,node-name=storage,$server,export=layers;writer=a.b;multi,reconnect-delay=60" \
    -blockdev raw,node-name=format,file=storage -device virtio-blk-pci,drive=format,id=disk
grows bare -blockdev "nbd,node-name=storage,$server,export=bare" -device virtio-blk-pci,drive=storage,id=disk
refuses "no qemu listens" tplstore volume resize another 32M --qmp "$tmp/nothing"
stop_nbdkit
