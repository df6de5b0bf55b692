#!/usr/bin/env bash
# Two servers of one store, each with a tier of its own, and three tools that at random add, remove,
# rebalance, check and warm, import and remove templates and collect garbage, damage copies, and are
# killed; while guests of both servers read, compare, and see nothing of it.
#
# It goes on for TPLSTORE_OPERATIONS seconds; TPLSTORE_SEED repeats what the tools choose.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq

seconds=${TPLSTORE_OPERATIONS:-20}
seed=${TPLSTORE_SEED:-$RANDOM}
echo "TPLSTORE_SEED=$seed"

new_store
# Disks that share much of what they have.
$python - "$tmp" <<'END'
import random, sys
chunks = [random.Random(i).randbytes(1 << 20) for i in range(16)]
for disk in range(5):
    choice = random.Random(100 + disk)
    with open(f"{sys.argv[1]}/image{disk}", "wb") as image:
        for i in range(12):
            image.write(choice.choice(chunks + [bytes(1 << 20)] * 3))
END
tplstore template import t0 "$tmp/image0" >/dev/null
for host in 1 2; do
    for name in a b c; do mkdir -p "$tmp/host$host/$name"; done
    tplstore --tier-state "$tmp/state$host" tier add "$tmp/host$host/a" --weight 64M >/dev/null
    tplstore volume create "vm$host" --template t0
    start_nbdkit "host$host" "$TPLSTORE_PLUGIN" "$store" tier-state="$tmp/state$host"
done

