#!/usr/bin/env bash
# The example of a libvirt hook, called as libvirt calls it: at the beginning of an incoming migration
# it hands over each disk that names its writer, under a new token that is in the XML it prints; it
# fails when it cannot, and does nothing at any other time.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq

new_store
for volume in vm1 vm1-data; do
    tplstore volume create "$volume" --size 16M
done
serve
start_client write "$(uri 'vm1;writer=first')" "$(uri 'vm1-data;writer=first;multi')"
source=$client
export TPLSTORE

# hook OPERATION: what it prints is in $tmp/after.xml
hook() {
    "$checkout/examples/libvirt-hook" guest "$1" begin - <"$tmp/before.xml" >"$tmp/after.xml"
}
disk() {
    cat <<XML
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <source protocol='nbd' name='$1'><host name='storage' port='10809'/></source>
      <target dev='$2' bus='virtio'/>
    </disk>
XML
}
cat >"$tmp/before.xml" <<XML
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest</name>
  <devices>
$(disk 'vm1;writer=first' vda)
$(disk 'vm1-data;writer=first;multi' vdb)
$(disk 'of-another-server' vdc)
  </devices>
  <qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>
</domain>
XML

end_client() {
    kill -9 "$1"
    wait "$1" 2>/dev/null || true
}
handed_to() {
    tplstore lock show "$1" --json | jq -r '.handover.to'
}
for operation in prepare start started stopped release reconnect; do
    hook $operation
    [ ! -s "$tmp/after.xml" ] || fail "$operation printed something"
done
equals "before" "$(handed_to vm1)" null

hook migrate
token=$(handed_to vm1)
[[ $token =~ ^[0-9a-f]{32}$ ]] || fail "vm1 is handed over to $token"
data_token=$(handed_to vm1-data)
# In all else it is what it was.
$python - "$tmp/before.xml" "$tmp/after.xml" "$token" "$data_token" <<'END_OF_PYTHON' ||
import sys, xml.etree.ElementTree as ET
before, after = (open(name).read() for name in sys.argv[1:3])
before = before.replace("vm1;writer=first", "vm1;writer=" + sys.argv[3])
before = before.replace("vm1-data;writer=first", "vm1-data;writer=" + sys.argv[4])
sys.exit(ET.canonicalize(before) != ET.canonicalize(after))
END_OF_PYTHON
    fail "the XML is $(cat "$tmp/after.xml")"
# Those are let in, and another try gets other tokens.
start_client read "$(uri "vm1;writer=$token")" "$(uri "vm1-data;writer=$data_token;multi")"
end_client "$client"
is_off() { [ "$(handed_to vm1)" = null ]; }
await 10 is_off || fail "it stands by still"
hook migrate
[ "$(handed_to vm1)" != "$token" ] || fail "the token is the same again"

sed -i 's/vm1-data/no-such-disk/' "$tmp/before.xml"
if hook migrate 2>"$tmp/hook.log"; then fail "a disk that is not there was handed over"; fi
[ ! -s "$tmp/after.xml" ] || fail "it failed, and printed something"
grep -q "no-such-disk" "$tmp/hook.log" || fail "it did not say why"
end_client "$source"
stop_nbdkit
