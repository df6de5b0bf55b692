#!/usr/bin/env bash
# An image that is not whole, or that needs other files, is refused before anything is stored.
. "$(dirname "$0")/../functions.sh"
requires qemu-img python3

make_image "$tmp/image.raw" 32
new_store
reason=

refused() {
    echo "import of $1: expecting a refusal because of $reason"
    refuses "$reason" tplstore template import bad "$tmp/$1"
    equals "templates after $1" "$(tplstore template list --json)" "[]"
    equals "what was stored of $1" \
        "$(find "$store/segments" "$store/imports" "$store/templates" -type f 2>/dev/null)" ""
}

reason="cut short|truncated|damaged"
for format in qcow2 vmdk vhdx vdi; do
    qemu-img convert -O $format "$tmp/image.raw" "$tmp/whole.$format"
    size=$(stat -c %s "$tmp/whole.$format")
    for part in $((size / 2)) $((size - 65536)) 65536 1000 100; do
        head -c $part "$tmp/whole.$format" >"$tmp/part-$part.$format"
        case $format-$part in
        # What is left of these has no mark of a format any more and is not a whole number of
        # sectors, hence no raw image either.
        *-100 | *-1000) reason="multiple|sector|cut short|damaged|size" refused "part-$part.$format" ;;
        *) refused "part-$part.$format" ;;
        esac
    done
done

reason="multiple|sector"
head -c 1000001 "$tmp/image.raw" >"$tmp/odd.raw"
refused odd.raw
reason="empty|size"
: >"$tmp/empty.raw"
refused empty.raw
reason="no such file"
refused nowhere.raw
reason="directory|regular"
mkdir "$tmp/folder"
refused folder

reason="backing"
qemu-img create -q -f qcow2 -b "$tmp/whole.qcow2" -F qcow2 "$tmp/overlay.qcow2"
refused overlay.qcow2
# Where the backing file would be something that the importer may read and the image's author not.
qemu-img create -q -f qcow2 -u -b /etc/shadow -F raw "$tmp/thief.qcow2" 64K
refused thief.qcow2
reason="data.file"
qemu-img create -q -f qcow2 -o data_file="$tmp/data.raw" "$tmp/external.qcow2" 1M
refused external.qcow2
reason="extent|external|other file|data.file"
qemu-img convert -o subformat=monolithicFlat -O vmdk "$tmp/image.raw" "$tmp/flat.vmdk"
refused flat.vmdk

# With leave to, an overlay is imported with what is below it.
tplstore template import --allow-backing overlaid "$tmp/overlay.qcow2"
serve
qemu-img compare -q -f raw -F qcow2 "$(uri template/overlaid)" "$tmp/overlay.qcow2"
stop_nbdkit
