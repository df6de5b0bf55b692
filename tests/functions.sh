# shellcheck shell=bash
# What the end-to-end tests share. A test is a bash script whose name says what must be true; it
# starts with
#
#   . "$(dirname "$0")/../functions.sh"
#   requires fio qemu-img       # skips, with a reason, where a tool is missing
#
# and then finds itself with `set -euo pipefail`, an empty folder $tmp, and `tplstore` and nbdkit
# working on the store $store (make it with new_store). What it starts through these functions is
# ended, and $tmp removed, when it ends. A test ends with 0, or with 77 when it was skipped.
#
# A test can be started by hand; TPLSTORE and TPLSTORE_PLUGIN then default to build/release.
set -euo pipefail
shopt -s inherit_errexit

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${TPLSTORE:=$checkout/build/release/tools/tplstore}"
: "${TPLSTORE_PLUGIN:=$checkout/build/release/plugin/nbdkit-tplstore-plugin.so}"
# Libraries that nbdkit, which is built without a sanitizer, needs for a plugin built with one.
: "${TPLSTORE_PRELOAD:=}"
export PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C TERM=xterm
# Debian's own, for the libnbd module is made for it.
python=/usr/bin/python3

# Not in TMPDIR: the path of a Unix socket has at most 107 bytes, and some tests need a file system
# that knows O_DIRECT and holes.
unset TMPDIR
tmp=$(mktemp -d /var/tmp/tplstore-test-XXXXXX)
export store=$tmp/store
export TPLSTORE_STORE=$store

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

skip() {
    echo "SKIPPED: $*"
    exit 77
}

requires() {
    local tool
    for tool; do
        case $tool in
        root) [ "$(id -u)" = 0 ] || skip "needs to be root" ;;
        python-libnbd)
            $python -c 'import nbd' 2>/dev/null || skip "$python has no libnbd module" ;;
        loop)
            requires root losetup
            losetup --find >/dev/null 2>&1 || skip "no loop devices here" ;;
        fuse)
            requires root
            [ -w /dev/fuse ] || skip "no /dev/fuse here" ;;
        *) command -v "$tool" >/dev/null || skip "$tool is not installed" ;;
        esac
    done
}

# on_exit COMMAND...: runs it when the test has ended its servers; the last one first.
exit_commands=()
on_exit() {
    exit_commands=("$(printf '%q ' "$@")" "${exit_commands[@]+"${exit_commands[@]}"}")
}

# forget_journals STORE: what its servers have left in the host's memory.
forget_journals() {
    [ -f "$1/store" ] || return 0
    local uuid
    uuid=$(od -A n -t x1 -j 32 -N 16 "$1/store" | tr -d ' \n')
    rm -rf "/run/tplstore/${uuid:0:8}-${uuid:8:4}-${uuid:12:4}-${uuid:16:4}-${uuid:20}"
}

finish() {
    local status=$? command name
    trap - EXIT
    set +e
    for name in "${!nbdkit_pid[@]}"; do
        { kill "${nbdkit_pid[$name]}" 2>/dev/null; wait_for_end "${nbdkit_pid[$name]}" 10; } ||
            kill -9 "${nbdkit_pid[$name]}" 2>/dev/null
    done
    for command in "${exit_commands[@]+"${exit_commands[@]}"}"; do
        eval "$command" 2>/dev/null
    done
    if [ $status != 0 ] && [ $status != 77 ]; then
        for name in "$tmp"/*.log; do
            [ -s "$name" ] || continue
            echo "--- the last lines of $(basename "$name")"
            tail -n 40 "$name"
        done >&2
    fi
    # What servers that were killed have left in the host's memory.
    local identity
    for identity in "$tmp"/*/store; do
        forget_journals "${identity%/store}"
    done
    # rm does not go into what is still mounted.
    [ -n "${KEEP-}" ] || rm -rf --one-file-system "$tmp"
    exit $status
}
trap finish EXIT
trap 'exit 143' INT TERM

