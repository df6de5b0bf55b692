#!/usr/bin/env bash
# Where io_uring is not allowed, everything works without, and the server says so once.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd python3 nbdcopy

export TPLSTORE_NO_IO_URING=1
make_image "$tmp/image.raw" 24
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create clone --template golden
serve
nbdcopy "$(uri clone)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"
$python "$(dirname "$0")/wire_model.py" "$(uri clone)" 3000
tplstore version create clone
$python "$(dirname "$0")/wire_model.py" "$(uri clone)" 2000
stop_nbdkit
equals "times it says so" "$(grep -c io_uring "$tmp/server.log")" 1
