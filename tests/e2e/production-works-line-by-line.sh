#!/usr/bin/env bash
# What examples/production.md says does what it says when it is typed, under a systemd and a libvirt of
# its own, in a copy of this system that is gone afterwards. In place of packages what was built is
# installed, and libvirt, qemu and the others are those that this system has; with TPLSTORE_PACKAGES, the
# folder of tests/package.sh, packages are installed as it is typed. The VMs have no Debian, but a disk
# that boots into counting on itself.
. "$(dirname "$0")/../functions.sh"
requires root unshare cmake jq libvirtd virsh qemu-system-x86_64 qemu-img systemd-sysusers python-libnbd
[ -e /lib/systemd/systemd ] || skip "systemd is not installed"

mkdir "$tmp/work" "$tmp/copy"
sed -n 's/^    //p' "$checkout/examples/production.md" >"$tmp/work/shown"
for what in "^apt install" "^    virsh start" "^tplstore version rollback" "^    tplstore volume import" \
    "^systemctl start tplstore-backup@" "^systemctl enable --now tplstore-metrics@"; do
    grep -q -e "$what" "$tmp/work/shown" || fail "production.md does not show $what where it is looked for"
done

# What boots counts 18 times a second in sector 2048, from what it finds there, until that fails.
$python - "$tmp/work/image.raw" <<'END'
import os, struct, sys
code = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # flat segments, a stack
    "8816007e"                          # the disk's number, kept at 7e00
    "be607c b442 cd13"                  # read the sector to 8000
    "66ff060080"                        # again: count
    "8a16007e be607c b80043 cd13"       # write it
    "7204"                              # failed: the end
    "fb f4 ebe9"                        # wait for a tick; again
    "fa f4 ebfc")                       # the end: stand still
packet = struct.pack("<BBHHHQ", 16, 0, 1, 0x8000, 0, 2048)
sector = code.ljust(0x60, b"\x90") + packet
with open(sys.argv[1], "wb") as image:
    image.write(sector.ljust(510, b"\0") + b"\x55\xaa")
    image.seek(4 << 20)
    image.write(os.urandom(2 << 20))
    image.truncate(16 << 20)
END
qemu-img convert -O qcow2 "$tmp/work/image.raw" "$tmp/work/debian12.qcow2"

# shellcheck disable=SC2016
# What is typed is this with what has to be looked at, and waited for, in between.
sed -e 's/^    virsh start \$vm$/&\n    counts $vm/' \
    -e 's/^virsh start web$/&\ncounts web/' \
    -e 's/^tplstore version rollback.*/&\nsame_disks web web@before-upgrade/' \
    -e 's/^    tplstore volume import web -$/&\nsame_disks web "-s \/backup\/main web@1"/' \
    -e 's/--size 20G/--size 24M/' -e 's/ 30G / 32M /' -e "s/<domain type='kvm'/<domain type='qemu'/" \
    "$tmp/work/shown" >"$tmp/work/typed"
equals "what is looked at" "$(grep -c -E '^ *(counts|same_disks) ' "$tmp/work/typed")" 5

