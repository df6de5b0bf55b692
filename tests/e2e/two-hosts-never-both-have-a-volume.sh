#!/usr/bin/env bash
# Two hosts have one store, and their file locks meet, or do not. Of two VMs that come at the same
# moment one gets the volume; the other one is refused, and told who has it. What a host has left in
# a crash the other one refuses, until its operator breaks it. An owner that was only paused goes on
# then, as 'lock break' says, and writes: the operator has to make sure that it cannot. Nor does one
# host take for garbage what another one is about to make.
. "$(dirname "$0")/../functions.sh"
requires root unshare python-libnbd nbdinfo jq cc
[ -z "$TPLSTORE_PRELOAD" ] || skip "a library is preloaded already"
[ -e /etc/machine-id ] || skip "this host has no machine id"

# Locks of open files are moved to a place of this host's own, where no other host's are; and what
# is written to headers comes late, so that hosts do meet between reading one and writing it. The file
# system is said to be NFS.
cat >"$tmp/locks.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

int fstatfs(int fd, struct statfs *status)
{
    int result = ((int (*)(int, struct statfs *))dlsym(RTLD_NEXT, "fstatfs"))(fd, status);
    status->f_type = 0x6969;
    return result;
}
int fstatfs64(int fd, struct statfs64 *status)
{
    return fstatfs(fd, (struct statfs *)status);
}

