#!/usr/bin/env bash
# While a guest writes, reads and trims, versions are made and removed in any order: the guest reads
# what it wrote, every version keeps its bytes until it is removed, and in the end the files hold what
# the versions that are left need and nothing else.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd nbdcopy nbdinfo jq

seed=${SEED-$RANDOM}
echo "seed $seed"
RANDOM=$seed
new_store
tplstore volume create vm1 --size 24M
serve
folder=$store/volumes/$(tplstore volume show vm1 --json | jq -r .uuid)

# How many bytes of data an export has, and how many the data files of vm1 occupy.
data_bytes() {
    nbdinfo --map --json "$(uri "$1")" | jq 'map(select(.type == 0) | .length) | add // 0'
}
file_bytes() {
    find "$folder" -name 'data.*' -printf '%b\n' | awk '{ sum += $1 } END { print sum * 512 }'
}
sum_of() {
    nbdcopy "$(uri "$1")" - | sha256sum
}

declare -A sums=()
made=0 removed=0

# One thing after the other, as long as the guest runs.
make_and_remove() {
    local number
    while ! has_ended "$1"; do
        if [ ${#sums[@]} -lt 3 ] || [ $((RANDOM % 2)) = 0 ]; then
            number=$(tplstore version create vm1 --json | jq .number)
            sums[$number]=$(sum_of "vm1@$number")
            made=$((made + 1))
            continue
        fi
        mapfile -t chosen < <(shuf -e "${!sums[@]}" -n $((1 + RANDOM % 3)) \
            --random-source=<(yes "$RANDOM"))
        for number in "${chosen[@]}"; do
            equals "version $number" "$(sum_of "vm1@$number")" "${sums[$number]}"
        done
        tplstore version rm vm1 "${chosen[@]}" >/dev/null
        for number in "${chosen[@]}"; do
            unset "sums[$number]"
            removed=$((removed + 1))
        done
    done
}
# A machine that is busy with other things gives the guest more rounds.
while [ $made -lt 12 ] || [ $removed -lt 9 ]; do
    $python "$(dirname "$0")/wire_model.py" "$(uri vm1)" 4000 &
    guest=$!
    on_exit kill -9 $guest
    await 20 is_attached vm1 || fail "no guest"
    make_and_remove $guest
    wait $guest || fail "the guest has read something else than it wrote"
done
echo "$made versions made, $removed removed, versions ${!sums[*]} left"

for number in "${!sums[@]}"; do
    equals "version $number" "$(sum_of "vm1@$number")" "${sums[$number]}"
done
equals "versions" "$(tplstore version list vm1 --json | jq -c 'map(.number)[:-1]')" \
    "[$(printf '%s\n' "${!sums[@]}" | sort -n | paste -s -d ,)]"

# All others go too: what is left is one disk's data. A file's own metadata is little.
[ ${#sums[@]} = 0 ] || tplstore version rm vm1 "${!sums[@]}" >/dev/null
before=$(file_bytes)
sum=$(sum_of vm1)
await 20 is_free vm1
tplstore gc
needed=$(data_bytes vm1)
occupied=$(file_bytes)
echo "the files occupied $before bytes, now $occupied, of which $needed are the disk's data"
[ "$occupied" -ge "$needed" ] || fail "$needed bytes of data are in files of $occupied bytes"
[ "$occupied" -le $((needed + 131072)) ] ||
    fail "the data files occupy $occupied bytes for $needed bytes of data"
equals "the disk" "$(sum_of vm1)" "$sum"
stop_nbdkit
serve
equals "the disk, by the next server" "$(sum_of vm1)" "$sum"
stop_nbdkit
