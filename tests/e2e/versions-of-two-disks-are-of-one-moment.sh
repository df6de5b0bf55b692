#!/usr/bin/env bash
# A VM writes rising numbers to two disks in turn, each when the one before was answered. Versions
# that are made of both at once never contradict each other; versions made one after the other do.
# When the server is killed meanwhile both have the version or neither.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq

new_store
for disk in log data; do tplstore volume create $disk --size 8M; done
serve

$python - "$(uri '@EXPORT@')" "$TPLSTORE" <<'END'
import nbd, subprocess, sys, threading

SLOTS, LENGTH = 500, 4096
DISKS = ["log", "data"]

def connect(export):
    client = nbd.NBD()
    client.connect_uri(sys.argv[1].replace("@EXPORT@", export))
    return client

answered = 0
stop = False

def write():
    global answered
    clients = [connect(disk) for disk in DISKS]
    number = 0
    while not stop:
        number += 1
        clients[number % 2].pwrite(b"%015x\n" % number * (LENGTH // 16), number // 2 % SLOTS * LENGTH)
        answered = number

def make(*volumes, name):
    subprocess.run([sys.argv[2], "version", "create", *volumes, "--name", name], check=True,
                   stdout=subprocess.DEVNULL)

def last_of(disk, name):
    reader = connect(f"{disk}@{name}")
    whole = reader.pread(SLOTS * LENGTH, 0)
    heads = [whole[at:at + 15] for at in range(0, len(whole), LENGTH)]
    numbers = [int(head, 16) if head[0] else 0 for head in heads]
    for slot, number in enumerate(numbers):
        assert number == 0 or (number // 2 % SLOTS == slot and DISKS[number % 2] == disk)
    # And none is missing before the last one.
    last = max(numbers)
    wanted = {n for n in range(max(1, last - 2 * SLOTS + 2), last + 1) if n % 2 == last % 2}
    assert wanted == {n for n in numbers if n}, f"{disk}@{name} has holes before {last}"
    return last

writer = threading.Thread(target=write)
writer.start()
try:
    while answered < 100:
        pass
    bounds = {}
    for turn in range(25):
        before = answered
        make(*DISKS, name=f"both{turn}")
        bounds[turn] = (before, answered + 1)
    for turn in range(5):
        for disk in DISKS:
            make(disk, name=f"apart{turn}")
finally:
    stop = True
    writer.join()

for turn, (before, after) in bounds.items():
    log, data = (last_of(disk, f"both{turn}") for disk in DISKS)
    assert abs(log - data) == 1, f"both{turn}: {log} on one disk and {data} on the other"
    assert before <= max(log, data) <= after, f"both{turn}: {log} and {data}, not in {before}..{after}"
apart = [abs(last_of("log", f"apart{turn}") - last_of("data", f"apart{turn}")) for turn in range(5)]
assert max(apart) > 1, "versions made one after the other cannot be told from those of one moment"
print("of one moment:", len(bounds), "made apart they are apart by", apart)
END

# Both or neither, also of what was being made when the server was killed.
both() {
    for disk in log data; do
        tplstore version list $disk --json | jq -c 'map(.name | select(. != null and startswith("killed")))'
    done | uniq | wc -l
}
for turn in 1 2 3 4 5 6; do
    start_client write "$(uri log)" "$(uri data)"
    (while tplstore version create log data --name "killed$turn-$((++i))"; do :; done) >"$tmp/made.out" 2>&1 &
    maker=$!
    sleep "0.0$((turn * 13))"
    kill_nbdkit
    kill "$maker" 2>/dev/null || true
    wait "$maker" 2>/dev/null || true
    { kill -9 "$client" && wait "$client"; } 2>/dev/null || true
    equals "lists of killed versions" "$(both)" 1
    for name in $(sed -n 's/log@.*(\(.*\))/\1/p' "$tmp/made.out"); do
        tplstore version list log --json | grep -q "\"$name\"" || fail "$name was made and is gone"
    done
    serve
done
equals "lists of killed versions" "$(both)" 1
stop_nbdkit
tplstore version create log data >/dev/null
[ -z "$(ls "$store/sets")" ] || fail "something is left: $(ls "$store/sets")"
