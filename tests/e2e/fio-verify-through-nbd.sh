#!/usr/bin/env bash
# fio reads back what it wrote: requests of mixed sizes, with trims, over template data and over
# nothing, and again after the server was started anew.
. "$(dirname "$0")/../functions.sh"
requires fio python3

make_image "$tmp/image.raw" 128
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create clone --template golden
tplstore volume create empty --size 128M
serve

# With --thread all jobs of fio are one process, and one VM.
verified() {
    (cd "$tmp" && fio --name=case --thread --ioengine=nbd --randseed=12345 --verify=crc32c \
        --verify_fatal=1 --exitall_on_error --verify_state_save=0 --output="$tmp/fio.out" "$@") ||
        { cat "$tmp/fio.out" >&2; fail "fio $*"; }
}

for volume in clone empty; do
    disk=--uri=$(uri "$volume;writer=fio;multi")
    verified "$disk" --rw=randwrite --bssplit=512/10:4k/50:12k/10:64k/20:256k/10 --blockalign=512 \
        --iodepth=32 --io_size=128M --fsync=50
    verified "$disk" --rw=randtrimwrite --bs=4k --iodepth=1 --size=16M
    # One connection writes and verifies while another trims beside it.
    verified "$disk" --rw=randwrite --bs=4k --iodepth=32 --size=64M \
        --name=trims --thread --ioengine=nbd "$disk" --rw=randtrim --bs=4k --iodepth=32 --offset=64M
    last=("$disk" --rw=randwrite --bs=4k --iodepth=32)
    verified "${last[@]}" --do_verify=0
    stop_nbdkit
    serve
    verified "${last[@]}" --verify_only
done
stop_nbdkit
