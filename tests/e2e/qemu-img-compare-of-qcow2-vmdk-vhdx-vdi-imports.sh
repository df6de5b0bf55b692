#!/usr/bin/env bash
# Imports of every format are what qemu itself reads from the image.
. "$(dirname "$0")/../functions.sh"
requires qemu-img python3 jq

make_image "$tmp/image.raw" 64
new_store
serve

import() {
    local name=$1 format=$2 file=$3
    tplstore template import "$name" "$file"
    qemu-img compare -q -f raw -F "$format" "$(uri "template/$name")" "$file" ||
        fail "the import of $file differs from it"
    equals "virtual size of $name" \
        "$(tplstore template list --json | jq ".[] | select(.name == \"$name\").size")" \
        "$(qemu-img info --output=json "$file" | jq '."virtual-size"')"
}

for format in qcow2 vmdk vhdx vdi; do
    qemu-img convert -O $format "$tmp/image.raw" "$tmp/image.$format"
    import $format $format "$tmp/image.$format"
done
qemu-img convert -c -O qcow2 "$tmp/image.raw" "$tmp/compressed.qcow2"
import compressed qcow2 "$tmp/compressed.qcow2"
qemu-img convert -o subformat=streamOptimized -O vmdk "$tmp/image.raw" "$tmp/stream.vmdk"
import stream vmdk "$tmp/stream.vmdk"
qemu-img convert -o cluster_size=4k,extended_l2=off -O qcow2 "$tmp/image.raw" "$tmp/small.qcow2"
import small qcow2 "$tmp/small.qcow2"

# Formats are recognised by their content, not by the file's name.
cp "$tmp/image.qcow2" "$tmp/image.txt"
import renamed qcow2 "$tmp/image.txt"

# All of them have the same content, so they share it.
unique=$(tplstore template list --json | jq 'map(.unique_bytes) | add')
[ "$unique" -lt $((8 << 20)) ] || fail "$unique bytes are not shared among equal templates"
stop_nbdkit
