#!/usr/bin/env bash
# A server that is killed under load has lost nothing that a flush or FUA covered, mixes nothing up,
# and the next one takes over at once; in every life a version is made, and each stays as it was.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy jq

if [ "${1-}" = --serve ]; then
    # One life of the server, for kill_under_load.py: this process becomes it.
    rm -f "$2/server.socket"
    trap - EXIT
    rm -r "$tmp"
    TPLSTORE_STORE=$2/store
    {
        # Its father kills the server under load; here we wait until it serves.
        await 30 test -S "$2/server.socket" || exit
        # Versions are made while nobody writes, so that we know what must be in them.
        # Its father had the disk when the last server was killed, and comes as another VM.
        if [ "$(tplstore lock show vm1 --json | jq -r .state)" = crashed ]; then
            tplstore lock break vm1 --epoch "$(tplstore lock show vm1 --json | jq .epoch)" --yes || exit
        fi >>"$2/break.out"
        number=$(tplstore volume show vm1 --json | jq .current_version)
        nbdcopy "nbd+unix:///vm1?socket=$2/server.socket" - | sha256sum >"$2/sum-$number"
        tplstore version create vm1 >>"$2/versions.out" || exit
        echo
    } &
    exec env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"} \
        nbdkit --foreground --unix "$2/server.socket" "$TPLSTORE_PLUGIN" "$2/store" \
        >/dev/null 2>>"$2/server.log"
fi

# A sanitizer looks for something else than what is lost.
kills=${KILLS-$([ -z "$TPLSTORE_PRELOAD" ] && echo 12 || echo 4)}
new_store
tplstore volume create vm1 --size 24M

$python "$(dirname "$0")/kill_under_load.py" "$(uri vm1)" "$kills" "$0" --serve "$tmp"

serve
checked=0
for sum in "$tmp"/sum-*; do
    number=${sum##*-}
    nbdcopy "$(uri "vm1@$number")" - | sha256sum | cmp - "$sum" || fail "version $number changed"
    checked=$((checked + 1))
done
[ $checked -gt "$kills" ] || fail "only $checked versions were made"
echo "$checked versions are as they were; $(grep -c -i 'recover' "$tmp/server.log") recoveries in the log"
stop_nbdkit
