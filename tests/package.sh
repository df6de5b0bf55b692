#!/usr/bin/env bash
# Builds the Debian packages of the commit that is checked out, as anybody would who has its archive:
# tests/package.sh [OUTDIR]
#
# Builds them twice, in two folders, and compares every byte; looks at them with lintian; installs them
# in a fresh system of this host's release (mmdebstrap) and runs debian/tests there. The packages go to
# OUTDIR (build/packages). By itself, and not in CI: it takes a quarter of an hour and network.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$checkout"
# shellcheck source=SCRIPTDIR/../examples/packages.sh
. examples/packages.sh
outdir=$(realpath -m "${1:-build/packages}")

unset TMPDIR
install_packages package build
work=$(mktemp -d /var/tmp/tplstore-package-XXXXXX)
chmod 755 "$work"
trap 'as_root rm -rf --one-file-system "$work"' EXIT

version=$(sed -n 's/^project(tplstore VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
if [ "$(dpkg-parsechangelog -S Version)" != "$version" ] || ! grep -q "^## $version" CHANGELOG.md; then
    echo "CMakeLists.txt has version $version; debian/changelog or CHANGELOG.md has another" >&2
    exit 1
fi

# build FOLDER: from an archive, with what differs from place to place.
build() {
    echo "== Building in $1"
    mkdir -p "$work/$1"
    git archive --prefix="$1/tplstore-$version/" HEAD | tar -x -C "$work"
    (
        cd "$work/$1/tplstore-$version"
        env -u CMAKE_CXX_COMPILER_LAUNCHER "${@:2}" dpkg-buildpackage --no-sign >"$work/build.log" 2>&1
    ) || { tail -n 40 "$work/build.log"; exit 1; }
}
build first
build in/another/place TZ=Asia/Kathmandu LC_ALL=C.UTF-8 DEB_BUILD_OPTIONS=parallel=1
for package in "$work"/first/*.deb "$work"/first/*.tar.xz "$work"/first/*.dsc; do
    cmp "$package" "$work/in/another/place/$(basename "$package")"
done
echo "Two builds, the same bytes:"
(cd "$work/first" && sha256sum ./*.deb)
mkdir -p "$outdir"
cp "$work"/first/*.{deb,dsc,tar.xz,changes,buildinfo} "$outdir"

echo "== Looking at them with lintian"
lintian --fail-on error,warning --tag-display-limit 0 "$work"/first/*.changes

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
echo "== Installing them in a fresh $suite"
depends=$(sed -n 's/^Depends: @, *//p' debian/tests/control | tr -d ' ' | tr '\n' ',')
as_root mmdebstrap --quiet --variant=minbase --include="nbdkit,$depends" "$suite" "$work/root" \
    >"$work/chroot.log" 2>&1 </dev/null || { tail -n 30 "$work/chroot.log"; exit 1; }
as_root mkdir "$work/root/packages"
as_root cp "$work"/first/{nbdkit-plugin-tplstore,tplstore}_*.deb "$work/root/packages"
as_root cp -r debian/tests "$work/root/packages"

# in_root COMMAND...: in that system, as root.
# shellcheck disable=SC2016
in_root() {
    as_root unshare --mount --propagation private sh -ec '
        mount -t proc proc "$0/proc"
        exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
            DEBIAN_FRONTEND=noninteractive "$@"' "$work/root" "$@" </dev/null
}
in_root sh -c 'apt-get -q update && apt-get -q -y install --no-install-recommends /packages/*.deb'
# shellcheck disable=SC2016
in_root sh -ec '
    getent passwd tplstore
    for folder in /run/tplstore /var/lib/tplstore; do
        test "$(stat -c %U:%G:%a $folder)" = tplstore:tplstore:755
    done
    systemd-analyze verify --man=no tplstore@main.service tplstore-prune@main.timer \
        tplstore-metrics@main.timer
    test -f /usr/share/bash-completion/completions/tplstore'
echo "== debian/tests/serve-a-store"
in_root runuser -u nobody -- /packages/tests/serve-a-store
echo "== debian/tests/service, with systemd"
as_root tests/in-a-container.sh "$work/root" /packages/tests/service
echo "== Removing them"
in_root apt-get -q -y purge tplstore nbdkit-plugin-tplstore
echo "ok: the packages are in $outdir"
