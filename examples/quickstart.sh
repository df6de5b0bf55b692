#!/usr/bin/env bash
# From nothing to a guest with versions: examples/quickstart.sh [IMAGE]
#
# On a bare Debian 12 or 13, as root or with sudo: installs packages, builds tplstore, makes a
# small Debian image (or takes yours: any format qemu knows), and goes the whole way with it. Changes
# nothing outside of build/, ~/.cache/tplstore and one new folder in /var/tmp, but for packages.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$(dirname "$here")
# shellcheck source=SCRIPTDIR/packages.sh
. "$here/packages.sh"
# shellcheck source=SCRIPTDIR/guest.sh
. "$here/guest.sh"

case ${1-} in
-h | --help) sed -n '2,/^set/{/^# \{0,1\}/s///p}' "${BASH_SOURCE[0]}"; exit ;;
esac
[ $# -le 1 ] || { echo "usage: $0 [IMAGE]" >&2; exit 2; }
image=${1-}
[ -z "$image" ] || image=$(realpath -e "$image")

unset TMPDIR  # a socket's path must be short, and the store needs room
work=$(mktemp -d /var/tmp/tplstore-quickstart-XXXXXX)
server_pid=
succeeded=

finish() {
    guest_kill
    if [ -n "$server_pid" ]; then
        kill "$server_pid" 2>/dev/null || true
        wait "$server_pid" 2>/dev/null || true
        rm -f "$work"/{socket,pid,console.*.in}
    fi
    if [ -z "$succeeded" ]; then
        [ ! -s "$work/server.log" ] || { echo "The server's log:"; tail -n 20 "$work/server.log"; } >&2
        echo "The quickstart did not finish; removing $work" >&2
        rm -rf "$work"
    fi
}
trap finish EXIT
trap 'exit 130' INT TERM

headline() {
    printf '\n\033[1m== %s\033[0m  (%d s)\n' "$1" "$SECONDS"
}

# Prints a command, then runs it.
run() {
    local shown=${*//"$tplstore"/tplstore}
    echo "\$ ${shown//"$work"/\$DIR}"
    "$@"
}

headline "Installing packages"
install_packages build run guest
echo "All there."

headline "Building tplstore"
log=$work/build.log
# A tree that is new, and so hardly one to develop in, is built in large pieces.
[ -e "$source/build/release" ] && pieces=() || pieces=(-DCMAKE_UNITY_BUILD=ON)
if ! (cd "$source" && cmake --preset release "${pieces[@]+"${pieces[@]}"}" &&
        cmake --build --preset release --target plugin/all tools/all) >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    exit 1
fi
tplstore=$source/build/release/tools/tplstore
plugin=$source/build/release/plugin/nbdkit-tplstore-plugin.so
"$tplstore" --version

boot_options=()
if [ -z "$image" ]; then
    headline "Making a small Debian guest"
    guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
    "$here/make-guest.sh" "$guest"
    ls -sh "$guest/disk.raw"
    image=$guest/disk.raw
    boot_options=(-kernel "$guest/vmlinuz" -initrd "$guest/initrd"
        -append "console=ttyS0 root=/dev/vda rw quiet panic=-1")
fi

# Of an image that is not ours we know only that it reads its disk while it boots: wait until it has
# been quiet for ten seconds.
wait_until_quiet() {
    local quiet=0 before=0 now
    for ((second = 0; second < 300 && quiet < 10; second++)); do
        sleep 1
        now=$("$tplstore" stats --json |
            sed -n '/"bytes": {/,/}/s/.*"reads": \([0-9]*\).*/\1/p' | head -n 1)
        quiet=$((now > 0 && now == before ? quiet + 1 : 0))
        before=$now
    done
    echo "The guest has read $((before >> 10)) KiB of its disk and is quiet now. Its serial line:"
    tail -c 400 "$1"
    echo
}

# boot CONSOLE: boots vm1 until it is up.
boot() {
    guest_start "nbd+unix:///vm1?socket=$work/socket,file.reconnect-delay=60" "$1" ${boot_options[@]+"${boot_options[@]}"}
    if [ ${#boot_options[@]} -gt 0 ]; then
        guest_expect "GUEST up" 240
        grep -F "GUEST up" "$1"
    else
        wait_until_quiet "$1"
    fi
}

# write TEXT: has our guest keep it; others have written what they write while they boot.
write() {
    [ ${#boot_options[@]} -gt 0 ] || return 0
    guest_say "write $1"
    guest_expect "GUEST wrote $1" 60
    echo "The guest has written \"$1\" into /marker."
}

switch_off() {
    if [ ${#boot_options[@]} -gt 0 ]; then
        guest_say poweroff
        guest_wait 120
        echo "The guest has switched itself off."
    else
        guest_kill
        echo "Pulled the guest's plug."
    fi
}

headline "Making a store and importing the image as template \"golden\""
export TPLSTORE_STORE=$work/store
run "$tplstore" init "$TPLSTORE_STORE"
run "$tplstore" template import golden "$image"
run "$tplstore" template list

headline "Creating two volumes from the template"
run "$tplstore" volume create vm1 --template golden
run "$tplstore" volume create vm2 --template golden

headline "Serving the store with nbdkit"
echo "\$ nbdkit -U \$DIR/socket tplstore \$DIR/store"
nbdkit --foreground --unix "$work/socket" --pidfile "$work/pid" "$plugin" "$TPLSTORE_STORE" \
    >"$work/server.log" 2>&1 &
server_pid=$!
while [ ! -s "$work/pid" ]; do  # nbdkit writes it when it is ready
    kill -0 "$server_pid" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
    sleep 0.02
done
nbdinfo --list "nbd+unix:///?socket=$work/socket" | grep -E '^export=|^\s*description:' || true

headline "Booting a guest from vm1, and taking a version while it runs"
boot "$work/console.1"
write before
run "$tplstore" version create vm1 --name clean
write after
switch_off

headline "Booting it again: it goes on from where it was"
boot "$work/console.2"
switch_off

headline "Reading the old version"
run nbdcopy "nbd+unix:///vm1@clean?socket=$work/socket" "$work/clean.raw"
if [ ${#boot_options[@]} -gt 0 ]; then
    # The guest was running: to its file system the version is what a power cut leaves.
    /sbin/e2fsck -fp "$work/clean.raw" >/dev/null || [ $? = 1 ]
    old=$(/sbin/debugfs -R "cat /marker" "$work/clean.raw" 2>/dev/null)
    new=$(grep -o 'marker: [a-z]*' "$work/console.2")
    echo "/marker says \"$old\" in version \"clean\", and \"${new#marker: }\" in vm1."
    [ "$old,$new" = "before,marker: after" ] || { echo "That is wrong." >&2; exit 1; }
else
    ls -lsh "$work/clean.raw"
fi
rm -f "$work/clean.raw"

headline "What there is now"
run "$tplstore" volume list
run "$tplstore" version list vm1

succeeded=1
headline "Done"
cat <<END
The server is stopped; the store stays in $work. What to try next:

    cd $work
    export TPLSTORE_STORE=\$PWD/store PATH=$(dirname "$tplstore"):\$PATH
    tplstore version rollback vm1 clean         # vm1 is again what it was
    nbdkit -U socket $plugin store
    nbdinfo --list "nbd+unix:///?socket=socket"
    tplstore stats                              # while the server runs

    cmake --install $source/build/release       # as root; then it is just: nbdkit tplstore STORE
    rm -r $work   # when you have seen enough
END
