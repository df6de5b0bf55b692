#!/usr/bin/env bash
# What root does to a store of another user leaves nothing there that this user's server cannot open.
. "$(dirname "$0")/../functions.sh"
requires root setpriv nbdkit qemu-img python-libnbd jq

user=65534 group=65533
as_owner() {
    setpriv --reuid="$user" --regid="$group" --clear-groups "$@"
}
# Where that user can get at them.
chmod 755 "$tmp"
cp "$TPLSTORE" "$tmp/tplstore"
cp "$TPLSTORE_PLUGIN" "$tmp/nbdkit-tplstore-plugin.so"
chmod 755 "$tmp/tplstore" "$tmp/nbdkit-tplstore-plugin.so"
# nbdkit_run COMMAND: with a server of the store's owner.
nbdkit_run() {
    as_owner nbdkit -U - "$tmp/nbdkit-tplstore-plugin.so" "$store" --run "$1" 2>>"$tmp/server.log"
}
all_is_the_owners() {
    local others
    others=$(find "$store" ! \( -uid "$user" -gid "$group" \))
    [ -z "$others" ] || fail "after $1 these are not the owner's: $others"
}

mkdir "$store"
chown "$user:$group" "$store"
as_owner "$tmp/tplstore" init "$store"
as_owner "$tmp/tplstore" volume create theirs --size 8M

make_image "$tmp/image.raw" 16
tplstore template import golden "$tmp/image.raw"
all_is_the_owners "template import"
tplstore volume create clone --template golden
tplstore volume create empty --size 8M
all_is_the_owners "volume create"
for volume in theirs clone; do
    tplstore version create "$volume" --name first
    tplstore version create "$volume"
done
tplstore volume create fork --from clone@first
all_is_the_owners "version create"
tplstore version rm theirs 2
tplstore volume resize theirs 16M
tplstore volume export clone@first "$tmp/clone.inc" --format increment
tplstore volume import imported "$tmp/clone.inc"
tplstore volume flatten fork
tplstore volume rm empty
tplstore gc
all_is_the_owners "gc"

# The owner's server opens all of it, for reading and for writing.
for export in clone clone@first fork imported template/golden; do
    nbdkit_run "qemu-img compare -q -f raw -F raw 'nbd+unix:///$export?socket='\$unixsocket $tmp/image.raw" ||
        fail "the owner's server does not serve $export"
done
nbdkit_run "qemu-img convert -n -f raw -O raw $tmp/image.raw 'nbd+unix:///theirs?socket='\$unixsocket" ||
    fail "the owner's server cannot write"
as_owner "$tmp/tplstore" version create theirs
as_owner "$tmp/tplstore" volume rm clone
as_owner "$tmp/tplstore" template import again "$tmp/image.raw"
as_owner "$tmp/tplstore" gc

# Root, who has another run directory than the owner's server, finds that one.
mkdir "$tmp/run"
chown "$user:$group" "$tmp/run"
# Not as_owner: it is that process which is to be killed.
XDG_RUNTIME_DIR=$tmp/run setpriv --reuid="$user" --regid="$group" --clear-groups \
    nbdkit --foreground --unix "$tmp/run/nbd.socket" \
    "$tmp/nbdkit-tplstore-plugin.so" "$store" 2>>"$tmp/server.log" &
owners_server=$!
on_exit kill -9 "$owners_server"
await 20 test -S "$tmp/run/nbd.socket"
start_client write "nbd+unix:///theirs?socket=$tmp/run/nbd.socket"
[ -n "$(ls "$tmp/run/tplstore")" ] || fail "the server's socket is not in its run directory"
tplstore version create theirs --name live
equals "servers" "$(tplstore stats --json | jq '.servers | length')" 1
all_is_the_owners "version create on the owner's server"
# And what it leaves behind when it is killed is removed.
kill -9 "$owners_server" "$client"
wait "$owners_server" "$client" 2>/dev/null || true
equals "servers" "$(tplstore stats --json | jq '.servers | length')" 0
equals "what leads to servers" "$(ls "$store/servers")" ""

# Root was killed when it had made a volume's folder, and not given it to the owner yet. That is one
# fault, of which the owner is told; all else goes on.
left=$store/volumes/00000000-0000-4000-8000-000000000001
mkdir -m 700 "$left"
as_owner "$tmp/tplstore" stats >"$tmp/stats" || fail "one folder of another's keeps all figures away"
refuses "has 1 fault" as_owner "$tmp/tplstore" check
grep -q "$left: .*Permission denied" "$tmp/refused.out" || fail "check does not tell of it"
grep -q "^3 volumes .* 1 fault" "$tmp/refused.out" || fail "the rest is not checked"
tplstore gc
[ ! -e "$left" ] || fail "root's gc leaves it there"
as_owner "$tmp/tplstore" check
