#!/usr/bin/env bash
# Where the kernel refuses io_uring, as it does in many containers, everything works without, and the
# server says so once; TPLSTORE_NO_IO_URING=1 has the same effect and needs no word.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd python3 nbdcopy

make_image "$tmp/image.raw" 24
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create clone --template golden

check() {
    $python "$(dirname "$0")/wire_model.py" "$(uri clone)" 3000
    tplstore version create clone
    $python "$(dirname "$0")/wire_model.py" "$(uri clone)" 2000
    nbdcopy "$(uri template/golden)" "$tmp/out.raw"
    same "$tmp/out.raw" "$tmp/image.raw"
    # Reads that touch many places at once are what io_uring is for.
    nbdcopy --request-size=33554432 "$(uri clone)" null:
}

# An nbdkit whose system call io_uring_setup fails with EPERM.
mkdir "$tmp/bin"
cat >"$tmp/bin/nbdkit" <<END
#!$python
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# Load the call's number; is it io_uring_setup, 425? EPERM : allowed.
code = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)])
buffer = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0, "no seccomp"
os.execv("$(command -v nbdkit)", ["nbdkit"] + sys.argv[1:])
END
chmod 755 "$tmp/bin/nbdkit"
real_path=$PATH
PATH=$tmp/bin:$PATH
serve
check
stop_nbdkit
equals "times it says so" "$(grep -c io_uring "$tmp/server.log")" 1

PATH=$real_path
export TPLSTORE_NO_IO_URING=1
serve
check
stop_nbdkit
equals "times it says so" "$(grep -c io_uring "$tmp/server.log")" 1