cat >"$tmp/work/before" <<'END'
fail() { echo "FAILED: $*" >&2; exit 1; }
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}
count() {
    nbdsh -u "nbd+unix:///$1@current?socket=/run/tplstore/main.sock" \
        -c 'print(int.from_bytes(h.pread(4, 2048 * 512), "little"))'
}
has_count() { before=$(count "$1" 2>/dev/null); }
is_beyond() { [ "$(count "$1")" -gt "$2" ]; }
# counts VM: it runs, and its disk takes what it writes. It must be there, when its server is new.
counts() {
    local before
    await 60 has_count "$1" || fail "$1 cannot be read"
    await 60 is_beyond "$1" "$before" || fail "$1 does not write"
}
sum() { tplstore "${@:1:$#-1}" volume export "${@: -1}" - | sha256sum; }
# shellcheck disable=SC2086
same_disks() {
    [ "$(sum $1)" = "$(sum $2)" ] || fail "$1 is not $2"
}
if ls ./*.deb >/dev/null 2>&1; then
    # There is no network here, and nobody who answers.
    mv archives/*.deb /var/cache/apt/archives/
    printf '%s\n' 'APT::Get::Assume-Yes "true";' 'Dpkg::Options { "--force-confold"; };' \
        >/etc/apt/apt.conf.d/90nobody-answers
    export DEBIAN_FRONTEND=noninteractive
else
    apt() {
        echo "SKIPPED: apt $1: without TPLSTORE_PACKAGES what was built is installed"
        [ ! -e /usr/lib/systemd/system/tplstore@.service ] || {
            systemctl restart tplstore@main.service
            return
        }
        cmake --install "$build" --prefix /usr >install.log
        systemd-sysusers
        systemd-tmpfiles --create tplstore.conf
        systemctl daemon-reload
    }
fi
# What the other packages have, and what nothing here confines.
mkdir -p /var/lib/prometheus/node-exporter /etc/apparmor.d/local/abstractions
END

cat >"$tmp/work/behind" <<'END'
for vm in web db mail; do counts $vm; done
[ "$(tplstore volume list --json | jq -c 'map(.attached)')" = "[true,true,true]" ] || fail "not all VMs run"
grown=$(virsh qemu-monitor-command db '{"execute": "query-block"}' |
    jq '.return[0].inserted.image["virtual-size"]')
[ "$grown" = $((32 << 20)) ] || fail "db's VM sees $grown bytes"
# Another night.
systemctl start tplstore-backup@{web,db,mail}.service
last() { tplstore $1 version list $2 --json | jq 'map(select(.current | not))[-1].number'; }
for vm in web db mail; do
    there=$(last "-s /backup/main" $vm)
    [ "$there" -ge 2 ] || fail "nothing new was sent of $vm"
    same_disks "$vm@$(last "" $vm)" "-s /backup/main $vm@$there"
done
[ "$(tplstore volume show web --json | jq -r .template)" = debian12 ] || fail "web has lost its template"
[ "$(tplstore volume show web --json | jq .unique_bytes)" -lt 1000000 ] || fail "web has all of its template"
# What timers start.
systemctl start tplstore-metrics@main.service tplstore-prune@main.service
grep -q '^tplstore_requests_total{.*volume="web"' /var/lib/prometheus/node-exporter/tplstore-main.prom ||
    fail "nothing is counted of web"
for timer in tplstore-{metrics,prune}@main tplstore-backup@{web,db,mail}; do
    systemctl is-active --quiet $timer.timer || fail "$timer.timer does not run"
done
[ -z "$(find /var/lib/tplstore/main ! -user tplstore)" ] || fail "not all is the server's"
failed=$(systemctl list-units --failed --plain --no-legend 'tplstore*')
[ -z "$failed" ] || fail "these units have failed: $failed"
errors=$(journalctl --no-pager -q -p err -u 'tplstore*' || true)
[ -z "$errors" ] || fail "these are no errors: $errors"
END

cat >"$tmp/work/run" <<END
#!/bin/bash
set -euo pipefail
export build=$(dirname "$(dirname "$TPLSTORE")") HOME=/root LC_ALL=C
cd $tmp/work
getent group kvm || groupadd --system kvm
getent passwd libvirt-qemu || useradd --system --gid kvm --home-dir /var/lib/libvirt libvirt-qemu
getent group libvirt-qemu || groupadd --system libvirt-qemu
ls ./*.deb >/dev/null 2>&1 || libvirtd --daemon
trap 'status=\$?; set +x; [ \$status = 0 ] || tail -n 20 /var/log/libvirt/qemu/*.log; journalctl --no-pager -q -n 40 -u "tplstore*"
virsh list --name | while read -r vm; do [ -z "\$vm" ] || virsh destroy "\$vm"; done' EXIT
. ./before
set -x
. ./typed
. ./behind
END
chmod 755 "$tmp" "$tmp/work/run"
if [ -n "${TPLSTORE_PACKAGES-}" ]; then
    cp "$TPLSTORE_PACKAGES"/*.deb "$tmp/work/"
    mkdir -p "$tmp/work/archives/partial"
    sed -n '/^apt install/,/[^\\]$/p;/[^\\]$/q' "$tmp/work/shown" >"$tmp/work/fetch"
    (
        cd "$tmp/work"
        apt() { apt-get -qq -y --download-only -o Dir::Cache::archives="$tmp/work/archives" "$@"; }
        . ./fetch
    ) >"$tmp/fetched.log" 2>&1 || fail "the packages that production.md wants cannot be had"
fi

# Of services only what systemd itself wants is started. libvirt's may be there without its units.
cat >"$tmp/enter" <<'END'
#!/bin/bash
set -euo pipefail
copy=$1 checkout=$2 work=$3
mount -t tmpfs tmpfs "$copy"
mkdir "$copy"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$copy/upper,workdir=$copy/work" "$copy/root"
cd "$copy/root"
rm -rf etc/systemd/system/*.{wants,requires} etc/libvirt/qemu usr/sbin/policy-rc.d backup
mkdir -p etc/libvirt
printf '%s\n' 'cgroup_controllers = []' 'namespaces = []' 'stdio_handler = "file"' >etc/libvirt/qemu.conf
exec "$checkout/tests/in-a-container.sh" "$copy/root" "$work/run"
END
chmod +x "$tmp/enter"
unshare --mount --net --propagation private true 2>/dev/null || skip "no namespaces here"
unshare --mount --net --propagation private "$tmp/enter" "$tmp/copy" "$checkout" "$tmp/work" >"$tmp/typed.log" 2>&1 ||
    fail "what production.md says fails"
grep -h "^SKIPPED" "$tmp/typed.log" | head -n 1 || true
