#!/usr/bin/env bash
# What is installed for systemd is sound, and does what it says: as the service's user, in a store that
# root made, at a socket that was opened before. Installed where any user may, which works too.
. "$(dirname "$0")/../functions.sh"
requires root cmake setpriv nbdinfo nbdcopy jq systemd-analyze systemd-socket-activate

build=$(dirname "$(dirname "$TPLSTORE")")
prefix=$tmp/prefix
cmake --install "$build" --prefix "$prefix" >"$tmp/install.log"
chmod 755 "$tmp"
TPLSTORE=$prefix/bin/tplstore
units=$prefix/lib/systemd/system
export SYSTEMD_UNIT_PATH=$units:

for unit in tplstore@main.{socket,service} tplstore-{prune,metrics}@main.{service,timer}; do
    SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no "$unit" >"$tmp/verify" 2>&1 || true
    ! grep -F -e "$units" -e tplstore "$tmp/verify" || fail "$unit: $(cat "$tmp/verify")"
done
for service in "$units"/*.service; do
    systemd-analyze security --offline=true --threshold=20 "$service" >"$tmp/security.log" ||
        fail "$service is more exposed than 2.0"
done

# The user, and the folders: what there is of both in an empty system.
mkdir -p "$tmp/root/etc"
systemd-sysusers --root="$tmp/root" "$prefix/lib/sysusers.d/tplstore.conf"
systemd-tmpfiles --root="$tmp/root" --create "$prefix/lib/tmpfiles.d/tplstore.conf"
grep -q "^kvm:" "$tmp/root/etc/group" || fail "no group kvm"
IFS=: read -r _ _ user group _ < <(grep ^tplstore: "$tmp/root/etc/passwd") || fail "no user tplstore"
for folder in run/tplstore var/lib/tplstore; do
    equals "$folder" "$(stat -c %u:%g:%a "$tmp/root/$folder")" "$user:$group:755"
done

# ofunit UNIT KEY: its last value, with the instance "main" in it.
of_unit() {
    sed -n "s/^$2=//p" "$units/$1" | tail -n 1 | sed 's/%i/main/g'
}
# run_unit UNIT COMMAND...: as the unit's user, with what it sets for the store "main".
run_unit() {
    local unit=$1
    shift
    eval "env -u TPLSTORE_PLUGIN -u TPLSTORE_STORE $(sed -n "s/^Environment=//p" "$units/$unit" |
        tr '\n' ' ' | sed 's/%i/main/g') XDG_RUNTIME_DIR=$tmp/run TPLSTORE_STORE=$store" \
        setpriv --reuid="$user" --regid="$group" --clear-groups -- '"$@"'
}
equals "where its store is" "$(sed -n 's/^Environment=TPLSTORE_STORE=//p' "$units/tplstore@.service")" \
    /var/lib/tplstore/%i

# As the manual says it: root makes a store, and more, in a folder of that user.
for folder in "$store" "$tmp/run" "$tmp/state" "$tmp/ssd"; do
    install -d -o "$user" -g "$group" -m 750 "$folder"
done
export TPLSTORE_TIER_STATE=$tmp/state/table
tplstore init "$store"
make_image "$tmp/image.raw" 4
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
tplstore tier add "$tmp/ssd" --weight 64M
others=$(find "$store" "$tmp/state" "$tmp/ssd" ! \( -uid "$user" -gid "$group" \))
[ -z "$others" ] || fail "these are not the service's: $others"

read -r -a start < <(of_unit tplstore@.service ExecStart | sed 's/ \$.*//')
uri="nbd+unix:///vm1?socket=$tmp/run/main.sock"
# Its number, which is not that of the job.
service_pid() {
    tplstore stats --json | jq .servers[0].pid
}
# start_service: it starts when somebody comes; what it says goes to a journal, for what it can tell.
start_service() {
    local journal=$tmp/server.log
    : >>"$journal"
    rm -f "$tmp/run/main.sock"
    # shellcheck disable=SC2094
    JOURNAL_STREAM=$(stat -c %d:%i "$journal") run_unit tplstore@.service \
        systemd-socket-activate --listen "$tmp/run/main.sock" --setenv TPLSTORE_STORE \
        --setenv TPLSTORE_TIER_STATE --setenv XDG_RUNTIME_DIR --setenv PATH \
        --setenv JOURNAL_STREAM "${start[@]}" >>"$journal" 2>&1 &
    server=$!
    await 10 test -S "$tmp/run/main.sock" || fail "no socket"
}
start_service
nbdcopy "$uri" "$tmp/copy"
same "$tmp/copy" "$tmp/image.raw"
pid=$(service_pid)
on_exit kill -9 "$pid"
equals "user" "$(stat -c %u "/proc/$pid")" "$user"
grep -q "$prefix/.*/nbdkit-tplstore-plugin.so" "/proc/$pid/maps" ||
    fail "it is not the installed plugin that serves"
tplstore version create vm1
tplstore version create vm1
nbdcopy "$tmp/image.raw" "$uri"

# It dies with a VM. For who looks for errors there is nothing to see.
start_client write "$uri"
kill -9 "$pid"
wait $server 2>/dev/null || true
kill -9 "$client"
start_service
nbdcopy "$uri" "$tmp/copy"
on_exit kill -9 "$(service_pid)"
grep -q "^<5>.*recovered" "$tmp/server.log" || fail "nothing is said of a recovery"
grep -q "^<5>.*taking over" "$tmp/server.log" || fail "nothing is said of a take-over"
! nbdinfo "${uri/vm1/missing}" 2>/dev/null || fail "there is no such volume"
grep -q "^<4>.*missing" "$tmp/server.log" || fail "nothing is said of what is not there"
! grep -E "^<[0-3]>|tplstore: .*error" "$tmp/server.log" || fail "these are no errors"

# What the timer does, and the end.
read -r -a prune < <(of_unit tplstore-prune@.service ExecStart | sed 's/ \$.*//')
run_unit tplstore-prune@.service "${prune[@]}" --keep-last 1 >"$tmp/pruned"
equals "versions" "$(tplstore version list vm1 --json | jq -c 'map(.number)')" "[2,3]"
pid=$(service_pid)
read -r -a stop < <(of_unit tplstore@.service ExecStop | sed "s/\${MAINPID}/$pid/")
# Its configuration has been given another store since, which is not there yet.
store=$store.new run_unit tplstore@.service "${stop[@]}" >"$tmp/stop.log"
grep -q "server $pid: stopped" "$tmp/stop.log" || fail "it stopped something else"
wait $server || fail "the server ended with $?"
others=$(find "$store" "$tmp/state" "$tmp/ssd" ! \( -uid "$user" -gid "$group" \))
[ -z "$others" ] || fail "these are not the service's: $others"
# That it cannot start is an error.
mv "$store" "$store.away"
start_service
nbdinfo "$uri" 2>/dev/null || true
! wait $server || fail "it serves nothing"
grep -q "^<3>.*$store" "$tmp/server.log" || fail "it does not say why it cannot start"
