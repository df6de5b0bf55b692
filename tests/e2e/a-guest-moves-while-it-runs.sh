#!/usr/bin/env bash
# A guest that writes moves from one qemu to another and keeps all that was acknowledged, whoever is
# killed before or after; the source, and anybody else, writes nothing from then on; and a migration
# that is cancelled leaves the guest where it was. With ROUNDS=20 it moves 20 times each way.
. "$(dirname "$0")/../functions.sh"
requires qemu-system-x86_64 mmdebstrap e2fsck debugfs nbdcopy python-libnbd

guest=${XDG_CACHE_HOME:-$HOME/.cache}/tplstore/guest
"$checkout/examples/make-guest.sh" "$guest"
new_store
tplstore template import golden "$guest/disk.raw"
tplstore volume create vm1 --template golden
export tmp TPLSTORE TPLSTORE_PLUGIN TPLSTORE_PRELOAD
$python "$(dirname "$0")/live_migration.py" "$guest" "${ROUNDS:-0}"
