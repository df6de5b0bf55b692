#!/usr/bin/env bash
# Builds and tests everything, as CI does: tests/run.sh [PRESET...] [CTEST-OPTION...]
#
#   tests/run.sh                     presets dev, tsan and release
#   tests/run.sh release             only that one
#   tests/run.sh dev -R unaligned    of that one the tests whose names match
#
# Runs on a bare Debian 12 or 13 as root or with sudo, and needs no network but Debian's packages. Ends
# with ctest's summary; the status is not 0 when anything failed.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$checkout"
# shellcheck source=SCRIPTDIR/../examples/packages.sh
. examples/packages.sh

presets=()
while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    presets+=("$1")
    shift
done
[ ${#presets[@]} -gt 0 ] || presets=(dev tsan release)

unset TMPDIR  # compilers and tests have better ideas
install_packages build run guest test
! command -v ccache >/dev/null || export CMAKE_CXX_COMPILER_LAUNCHER=ccache
# Debian 12 has it in one package with a server that nobody has asked for.
if ! command -v promtool >/dev/null; then
    mkdir -p build/promtool
    [ -e build/promtool/usr/bin/promtool ] || (
        cd build/promtool
        { apt-get -qq download promtool || apt-get -qq download prometheus; } 2>/dev/null
        dpkg -x ./*.deb .
    ) || echo "promtool cannot be had; alert rules are not tried"
    PATH=$checkout/build/promtool/usr/bin:$PATH
fi

# The tests of all presets in one tree, so that there is one run and one summary. Each preset's test
# files are copied with the preset put before the tests' names.
all=build/all
rm -rf "$all"
mkdir -p "$all"
for preset in "${presets[@]}"; do
    echo "== Building preset $preset"
    # A tree that was made here, and so is hardly one to develop in, is built in large pieces, and with
    # as much for debuggers as a sanitizer's report needs.
    pieces=()
    cache=build/$preset/CMakeCache.txt
    if [ ! -e "$cache" ] || grep -q '^CMAKE_UNITY_BUILD:.*=ON' "$cache"; then
        pieces=(-DCMAKE_UNITY_BUILD=ON "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1")
        ! command -v ld.lld >/dev/null || pieces+=(-DCMAKE_EXE_LINKER_FLAGS=-fuse-ld=lld)
    fi
    cmake --preset "$preset" -DTPLSTORE_WERROR=ON "${pieces[@]+"${pieces[@]}"}"
    cmake --build --preset "$preset"
    (cd "build/$preset" && find . -name CTestTestfile.cmake) | while read -r file; do
        mkdir -p "$all/$preset/$(dirname "$file")"
        sed -E "s/^(add_test|set_tests_properties)\((\[=*\[|\"|)/&$preset:/" \
            "build/$preset/$file" >"$all/$preset/$file"
    done
    echo "subdirs(\"$preset\")" >>"$all/CTestTestfile.cmake"
done
# What the command prints is the same in both; with sanitizers more is found on the way.
if [ -e "$all/dev" ] && [ -e "$all/release" ]; then
    : >"$all/release/tests/cli/CTestTestfile.cmake"
fi

# ThreadSanitizer does not start where the kernel spreads addresses wider than it knows.
launch=()
! setarch --addr-no-randomize true 2>/dev/null || launch=(setarch --addr-no-randomize)
# One more than there are processors: a third of the time tests wait, for clocks and for disks.
exec "${launch[@]+"${launch[@]}"}" \
    ctest --test-dir "$all" --output-on-failure --no-tests=error --parallel "$(($(nproc) + 1))" "$@"
