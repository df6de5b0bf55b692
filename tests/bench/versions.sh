#!/usr/bin/env bash
# What versions cost, beside qcow2 and nbdkit's own file plugin: tests/bench/versions.sh [OPTION...]
#
#   --case REGEX  only the cases whose names match
#   --quick       fewer versions, smaller disks: for trying, not for judging
#   --json FILE   where the results go (build/bench-versions.json)
#   --keep        keep the files
#
# What is to be compared runs alternately, on the same disk, with what is read in the page cache;
# the table has medians, and what is required. Ends with 1 when a requirement is missed. Takes about
# half an hour, and wants the machine for itself.
. "$(dirname "$0")/../functions.sh"

json=$checkout/build/bench-versions.json
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --case) arguments+=(--case "$2"); shift ;;
    --quick) arguments+=(--quick) ;;
    --json) json=$2; shift ;;
    --keep) export KEEP=1 ;;
    *) sed -n '2,/^#.*--keep/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
requires fio python-libnbd qemu-img qemu-nbd
mkdir -p "$(dirname "$json")"
: "${MAP_METADATA:=$checkout/build/release/tests/map_metadata}"

$python -B "$(dirname "$0")/versions.py" --tplstore "$TPLSTORE" --plugin "$TPLSTORE_PLUGIN" \
    --map-metadata "$MAP_METADATA" --directory "$tmp" --json "$json" \
    "${arguments[@]+"${arguments[@]}"}"