static int call(const char *name, int fd, int command, void *argument)
{
    int (*next)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    const char *host = getenv("LOCKS_OF_HOST");
    if (host && (command == F_OFD_SETLK || command == F_OFD_GETLK)) {
        struct flock moved = *(struct flock *)argument;
        if (moved.l_len != 0)
            moved.l_start += (off_t)atoi(host) << 44;
        const int result = next(fd, command, &moved);
        ((struct flock *)argument)->l_type = moved.l_type;
        return result;
    }
    return next(fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return call("fcntl", fd, command, argument);
}

int fcntl64(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return call("fcntl64", fd, command, argument);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    ssize_t (*next)(int, const void *, size_t, off_t) =
        (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t bytes = readlink(link, path, sizeof path);
    if (bytes > 7 && memcmp(path + bytes - 7, "/header", 7) == 0)
        usleep(20000);
    return next(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite(fd, data, length, offset);
}
END
cc -shared -fPIC -O1 -o "$tmp/locks.so" "$tmp/locks.c" -ldl

# on HOST COMMAND...: on a host of that number, with a name, a machine id and a run directory.
mkdir "$tmp/run-1" "$tmp/run-2"
echo 11111111111111111111111111111111 >"$tmp/machine-id-1"
echo 22222222222222222222222222222222 >"$tmp/machine-id-2"
cat >"$tmp/host" <<END
#!/bin/sh
number=\$1
shift
mount --bind "$tmp/machine-id-\$number" /etc/machine-id && hostname host-\$number &&
    mkdir -p /run/tplstore && mount --bind "$tmp/run-\$number" /run/tplstore && exec "\$@"
END
chmod +x "$tmp/host"
meeting=true
on() {
    local host=$1
    shift
    if $meeting; then
        unshare -m -u "$tmp/host" "$host" "$@"
    else
        unshare -m -u "$tmp/host" "$host" env LOCKS_OF_HOST="$host" LD_PRELOAD="$tmp/locks.so" "$@"
    fi
}
on 1 true 2>/dev/null || skip "no other host can be made up here"

# serve_on HOST: a server there under the name host-HOST. Its pid is nbdkit's: unshare and the rest
# only call exec.
serve_on() {
    local name=host-$1
    rm -f "$tmp/$name.socket" "$tmp/$name.pid"
    on "$1" nbdkit --foreground --unix "$tmp/$name.socket" --pidfile "$tmp/$name.pid" \
        "$TPLSTORE_PLUGIN" "$store" shared=refuse-foreign </dev/null >>"$tmp/$name.log" 2>&1 &
    nbdkit_pid[$name]=$!
    await 60 server_is_ready_or_gone "$name" || fail "the server $name does not start"
    [ -s "$tmp/$name.pid" ] || fail "the server $name ended at once"
    # `on` runs in a shell of its own.
    nbdkit_pid[$name]=$(cat "$tmp/$name.pid")
}
await_end() { wait_for_end "$1" 20 || fail "process $1 does not end"; }
state_on() { on "$1" "$TPLSTORE" lock show vm1 --json | jq -r .state; }

cat >"$tmp/race.py" <<'END'
import nbd, sys, threading
uris, rounds = sys.argv[1:3], int(sys.argv[3])
wins = [0, 0]
for number in range(rounds):
    clients = [None, None]
    start = threading.Barrier(2)
    def come(i):
        start.wait()
        client = nbd.NBD()
        try:
            client.connect_uri(uris[i])
            clients[i] = client
        except nbd.Error:
            pass
    threads = [threading.Thread(target=come, args=(i,)) for i in (0, 1)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    winners = [i for i in (0, 1) if clients[i]]
    if len(winners) > 1:
        sys.exit("round %d: both hosts have the volume" % number)
    for i in winners:
        wins[i] += 1
        clients[i].pwrite(b"%4d" % number + bytes(4092), 0)
        clients[i].shutdown()
if sum(wins) < rounds * 3 // 4:
    sys.exit("nobody got the volume in %d of %d rounds" % (rounds - sum(wins), rounds))
print(wins)
END

for meeting in true false; do
    # With locks that meet who is too late waits for a moment.
    rounds=15
    ! $meeting || rounds=5
    rm -rf "$store"
    new_store
    tplstore volume create vm1 --size 16M
    serve_on 1
    serve_on 2
    $python "$tmp/race.py" "$(uri vm1 host-1)" "$(uri vm1 host-2)" $rounds >"$tmp/race.out" ||
        fail "locks that meet: $meeting: $(cat "$tmp/race.out" "$tmp"/host-?.log | tail -n 5)"
    echo "locks that meet: $meeting: $(cat "$tmp/race.out")"

    # Where they do not, both say so.
    $meeting || for host in 1 2; do
        await 30 grep -q "server of host host-$((3 - host)) is at work, and its file lock is not seen" \
            "$tmp/host-$host.log" || fail "host $host says nothing of the locks"
    done

    # What host 1 has, and then leaves in a crash.
    await 20 eval '[ "$(state_on 1)" = free ]' || fail "the volume does not become free"
    start_client write "$(uri vm1 host-1)"
    ! nbdinfo "$(uri vm1 host-2)" >"$tmp/info.out" 2>&1 || fail "two hosts have it"
    grep -q "in use by .* on host host-1.* since" "$tmp/host-2.log" || fail "host 1 is not named"
    kill -9 "${nbdkit_pid[host-1]}"
    await_end "${nbdkit_pid[host-1]}"
    unset "nbdkit_pid[host-1]"
    kill -9 $client
    wait $client 2>/dev/null || true
    equals "state on host 2" "$(state_on 2)" foreign
    refuses "in use by .* on host host-1.*lock break vm1 --epoch" \
        on 2 "$TPLSTORE" version create vm1
    refuses "lock break vm1" on 2 "$TPLSTORE" volume rm vm1
    epoch=$(on 2 "$TPLSTORE" lock show vm1 --json | jq .epoch)
    refuses "only paused.*off" on 2 "$TPLSTORE" lock break vm1 --epoch "$epoch"
    on 2 "$TPLSTORE" lock break vm1 --epoch "$epoch" --yes >"$tmp/break.out" 2>&1
    start_client write "$(uri vm1 host-2)"
    kill $client
    wait $client 2>/dev/null || true
    await 20 eval '[ "$(state_on 2)" = free ]' || fail "the volume does not become free"
    kill "${nbdkit_pid[host-2]}"
    await_end "${nbdkit_pid[host-2]}"
    unset "nbdkit_pid[host-2]"
done

# A host imports, as long as its source takes, and is killed. The claim says which process that is.
rm -rf "$store"
new_store
start_nbdkit slow --filter=delay pattern 16M rdelay=100
on 1 "$TPLSTORE" template import golden "nbd+unix:///?socket=$tmp/slow.socket" >"$tmp/import.log" 2>&1 &
import=$!
await 20 eval '[ -n "$(cat "$store"/gc.claims/*.shared 2>/dev/null)" ]' || fail "no claim"
refuses "host host-1 \(pid [0-9]+\) since .* imports.*'tplstore gc' on that host" on 2 "$TPLSTORE" gc
refuses "host host-1 .* imports" on 2 "$TPLSTORE" template rm golden
on 2 "$TPLSTORE" volume create vm1 --size 16M >"$tmp/create.out"
kill -9 "$(sed 's/.*(pid \([0-9]*\)).*/\1/' "$store"/gc.claims/*.shared)"
wait $import || true
refuses "host host-1 .* went down" on 2 "$TPLSTORE" gc
on 1 "$TPLSTORE" gc >"$tmp/gc.out"
on 2 "$TPLSTORE" gc >"$tmp/gc.out"
# What one makes while the other collects is either made or refused.
for number in {1..15}; do
    on 1 "$TPLSTORE" volume create "new$number" --size 16M >"$tmp/create.out" 2>"$tmp/create.err" &
    create=$!
    on 2 "$TPLSTORE" gc >"$tmp/gc.out" 2>"$tmp/gc.err" || grep -q "host host-1" "$tmp/gc.err" ||
        fail "gc: $(cat "$tmp/gc.err")"
    if wait $create; then
        on 1 "$TPLSTORE" lock show "new$number" >"$tmp/show.out" || fail "new$number is gone"
    else
        grep -q "host host-2" "$tmp/create.err" || fail "create: $(cat "$tmp/create.err")"
    fi
done
[ -z "$(ls "$store/gc.claims")" ] || fail "claims are left: $(ls "$store/gc.claims")"
rm -rf "$store"
new_store
tplstore volume create vm1 --size 16M

first_byte() { find "$store/volumes" -name 'data.*' -size +0 -exec head -c 1 {} \; | tr -d '\0'; }

# An owner that is paused when its lock is broken: its file lock is out of the other host's sight.
meeting=false
serve_on 1
serve_on 2
cat >"$tmp/vm.py" <<'END'
import nbd, os, sys, time
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"1" * 4096, 0)
client.flush()
print("connected", flush=True)
sys.stdin.readline()
client.pwrite(b"3" * 4096, 0)   # waits as long as the server is paused
client.flush()
print("written", flush=True)
sys.stdin.readline()
END
mkfifo "$tmp/say"
$python "$tmp/vm.py" "$(uri vm1 host-1)" <"$tmp/say" >"$tmp/vm.out" 2>&1 &
vm=$!
exec 7>"$tmp/say"
on_exit kill -9 "$vm"
await 20 grep -qs connected "$tmp/vm.out" || fail "no connection: $(cat "$tmp/vm.out")"
kill -STOP "${nbdkit_pid[host-1]}"
on_exit kill -CONT "${nbdkit_pid[host-1]}"
echo >&7
epoch=$(on 2 "$TPLSTORE" lock show vm1 --json | jq .epoch)
on 2 "$TPLSTORE" lock break vm1 --epoch "$epoch" --yes >"$tmp/break.out" 2>&1
$python -c '
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.pwrite(b"2" * 4096, 0)
client.flush()
client.shutdown()' "$(uri vm1 host-2)"
await 20 eval '[ "$(state_on 2)" = free ]' || fail "the volume does not become free"
before=$(first_byte)
equals "after host 2 has written" "$before" 2
kill -CONT "${nbdkit_pid[host-1]}"
await 20 grep -qs written "$tmp/vm.out" || fail "what was paused does not go on: $(cat "$tmp/vm.out")"
after=$(first_byte)
equals "after the owner that was paused has gone on" "$after" 3
kill -9 "$vm" "${nbdkit_pid[host-1]}"
{ wait "$vm"; } 2>/dev/null || true
await_end "${nbdkit_pid[host-1]}"
unset "nbdkit_pid[host-1]"