tplstore() {
    "$TPLSTORE" "$@"
}

# await SECONDS CONDITION...: until the command succeeds.
await() {
    local deadline=$((${EPOCHREALTIME/./} + $1 * 1000000))
    shift
    until "$@"; do
        [ "${EPOCHREALTIME/./}" -lt $deadline ] || return 1
        sleep 0.01
    done
}

has_ended() {
    ! kill -0 "$1" 2>/dev/null || [ "$(ps -o stat= -p "$1")" = Z ]
}

wait_for_end() {
    await "$2" has_ended "$1"
}

new_store() {
    tplstore init "$store" >/dev/null
}

# --- servers. Each has a name; its socket is $tmp/NAME.socket, what it prints is in $tmp/NAME.log.

declare -A nbdkit_pid

# start_nbdkit NAME NBDKIT-ARGUMENT...
start_nbdkit() {
    local name=$1
    shift
    rm -f "$tmp/$name.socket" "$tmp/$name.pid"
    env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"} \
        nbdkit --foreground --unix "$tmp/$name.socket" --pidfile "$tmp/$name.pid" "$@" \
        </dev/null >>"$tmp/$name.log" 2>&1 &
    nbdkit_pid[$name]=$!
    # nbdkit writes the file when it is ready to serve.
    await 60 server_is_ready_or_gone "$name" || fail "the server $name does not start"
    [ -s "$tmp/$name.pid" ] || fail "the server $name ended at once"
}

server_is_ready_or_gone() {
    [ -s "$tmp/$1.pid" ] || has_ended "${nbdkit_pid[$1]}"
}

is_attached() {
    [ "$(tplstore volume show "$1" --json | jq .attached)" = true ]
}

# A server closes a volume a moment after its last connection has gone.
is_free() {
    [ "$(tplstore volume show "$1" --json | jq .attached)" = false ]
}

# serve [PARAMETER...]: serves $store under the name "server".
serve() {
    start_nbdkit server "$TPLSTORE_PLUGIN" "$store" "$@"
}

# stop_nbdkit [NAME]: a clean end, which must be one.
stop_nbdkit() {
    local name=${1-server} status=0
    kill "${nbdkit_pid[$name]}"
    if [ -z "$TPLSTORE_PRELOAD" ]; then
        wait_for_end "${nbdkit_pid[$name]}" 60 || fail "the server $name does not end"
        wait "${nbdkit_pid[$name]}" || status=$?
    else
        # With a sanitizer's library in it, nbdkit (nbdkit null too) may hang in exit(): one of the
        # C library's locks is broken from the start. By then the plugin has done all it does.
        await 60 has_closed_store "${nbdkit_pid[$name]}" || fail "the server $name does not end"
        kill -9 "${nbdkit_pid[$name]}" 2>/dev/null || true
        wait "${nbdkit_pid[$name]}" 2>/dev/null || true
        ! grep -E "Sanitizer|runtime error" "$tmp/$name.log" || fail "a sanitizer has found something"
    fi
    unset "nbdkit_pid[$name]"
    [ $status = 0 ] || fail "the server $name ended with status $status"
}

# stop_server [NAME]: likewise, but its clients are told nothing.
stop_server() {
    local name=${1-server} status=0
    tplstore server stop >"$tmp/stop.out" || fail "the server cannot be stopped"
    wait "${nbdkit_pid[$name]}" || status=$?
    unset "nbdkit_pid[$name]"
    [ $status = 0 ] || fail "the server $name ended with status $status"
}

