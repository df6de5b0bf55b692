#!/usr/bin/env bash
# nbdkit can say what the plugin is and was built with, without a store; the exports are listed with
# descriptions.
. "$(dirname "$0")/../functions.sh"
requires nbdinfo jq python3

preload=(env ${TPLSTORE_PRELOAD:+"LD_PRELOAD=$TPLSTORE_PRELOAD"})
"${preload[@]}" nbdkit --dump-plugin "$TPLSTORE_PLUGIN" >"$tmp/dump"
for line in name=tplstore thread_model=parallel 'version=[0-9]' 'tplstore_.*=.'; do
    grep -q "^$line" "$tmp/dump" || fail "--dump-plugin has no $line: $(cat "$tmp/dump")"
done
"${preload[@]}" nbdkit --help "$TPLSTORE_PLUGIN" >"$tmp/help"
grep -q "boot\|io=" "$tmp/help" || fail "--help does not name the parameters"

make_image "$tmp/image.raw" 4
new_store
tplstore template import golden "$tmp/image.raw"
tplstore volume create vm1 --template golden
tplstore volume create vm2 --size 1G
tplstore version create vm1
tplstore version create vm1 --name clean
serve
nbdinfo --list --json "nbd+unix:///?socket=$tmp/server.socket" >"$tmp/list"
names=$(jq -r '.exports[]."export-name"' "$tmp/list" | sort | tr '\n' ' ')
for name in vm1@current vm2@current vm1@1 template/golden; do
    [[ " $names" == *" $name "* ]] || fail "no $name among the exports: $names"
done
[[ " $names" == *" vm1@2 "* || " $names" == *" vm1@clean "* ]] || fail "no second version: $names"
jq -e 'all(.exports[]; .description | length > 0)' "$tmp/list" >/dev/null ||
    fail "an export has no description: $(cat "$tmp/list")"
jq -e '.exports[] | select(."export-name" == "vm1@current").is_read_only' "$tmp/list" >/dev/null
jq -e '.exports[] | select(."export-name" == "vm1@1").is_read_only' "$tmp/list" >/dev/null
jq -e '.exports[] | select(."export-name" == "template/golden").is_read_only' "$tmp/list" >/dev/null
jq -e '.exports[] | select(."export-name" == "vm1@current").description | contains("write as vm1")' "$tmp/list" >/dev/null
nbdinfo --json "$(uri vm1)" | jq -e '.exports[0].is_read_only == false' >/dev/null
equals "size of vm2" "$(nbdinfo --size "$(uri vm2)")" $((1 << 30))
stop_nbdkit

# Wrong parameters end nbdkit at once with a message.
wrong() {
    ! "${preload[@]}" nbdkit --foreground --unix "$tmp/wrong.socket" "$TPLSTORE_PLUGIN" "$@" \
        >"$tmp/wrong.out" 2>&1 </dev/null || fail "nbdkit took $*"
    grep -q "error: .*$pattern" "$tmp/wrong.out" || fail "no clear error for $*: $(cat "$tmp/wrong.out")"
}
pattern="$tmp/nowhere" wrong "$tmp/nowhere"
pattern="io" wrong "$store" io=sideways
pattern="nonsense" wrong "$store" nonsense=1
pattern="map-cache" wrong "$store" map-cache=lots
pattern="" wrong
