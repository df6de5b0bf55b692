#!/usr/bin/env bash
# Export names come from the network: what is not one is refused, whatever it looks like, and the
# server goes on.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd python3

make_image "$tmp/image.raw" 4
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --size 4M
tplstore version create vm1 --name clean
echo secret >"$tmp/secret"
find "$store" | sort >"$tmp/before"
serve

$python - "$tmp/server.socket" <<'END'
import nbd, sys

def connects(name):
    client = nbd.NBD()
    client.set_export_name(name)
    try:
        client.connect_unix(sys.argv[1])
    except nbd.Error:
        return False
    client.shutdown()
    return True

names = ["..", ".", "/", "//", "../secret", "vm1/", "/vm1", "vm1/..", "vm1/../vm1", "./vm1", "vm1 ",
         " vm1", "vm1\n", "vm1\t", "VM1", "vm2", "vm1@", "@", "@1", "vm1@0", "vm1@2", "vm1@3", "vm1@01",
         "vm1@-1", "vm1@1@1", "vm1@@1", "vm1@4294967297", "vm1@18446744073709551617", "vm1@1x",
         "vm1@dirty", "vm1@../vm1", "vm1@1..", "vm1@..1", "template", "template/", "template/none",
         "template/../vm1", "template//golden", "template/golden/", "template/golden@1", "templates/golden",
         "golden", "names/vm1", "volumes", "store", "servers", "gc.lock", "segments/00", "-vm1", ".vm1",
         "_vm1", "%00", "%2e%2e", "vm1%00", "vm1\\", "$(reboot)", "`reboot`", "vm1;rm", "vm1|",
         "v\u00e4m", "\U0001f4be", "a" * 128, "a" * 129, "a" * 4000, "vm1@" + "9" * 4000,
         "template/" + "a" * 4000, "../" * 1000, "vm1\x7f", "\x01", "*", "vm?",
         ";writer=a", "vm1;", "vm1;writer", "vm1;writer=", "vm1;writer=a;", "vm1;writer=a;multi;",
         "vm1;multi", "vm1;multi;writer=a", "vm1;writer=a;writer=b", "vm1;writer=a;multi;multi",
         "vm1;writer=a b", "vm1;writer=a/b", "vm1;writer=a=b", "vm1;writer=" + "a" * 65, "vm1;WRITER=a",
         "vm1;writer=a;multi=1", "vm1;writer=a@1", "vm1@1;writer=a", "vm1@current;writer=a",
         "template/golden;writer=a", "vm1;writer=\u00e4", "vm1;writer=;multi"]
for name in names:
    assert not connects(name), f"export {name[:40]!r} is served"
for name in ["vm1", "vm1;writer=a", "vm1;writer=-._Z9;multi", "vm1;writer=" + "a" * 64, "vm1@1", "vm1@clean", "template/golden"]:
    assert connects(name), f"export {name} is not served"
print(f"{len(names)} names refused")
END
kill -0 "${nbdkit_pid[server]}"

# The same on the command line, as names of new things.
for name in .. . a/b ../x "" "a b" .hidden -x "$(printf 'a%.0s' {1..129})" "ä"; do
    ! tplstore volume create --size 1M -- "$name" >"$tmp/out" 2>&1 || fail "created volume '$name'"
    ! tplstore template import -- "$name" "$tmp/image.raw" >"$tmp/out" 2>&1 || fail "imported '$name'"
done
! tplstore version create vm1 --name 7 >"$tmp/out" 2>&1 || fail "a version may be called 7"
! tplstore version create vm1 --name ../7 >"$tmp/out" 2>&1 || fail "a version may be called ../7"
stop_nbdkit
# Nothing has come into being. (What leads to servers comes and goes; a map may be written anew.)
find "$store" | sort | grep -v /servers | sed 's/map\.[0-9]*/map/' >"$tmp/after"
grep -v /servers "$tmp/before" | sed 's/map\.[0-9]*/map/' | comm -13 - "$tmp/after" |
    grep -v "/volumes/.*/[a-z]*[.0-9]*$" >"$tmp/new" || true
[ ! -s "$tmp/new" ] || fail "new in the store: $(cat "$tmp/new")"