# guest.py URI IMAGE... reads until the file `ends` is there; of several templates each in turn, as
# far as it is there.
cat >"$tmp/guest.py" <<'END'
import nbd, os, random, sys, time
tmp, socket, exports = sys.argv[1], sys.argv[2], sys.argv[3:]
chance = random.Random(int.from_bytes(os.urandom(4), "big"))
done = 0
print("reads", flush=True)
while not os.path.exists(f"{tmp}/ends"):
    export = chance.choice(exports)
    image = open(f"{tmp}/image{export[-1] if len(exports) > 1 else 0}", "rb").read()
    client = nbd.NBD()
    client.set_export_name(export)
    try:
        client.connect_unix(socket)
    except nbd.Error:
        assert len(exports) > 1  # there is no such template now
        time.sleep(0.01)
        continue
    for i in range(50):
        length = chance.choice([512, 4096, 65536, 1 << 20])
        offset = chance.randrange((len(image) - length) // 512) * 512
        assert client.pread(length, offset) == image[offset:offset + length], f"{export} {offset}"
        done += 1
    client.shutdown()
print("right", done)
END
guests=()
for host in 1 2; do
    for exports in "vm$host" "vm$host@current" "template/t1 template/t2 template/t3 template/t4"; do
        # shellcheck disable=SC2086
        $python "$tmp/guest.py" "$tmp" "$tmp/host$host.socket" $exports \
            >"$tmp/guest-${#guests[@]}.out" 2>&1 &
        guests+=($!)
        on_exit kill -9 $!
    done
done
for i in "${!guests[@]}"; do
    await 20 grep -qs reads "$tmp/guest-$i.out" || fail "a guest does not start"
done

cat >"$tmp/tool.py" <<'END'
import collections, glob, os, random, subprocess, sys, time
program, tmp, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
done = collections.Counter()

def run(*arguments):
    host = chance.choice("12")
    arguments = [argument.replace("HOST", f"{tmp}/host{host}") for argument in arguments]
    process = subprocess.Popen([program, *arguments], stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL,
                               env={**os.environ, "TPLSTORE_TIER_STATE": f"{tmp}/state{host}"})
    try:
        says = process.communicate(timeout=chance.choice([0.02, 0.2, 600, 600, 600]))[1]
    except subprocess.TimeoutExpired:
        process.kill()
        says = process.communicate()[1]
    what = " ".join(arguments[:2]) if arguments[0] != "gc" else "gc"
    done[what, process.returncode] += 1
    # It may be refused, and it may be killed; it neither crashes nor finds what cannot be.
    assert process.returncode in (0, 1, -9), f"{arguments}: {process.returncode} {says}"
    for wrong in ("anitizer", "other bytes", "does not have its hash", "missing"):
        assert wrong not in says, f"{arguments}: {says}"

def damage():
    copies = glob.glob(f"{tmp}/host?/?/segments/??/*")
    if not copies:
        return
    copy = chance.choice(copies)
    try:
        if chance.random() < 0.3:
            os.unlink(copy)
        else:
            with open(copy, "r+b") as file:
                if chance.random() < 0.2:
                    file.truncate(chance.randrange(os.path.getsize(copy) + 5000))
                else:
                    file.seek(chance.randrange(os.path.getsize(copy)))
                    file.write(b"damage")
        done["damage", 0] += 1
    except OSError:
        pass

ends = time.monotonic() + seconds
while time.monotonic() < ends:
    template, directory = chance.choice("1234"), "HOST/" + chance.choice("abc")
    chance.choices([
        lambda: run("tier", "add", directory, "--weight", chance.choice(["64M", "100M", "1G"]),
                    "--kind", chance.choice(["ssd", "ssd", "ssd", "local"])),
        lambda: run("tier", "rm", directory, *chance.choice([[], ["--drain"]])),
        lambda: run("tier", "rebalance"),
        lambda: run("tier", "list", "--check"),
        lambda: run("template", "import", f"t{template}", f"{tmp}/image{template}",
                    *chance.choice([[], ["--eager"]])),
        lambda: run("template", "rm", f"t{template}"),
        lambda: run("template", "warm", f"t{chance.choice('0' + template)}"),
        lambda: run("template", "verify", f"t{chance.choice('0' + template)}", "--repair"),
        lambda: run("gc"),
        damage,
    ], weights=[3, 2, 4, 1, 5, 4, 3, 1, 1, 6])[0]()
for (what, status), count in sorted(done.items()):
    print(f"{what}: {count} with status {status}")
END
tools=()
for i in 1 2 3; do
    $python "$tmp/tool.py" "$TPLSTORE" "$tmp" "$seconds" $((seed + i)) >"$tmp/tool-$i.out" 2>&1 &
    tools+=($!)
    on_exit kill -9 $!
done
for i in 1 2 3; do
    wait "${tools[i - 1]}" || fail "$(cat "$tmp/tool-$i.out")"
done
touch "$tmp/ends"
for i in "${!guests[@]}"; do
    wait "${guests[i]}" || fail "$(cat "$tmp/guest-$i.out")"
    cat "$tmp/guest-$i.out"
done
cat "$tmp"/tool-?.out | sort | awk -F: '{ sum[$1 ":" substr($2, index($2, " with"))] += $2 }
    END { for (what in sum) print sum[what], what }' | sort -rn

# All is well: templates, also those that a killed import is to be taken up for, and the tiers.
ready=$(tplstore template list --json | jq -r '.[] | select(.state == "ready").name')
for name in $(tplstore template list --json | jq -r '.[] | select(.state != "ready").name'); do
    tplstore template rm "$name"
done
for name in $ready; do
    tplstore template verify "$name" >/dev/null
    tplstore template export "$name" "$tmp/exported" >/dev/null
    cmp "$tmp/exported" "$tmp/image${name#t}"
    rm "$tmp/exported"
done
tplstore gc >/dev/null
(cd "$store/segments" && find . -type f | sort) >"$tmp/needed"
for host in 1 2; do
    export TPLSTORE_TIER_STATE=$tmp/state$host
    tplstore tier list --check >/dev/null || true
    tplstore tier rebalance >/dev/null
    for directory in $(tplstore tier list --json | jq -r '.[].path'); do
        [ ! -e "$directory/segments" ] ||
            (cd "$directory/segments" && find . -type f | sort) |
            comm -23 - "$tmp/needed" >"$tmp/unneeded"
        [ ! -s "$tmp/unneeded" ] || fail "$directory has copies that nobody needs"
    done
    tplstore tier list --check >/dev/null
    for name in $ready; do tplstore template warm "$name" >/dev/null || true; done
    stop_nbdkit "host$host"
done
