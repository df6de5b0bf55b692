#!/usr/bin/env bash
# Boots a Debian that is in a folder, with its own systemd, in namespaces of its own, runs a command in
# it and ends it with that one's status: in-a-container.sh FOLDER COMMAND. As root. FOLDER is of a
# distribution with systemd; what the command prints is printed here.
set -euo pipefail
root=$1
command=$2

cat >"$root/etc/systemd/system/the-command.service" <<UNIT
[Service]
Type=oneshot
ExecStart=$command
StandardOutput=append:/the-command.log
StandardError=inherit
# Its status is what becomes of all this.
ExecStopPost=/bin/sh -c 'echo "\$\$EXIT_STATUS" >/the-command.status; systemctl --force poweroff'

[Unit]
After=multi-user.target
UNIT
mkdir -p "$root/etc/systemd/system/default.target.wants"
ln -sf multi-user.target "$root/etc/systemd/system/default.target"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../the-command.service "$root/etc/systemd/system/multi-user.target.wants/"
sed -i '/^After=multi-user.target/d' "$root/etc/systemd/system/the-command.service"
[ -s "$root/etc/machine-id" ] || tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
rm -f "$root/the-command.status" "$root/the-command.log"
: >"$root/the-command.log"

# shellcheck disable=SC2016
timeout 600 unshare --mount --pid --fork --uts --ipc --cgroup --propagation private --kill-child sh -ec '
    cd "$0"
    mount --bind . . && cd "$0"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    for device in null zero full random urandom tty; do
        touch dev/$device && mount --bind /dev/$device dev/$device
    done
    mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    mount -t tmpfs tmpfs dev/shm
    hostname in-a-container
    mkdir -p .old && pivot_root . .old && umount -l .old
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
        --show-status=no --log-target=journal' "$root" >/dev/null 2>&1 </dev/null || true
cat "$root/the-command.log"
status=$(cat "$root/the-command.status" 2>/dev/null || echo "it was not run")
[ "$status" = 0 ] || { echo "$command in a container: $status" >&2; exit 1; }
