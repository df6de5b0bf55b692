# shellcheck shell=bash
# Boots a guest in qemu and talks with it on its serial line. To be sourced.
#
#   guest_start DRIVE CONSOLE [QEMU-OPTION...]   DRIVE is a file or an NBD URI, CONSOLE a new file
#                                                that gets all the guest says
#   guest_expect TEXT SECONDS                    waits until the guest has said so since it started
#   guest_say LINE
#   guest_wait SECONDS                           waits until it has powered itself off
#   guest_kill                                   pulls the plug; does nothing when there is no guest
#
# One guest at a time. There is no need for /dev/kvm: the guest runs in qemu's emulator.

guest_pid=
guest_console=

guest_start() {
    local drive=$1
    guest_console=$2
    shift 2
    : >"$guest_console"
    rm -f "$guest_console.in"
    mkfifo "$guest_console.in"
    # Opened for both directions, so that neither side waits for the other.
    exec {guest_in}<>"$guest_console.in"
    qemu-system-x86_64 -accel tcg -cpu max -m 512 -nodefaults -display none -no-reboot \
        -serial stdio -drive "file=$drive,if=virtio,format=raw,cache=none,discard=unmap" \
        "$@" <&"$guest_in" >>"$guest_console" 2>&1 &
    guest_pid=$!
}

guest_expect() {
    # tail ends with the guest, grep with the first match.
    if ! timeout "$2" grep -q -F -m 1 -e "$1" \
        < <(exec tail -n +1 -f --pid="$guest_pid" "$guest_console" 2>/dev/null); then
        echo "The guest ended, or $2 s passed, before it said \"$1\". Its last words:" >&2
        tail -n 20 "$guest_console" >&2
        return 1
    fi
}

guest_say() {
    echo "$1" >&"$guest_in"
}

guest_wait() {
    if ! timeout "$1" tail -f --pid="$guest_pid" /dev/null; then
        echo "The guest did not power off within $1 s." >&2
        return 1
    fi
    wait "$guest_pid" || true
    guest_pid=
    exec {guest_in}>&-
}

guest_kill() {
    [ -n "$guest_pid" ] || return 0
    kill -9 "$guest_pid" 2>/dev/null || true
    wait "$guest_pid" 2>/dev/null || true
    guest_pid=
    exec {guest_in}>&-
}
