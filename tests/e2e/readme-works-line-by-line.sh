#!/usr/bin/env bash
# What README says under "Using it" does what it says when it is typed, line by line.
. "$(dirname "$0")/../functions.sh"
requires root qemu-system-x86_64 qemu-img nbdcopy nbdinfo

# Its folders, sockets and port are those of a host that has nothing else to do.
port=$($python -c '
import socket
probe = socket.socket()
probe.bind(("127.0.0.1", 0))
print(probe.getsockname()[1])')
mkdir "$tmp/etc" "$tmp/work"
sed -n '/^## Using it/,/^Exports are/s/^    //p' "$checkout/README.md" |
    sed -e "s|/srv/|$tmp/|g" -e "s|/run/|$tmp/|g" -e "s|/etc/|$tmp/etc/|g" -e "s|10809|$port|g" \
        -e 's/SERVER/localhost/g' -e 's/0\.0\.0\.0/127.0.0.1/g' >"$tmp/typed"
for what in "version rollback" nbdcopy qemu-system "tls=require" "nbdinfo 'nbds:" tls-creds-psk; do
    grep -q -e "$what" "$tmp/typed" || fail "README does not show $what where it is looked for"
done

cd "$tmp/work"
make_image image.raw 16
qemu-img convert -O qcow2 image.raw debian12.qcow2
export TPLSTORE_PLUGIN
end_typed() {
    # shellcheck disable=SC2046
    kill $(cat "$tmp"/*.pid "$tmp/jobs")
}
on_exit end_typed

# Who types waits for a server, which the lines do not say.
serves() {
    [ -S "$tmp/tplstore.sock" ] && { [ "$1" = unix ] || (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
}
sed -e '/^tplstore serve --socket/s/$/\nawait 20 serves unix/' \
    -e '/^tplstore serve --port/s/$/\nawait 20 serves tcp/' "$tmp/typed" >"$tmp/script"
(
    trap 'jobs -p >"$tmp/jobs"' EXIT
    set -x
    # shellcheck disable=SC1091
    . "$tmp/script"
) >"$tmp/typed.log" 2>&1

same debian12.raw image.raw
for version in monday tuesday; do
    tplstore volume export "vm1@$version" here.raw --force
    tplstore --store "$tmp/other" volume export "vm1@$version" there.raw --force
    same here.raw there.raw
done
# Whoever has no key gets nothing.
! nbdinfo "nbd://localhost:$port/vm1" >/dev/null 2>&1 || fail "the port serves without TLS"
! nbdinfo "nbds://localhost:$port/vm1" >/dev/null 2>&1 || fail "the port serves without the key"

# Every VM that is shown anywhere survives its server's death.
$python - "$checkout" <<'CHECK'
import pathlib, re, sys
top = pathlib.Path(sys.argv[1])
shown = 0
for path in [top / "README.md", *top.glob("*/*.1"), *(top / "examples").iterdir()]:
    text = path.read_text().replace("\\e\n", "")
    for found in re.finditer(r'(driver=nbd|file=nbd|guest_start "nbd)\S*', text):
        shown += 1
        assert "reconnect-delay=" in found[0], f"{path} shows {found[0]}"
assert shown >= 6, shown
CHECK
