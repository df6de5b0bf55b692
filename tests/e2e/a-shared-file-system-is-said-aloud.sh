#!/usr/bin/env bash
# On a file system that several hosts may have, a store is neither made nor served before somebody has
# said that he knows; and then it works, and says what it is on. On others nobody is asked. Where file
# locks do not even exclude others of the same host there is neither store nor server.
. "$(dirname "$0")/../functions.sh"
requires cc qemu-io
[ -z "$TPLSTORE_PRELOAD" ] || skip "a library is preloaded already"

cat >"$tmp/nfs.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/vfs.h>

int statfs(const char *path, struct statfs *status)
{
    int result = ((int (*)(const char *, struct statfs *))dlsym(RTLD_NEXT, "statfs"))(path, status);
    status->f_type = strtol(getenv("FILE_SYSTEM"), 0, 16);
    return result;
}
int statfs64(const char *path, struct statfs64 *status)
{
    return statfs(path, (struct statfs *)status);
}
int fstatfs(int fd, struct statfs *status)
{
    int result = ((int (*)(int, struct statfs *))dlsym(RTLD_NEXT, "fstatfs"))(fd, status);
    status->f_type = strtol(getenv("FILE_SYSTEM"), 0, 16);
    return result;
}
int fstatfs64(int fd, struct statfs64 *status)
{
    return fstatfs(fd, (struct statfs *)status);
}
int fcntl64(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (getenv("NO_LOCKS") && (command == F_OFD_SETLK || command == F_OFD_GETLK)) {
        ((struct flock *)argument)->l_type = F_UNLCK;
        return 0;
    }
    return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl64"))(fd, command, argument);
}
int fcntl(int fd, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(fd, command, argument);
}
END
cc -shared -fPIC -O1 -o "$tmp/nfs.so" "$tmp/nfs.c" -ldl
on() { env FILE_SYSTEM="$1" LD_PRELOAD="$tmp/nfs.so" "${@:2}"; }
nbdkit_on() { on "$1" nbdkit -U - "$TPLSTORE_PLUGIN" "$store" "${@:2}" --run 'qemu-io -f raw -c "write -P 7 0 64k" "nbd+unix:///vm1?socket=$unixsocket"'; }

while read -r number name; do
    refuses "on $name, .*say --shared refuse-foreign" on "$number" "$TPLSTORE" init "$store"
    [ ! -e "$store" ] || fail "something was made"
    on "$number" "$TPLSTORE" init "$store" --shared refuse-foreign >"$tmp/init.out"
    grep -q "an empty store on $name" "$tmp/init.out" || fail "said $(cat "$tmp/init.out")"
    on "$number" "$TPLSTORE" volume create vm1 --size 16M >"$tmp/create.out"
    ! nbdkit_on "$number" >"$tmp/serve.out" 2>&1 || fail "served on $name without a word"
    grep -q "on $name, .*say shared=refuse-foreign" "$tmp/serve.out" || fail "$(cat "$tmp/serve.out")"
    nbdkit_on "$number" shared=refuse-foreign >"$tmp/serve.out" 2>&1 || fail "$(cat "$tmp/serve.out")"
    grep -q "on $name; what another host has" "$tmp/serve.out" || fail "$(cat "$tmp/serve.out")"
    rm -rf "$store"
done <<'END'
6969 NFS
ff534d42 SMB
65735546 FUSE
END
for number in ef53 58465342 12345; do
    on $number "$TPLSTORE" init "$store" >"$tmp/init.out"
    on $number "$TPLSTORE" volume create vm1 --size 16M >"$tmp/create.out"
    nbdkit_on $number >"$tmp/serve.out" 2>&1 || fail "$number: $(cat "$tmp/serve.out")"
    rm -rf "$store"
done

export NO_LOCKS=1
refuses "file locks do not work on ext4" on ef53 "$TPLSTORE" init "$store"
rm -rf "$store"
env -u NO_LOCKS "$TPLSTORE" init "$store" >"$tmp/init.out"
! on ef53 timeout 20 nbdkit -f -U "$tmp/socket" "$TPLSTORE_PLUGIN" "$store" >"$tmp/serve.out" 2>&1 ||
    fail "served without locks"
grep -q "file locks do not work on ext4" "$tmp/serve.out" || fail "$(cat "$tmp/serve.out")"