has_closed_store() {
    has_ended "$1" ||
        # ThreadSanitizer has a thread of its own beside the main one.
        { [ "$(find "/proc/$1/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)" -le 2 ] &&
          [ -z "$(find "/proc/$1/fd" -lname "$store/*" 2>/dev/null)" ]; }
}

# kill_nbdkit [NAME]: as a crash does.
kill_nbdkit() {
    local name=${1-server}
    kill -9 "${nbdkit_pid[$name]}" 2>/dev/null || true
    wait "${nbdkit_pid[$name]}" 2>/dev/null || true  # without bash's remark on it
    unset "nbdkit_pid[$name]"
}

# uri EXPORT [NAME]
uri() {
    echo "nbd+unix:///$1?socket=$tmp/${2-server}.socket"
}

# start_client write|read URI...: a client of these disks until it is killed, with its pid in $client.
# One that writes has written something and flushed it.
start_client() {
    local what=$1 out
    shift
    out=$(mktemp "$tmp/client-XXXXXX.out")
    $python -c '
import nbd, signal, sys
clients = [nbd.NBD() for uri in sys.argv[2:]]
for client, uri in zip(clients, sys.argv[2:]):
    client.connect_uri(uri)
    if sys.argv[1] == "write":
        client.pwrite(b"x" * 4096, 0)
        client.flush()
print("connected", flush=True)
signal.pause()' "$what" "$@" >"$out" 2>&1 &
    client=$!
    on_exit kill -9 "$client"
    await 20 grep -qs connected "$out" || fail "no connection: $(cat "$out")"
}

# make_stall: a library for a server's TPLSTORE_PRELOAD, $tmp/stall.so. With it a pwrite that begins
# with "STALL" makes the file $STALLED, and waits until $GO_ON is there.
make_stall() {
    cat >"$tmp/stall.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ssize_t (*next_pwrite)(int, const void *, size_t, off_t);

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    if (!next_pwrite)
        next_pwrite = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    if (length >= 5 && memcmp(data, "STALL", 5) == 0) {
        close(open(getenv("STALLED"), O_CREAT | O_WRONLY, 0600));
        while (access(getenv("GO_ON"), F_OK) != 0)
            usleep(1000);
    }
    return next_pwrite(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite(fd, data, length, offset);
}
END
    cc -shared -fPIC -O1 -o "$tmp/stall.so" "$tmp/stall.c" -ldl
    export STALLED=$tmp/stalled GO_ON=$tmp/go-on
}

# --- checks

# How many volumes there are, with a name or kept for others.
count_volumes() {
    find "$store/volumes" -mindepth 1 -maxdepth 1 | wc -l
}

# refuses PATTERN COMMAND...: it must fail with status 1 and one clear line that matches.
refuses() {
    local pattern=$1 status=0
    shift
    "$@" >"$tmp/refused.out" 2>"$tmp/refused.err" || status=$?
    [ $status = 1 ] || fail "$* ended with status $status instead of 1: $(cat "$tmp/refused.err")"
    grep -q -i -E -e "$pattern" "$tmp/refused.err" ||
        fail "$* said \"$(cat "$tmp/refused.err")\" and nothing like \"$pattern\""
}

# same FILE FILE
same() {
    cmp -- "$1" "$2" >&2 || fail "$1 and $2 differ"
}

# equals WHAT ACTUAL EXPECTED
equals() {
    [ "$2" = "$3" ] || fail "$1: $2 instead of $3"
}

# make_image FILE [MIB]: data of several kinds, repetitions, explicit zeroes and holes.
make_image() {
    $python - "$1" "${2-64}" <<'END'
import os, random, sys
path, size = sys.argv[1], int(sys.argv[2]) << 20
chance = random.Random(size)
with open(path, "wb") as image:
    image.truncate(size)
    repeated = chance.randbytes(256 << 10)
    offset = 0
    while offset < size:
        length = min(size - offset, chance.choice([4096, 12288, 65536, 1 << 20, 3 << 20]))
        kind = chance.randrange(6)
        image.seek(offset)
        if kind <= 1:
            image.write(chance.randbytes(length))
        elif kind == 2:
            image.write((repeated * 16)[:length])
        elif kind == 3:
            image.write((b"%x" % offset * length)[:length])
        elif kind == 4:
            image.write(bytes(length))
        offset += length
    image.seek(size - 512)
    image.write(b"\xaa" * 512)
END
}
