#!/usr/bin/env bash
# Makes a small Debian guest: examples/make-guest.sh OUTDIR [PACKAGE...]
#
# Afterwards OUTDIR has
#   disk.raw   an ext4 file system with Debian (systemd, udev), 1 GiB, sparse
#   vmlinuz    Debian's kernel for virtual machines
#   initrd     loads the virtio disk's and ext4's modules and mounts the root file system
#   version    which version of this script made them; with it there, nothing is done
# and the guest has the packages that are named.
#
# The guest talks on its serial line: it says "GUEST up, marker: TEXT" and takes the lines
# "write TEXT" (keeps TEXT in /marker; answers "GUEST wrote TEXT"), "run COMMAND" (starts it, and
# what it prints is on the line too) and "poweroff".
# guest.sh has the functions to boot it and to talk with it.
#
# The guest is of the Debian release that this host is of, since the kernel comes from the host's
# own package lists. Takes half a minute and about 100 MB of downloads from Debian's package registry.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=SCRIPTDIR/packages.sh
. "$here/packages.sh"

[ $# -ge 1 ] || { echo "usage: $0 OUTDIR [PACKAGE...]" >&2; exit 2; }
mkdir -p "$1"
outdir=$(cd "$1" && pwd)
packages=("${@:2}")
version=$(sha256sum <"${BASH_SOURCE[0]}")
version="${version%% *}${packages[*]+ ${packages[*]}}"

exec {lock}>"$outdir/lock"
flock "$lock"  # two at once would both work for half a minute
[ "$(cat "$outdir/version" 2>/dev/null)" != "$version" ] || exit 0

install_packages guest
unset TMPDIR  # the work needs room and a file system with device nodes
work=$(mktemp -d /var/tmp/tplstore-guest-XXXXXX)
trap 'as_root rm -rf "$work"' EXIT
chmod 755 "$work"
root=$work/root

echo "Installing Debian into a folder (half a minute)"
suite=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
[ -n "$suite" ] || { echo "/etc/os-release names no release of Debian" >&2; exit 1; }
# shellcheck disable=SC2016  # they are apt's variables
mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
    sed -n "s/^Debian $suite //p" | head -n 1)
as_root mmdebstrap --quiet --variant=minbase --include=systemd-sysv,udev,kmod "${packages[@]/#/--include=}" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$root" ${mirror:+"$mirror"} >"$work/log" 2>&1 </dev/null ||
    { tail -n 30 "$work/log" >&2; exit 1; }

as_root tee "$root/usr/local/sbin/talk" >/dev/null <<'END'
#!/bin/sh
stty -echo
echo "GUEST up, marker: $(cat /marker 2>/dev/null || echo none)"
while read -r verb text; do
    case $verb in
    write)
        echo "$text" >/marker.new && sync /marker.new && mv /marker.new /marker && sync
        echo "GUEST wrote $text" ;;
    run)
        sh -c "$text" </dev/null 2>&1 & ;;
    poweroff)
        systemctl poweroff 2>/dev/null ;;
    esac
done
END
as_root chmod 755 "$root/usr/local/sbin/talk"
as_root tee "$root/etc/systemd/system/talk.service" >/dev/null <<'END'
[Unit]
Description=Talks to the host on the serial line

[Service]
ExecStart=/usr/local/sbin/talk
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/ttyS0

[Install]
WantedBy=multi-user.target
END
as_root ln -s ../talk.service "$root/etc/systemd/system/multi-user.target.wants/talk.service"
as_root ln -s /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
echo "/dev/vda / ext4 defaults,discard 0 1" | as_root tee "$root/etc/fstab" >/dev/null
echo "guest" | as_root tee "$root/etc/hostname" >/dev/null

echo "Fetching a kernel"
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/ *Depends: //p' | head -n 1)
(cd "$work" && apt-get -q download "$kernel" >"$work/log" 2>&1) ||
    { tail -n 30 "$work/log" >&2; exit 1; }
dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
# In /lib until Debian 12, in /usr/lib from 13 on.
shopt -s nullglob
modules=("$work"/kernel/{,usr/}lib/modules/*)
shopt -u nullglob
if [ ${#modules[@]} != 1 ]; then
    echo "The package $kernel has its modules in a place where they are not looked for." >&2
    exit 1
fi
release=$(basename "${modules[0]}")
# They go into the guest too, for whoever wants to try more in it.
as_root mkdir -p "$root/usr/lib/modules"
as_root cp -a "${modules[0]}" "$root/usr/lib/modules/"
as_root depmod -b "$root" "$release"

mkdir -p "$work/initrd"/{bin,dev,proc,sys,root}
cp /bin/busybox "$work/initrd/bin/busybox"
loads=
# Loads a module after those that it needs; one that is built into the kernel has no file.
for wanted in virtio_pci virtio_blk ext4; do
    while read -r verb file _; do
        [ "$verb" = insmod ] || continue
        module=$(basename "$file")
        module=${module%%.ko*}.ko
        [ ! -e "$work/initrd/$module" ] || continue
        case $file in
        *.xz) busybox xzcat "$file" >"$work/initrd/$module" ;;
        *) cp "$file" "$work/initrd/$module" ;;
        esac
        loads+="insmod /$module"$'\n'
    done < <(/sbin/modprobe -d "$root" -S "$release" --show-depends "$wanted")
done
cat >"$work/initrd/init" <<END
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
${loads}
mount -t ext4 -o rw /dev/vda /root || poweroff -f
umount /proc
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
END
chmod 755 "$work/initrd/init"
(cd "$work/initrd" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd.gz"

echo "Making a disk image of it"
as_root mke2fs -q -t ext4 -L guest -d "$root" "$work/disk.raw" 1G >"$work/log"
as_root chown "$(id -u):$(id -g)" "$work/disk.raw"

cp --sparse=always "$work/disk.raw" "$outdir/disk.raw"
cp "$work/kernel/boot/vmlinuz-$release" "$outdir/vmlinuz"
cp "$work/initrd.gz" "$outdir/initrd"
echo "$version" >"$outdir/version"
