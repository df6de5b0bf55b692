#!/usr/bin/env bash
# After `cmake --install`, `nbdkit tplstore STORE` works, and so do the tool and the man pages.
. "$(dirname "$0")/../functions.sh"
requires root cmake unshare nbdinfo

build=$(dirname "$(dirname "$TPLSTORE")")
DESTDIR=$tmp/dest cmake --install "$build" --prefix /usr >"$tmp/install.log"
plugindir=$(nbdkit --dump-config | sed -n 's/^plugindir=//p')
[ -f "$tmp/dest$plugindir/nbdkit-tplstore-plugin.so" ] ||
    fail "the plugin is not in nbdkit's folder: $(find "$tmp/dest" -type f)"
TPLSTORE=$tmp/dest/usr/bin/tplstore
tplstore --version
[ -n "$(find "$tmp/dest/usr/share/man" -name '*tplstore*')" ] || fail "no man page"

new_store
tplstore volume create vm1 --size 1M
# nbdkit looks for plugins only where it was built to, so that folder gets the new file on top of
# it, in a mount namespace of its own.
unshare -m mount -t overlay overlay -o "lowerdir=$tmp/dest$plugindir:$plugindir" "$plugindir" \
    2>/dev/null || skip "no overlay mounts here"
# shellcheck disable=SC2016
unshare -m bash -c '
    mount -t overlay overlay -o "lowerdir=$1$2:$2" "$2" &&
        exec nbdkit --unix "$3/run.socket" tplstore "$4" \
            --run "nbdinfo --size \"nbd+unix:///vm1?socket=\$unixsocket\""' \
    - "$tmp/dest" "$plugindir" "$tmp" "$store" >"$tmp/size"
equals "size" "$(cat "$tmp/size")" 1048576
