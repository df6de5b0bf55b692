#!/usr/bin/env bash
# An import that is killed leaves nothing half visible, and the next one goes on with what is there.
. "$(dirname "$0")/../functions.sh"
requires python3 nbdcopy

size_mib=160
dd if=/dev/urandom of="$tmp/image.raw" bs=1M count=$size_mib status=none
new_store
serve

segments() {
    find "$store" -path "$store/segments/*" -type f | wc -l
}
has_segments() {
    [ "$(segments)" -ge "$1" ] || has_ended "$importer"
}

for round in 1 2 3; do
    # So slow that it cannot be done before it is killed.
    start_nbdkit source --filter=rate file "$tmp/image.raw" rate=400M
    before=$(segments)
    "$TPLSTORE" template import golden "$(uri "" source)" >"$tmp/import.log" 2>&1 &
    importer=$!
    await 60 has_segments $((before + 3)) || fail "no segment appeared"
    ! has_ended $importer || fail "the import ended too early: $(cat "$tmp/import.log")"
    kill -9 $importer
    wait $importer 2>/dev/null || true
    kill_nbdkit source
    echo "round $round: killed after $(segments) segments"
    [ "$(segments)" -gt "$before" ] || fail "no progress"
    [ "$(tplstore template list --json)" = "[]" ] || fail "half a template is listed"
    refuses "" nbdinfo "$(uri template/golden)"
    refuses "" tplstore volume create vm1 --template golden
done

# What was stored is used, not stored again.
find "$store/segments" -type f -printf '%i %P\n' | sort >"$tmp/before"
start_nbdkit source file "$tmp/image.raw"
tplstore template import golden "$(uri "" source)"
find "$store/segments" -type f -printf '%i %P\n' | sort >"$tmp/after"
[ -z "$(comm -23 "$tmp/before" "$tmp/after")" ] || fail "segments of the earlier imports were replaced"
# A few segments that were not full are all that may be there in addition.
stored_mib=$(($(du -s --block-size=1M "$store/segments" | cut -f1)))
[ $stored_mib -le $((size_mib + 24)) ] || fail "$stored_mib MiB are stored for $size_mib"
[ -z "$(ls "$store/imports" 2>/dev/null)" ] || fail "something is left of the imports"
nbdcopy "$(uri template/golden)" "$tmp/out.raw"
same "$tmp/out.raw" "$tmp/image.raw"

# Two at once store it once, but for what both are just storing.
dd if=/dev/urandom of="$tmp/other.raw" bs=1M count=96 status=none
before_mib=$(($(du -s --block-size=1M "$store/segments" | cut -f1)))
"$TPLSTORE" template import one "$tmp/other.raw" &
importer=$!
"$TPLSTORE" template import two "$tmp/other.raw"
wait $importer || fail "one of two imports at once failed"
added_mib=$(($(du -s --block-size=1M "$store/segments" | cut -f1) - before_mib))
[ $added_mib -le $((96 + 8)) ] || fail "$added_mib MiB are stored for 96"
tplstore template verify one
tplstore template verify two

# SIGTERM and SIGINT too end it without a trace of a template.
for signal in TERM INT; do
    start_nbdkit slow --filter=rate file "$tmp/image.raw" rate=100M
    # In a session of its own: a background job of a script has SIGINT ignored.
    setsid $python -c '
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
os.execv(sys.argv[1], sys.argv[1:])' "$TPLSTORE" template import again "$(uri "" slow)" \
        >"$tmp/import.log" 2>&1 &
    importer=$!
    await 60 test -e "$store/imports/again" || fail "the import does not begin"
    kill -$signal $importer
    wait_for_end $importer 10 || fail "the import does not end upon SIG$signal"
    ! wait $importer || fail "an interrupted import ended with 0"
    ! tplstore template list | grep -qw again || fail "half a template is listed"
    kill_nbdkit slow
done
stop_nbdkit
stop_nbdkit source
