#!/usr/bin/env bash
# The recipe of tplstore(1), backups over ssh every night and a restore, as it stands there, with a
# pipe for ssh: what comes back is what was there, linked to the template; a night whose connection
# dies changes nothing over there, and the next one goes on.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq

mkdir "$tmp/bin"
ln -s "$TPLSTORE" "$tmp/bin/tplstore"
# It runs the command here; what an import is sent ends after $DIES_AFTER bytes, if that is set.
cat >"$tmp/bin/ssh" <<'END_OF_SSH'
#!/usr/bin/env bash
shift
if [[ "$*" == *import* && -n "${DIES_AFTER-}" ]]; then
    head -c "$DIES_AFTER" | bash -c "$*"
    exit 255
fi
exec bash -c "$*"
END_OF_SSH
chmod +x "$tmp/bin/ssh"
export PATH=$tmp/bin:$PATH
unset -f tplstore

# The example of the manual that has this in it, as a script.
example() {
    awk -v wanted="$1" '
        /^\.Bd / { text = ""; inside = 1; next }
        /^\.Ed/ { if (index(text, wanted)) printf "%s", text; inside = 0 }
        inside { text = text $0 "\n" }' "$checkout/tools/tplstore.1" |
        sed -e 's/\\(dq/"/g' -e "s/\\\\(aq/'/g" -e 's/\\e/\\/g' -e "s|/backup|$tmp/backup|g"
}
example "there volume import" >"$tmp/night"
example "vm1-restored" >"$tmp/restore"
[ -s "$tmp/night" ] && [ -s "$tmp/restore" ] || fail "the manual has no such recipe"
night() {
    bash "$tmp/night" >"$tmp/night.out" 2>&1
}
# write SEED: data, zeroes and trims here and there, while the volume is in use.
write() {
    $python - "$(uri vm1)" "$1" <<'END_OF_PYTHON'
import nbd, random, sys
chance = random.Random(sys.argv[2])
client = nbd.NBD()
client.connect_uri(sys.argv[1])
for _ in range(40):
    length = chance.randrange(1, 20000)
    offset = chance.randrange(client.get_size() - length)
    chance.choice([lambda: client.pwrite(chance.randbytes(length), offset),
                   lambda: client.zero(length, offset), lambda: client.trim(length, offset)])()
client.flush()
client.shutdown()
END_OF_PYTHON
}
raw_of() {
    tplstore -s "$1" volume export "$2" - | sha256sum
}
times() {
    tplstore -s "$1" version list "$2" --json | jq -c 'map(select(.current | not) | [.origin, .created])'
}

make_image "$tmp/image.raw" 24
new_store
tplstore template import golden "$tmp/image.raw"
for name in vm1 idle1 idle2; do tplstore volume create $name --template golden --size 32M; done
tplstore init "$tmp/backup"
tplstore -s "$tmp/backup" template import known-otherwise "$tmp/image.raw"
serve

# Two nights, the VM being there; its first version is what it had changed in its template.
write 1
night || fail "the first night: $(cat "$tmp/night.out")"
write 2
start_client read "$(uri vm1)"
night || fail "the second night: $(cat "$tmp/night.out")"
kill -9 "$client"
await 20 is_free vm1
equals "what was taken" "$(raw_of "$tmp/backup" vm1@2)" "$(raw_of "$store" vm1@2)"
equals "its time" "$(times "$tmp/backup" vm1 | jq -c '.[-1]')" "$(times "$store" vm1 | jq -c '.[1]')"

bash "$tmp/restore" || fail "the restore"
equals "what came back" "$(raw_of "$store" vm1-restored)" "$(raw_of "$store" vm1@2)"
equals "its template" "$(tplstore volume show vm1-restored --json | jq -r .template)" golden
[ "$(tplstore volume show vm1-restored --json | jq .unique_bytes)" -lt $((4 << 20)) ] ||
    fail "the restored volume has the template's data"

# The connection dies while a version is sent, before it and behind it.
before=$(times "$tmp/backup" vm1)$(raw_of "$tmp/backup" vm1)
for bytes in 0 100 20000; do
    write "$bytes"
    ! DIES_AFTER=$bytes night || fail "nobody noticed that the connection died after $bytes bytes"
    equals "after $bytes bytes" "$(times "$tmp/backup" vm1)$(raw_of "$tmp/backup" vm1)" "$before"
done
night || fail "the next night: $(cat "$tmp/night.out")"
last=$(tplstore version list vm1 --json | jq '.[-2].number')
equals "the next night" "$(raw_of "$tmp/backup" vm1)" "$(raw_of "$store" "vm1@$last")"

# What was never written costs nothing, here or there.
for name in idle1 idle2; do
    tplstore version create $name
    tplstore volume export $name@1 "$tmp/$name.inc" --since template
    [ "$(stat -c %s "$tmp/$name.inc")" -lt $((1 << 20)) ] || fail "$name.inc is large"
    tplstore -s "$tmp/backup" volume import $name - <"$tmp/$name.inc"
    equals "$name" "$(raw_of "$tmp/backup" "$name@1")" "$(raw_of "$store" "$name@1")"
    tplstore -s "$tmp/backup" volume show $name --json >"$tmp/show"
    equals "$name's template" "$(jq -r .template "$tmp/show")" known-otherwise
    [ "$(jq .unique_bytes "$tmp/show")" -lt $((1 << 20)) ] || fail "$name occupies much"
done
equals "volumes over there" "$(find "$tmp/backup/volumes" -mindepth 1 -maxdepth 1 | wc -l)" 3
