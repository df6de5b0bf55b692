#!/usr/bin/env bash
# Pruning a history of two years keeps exactly what a second reading of the rules keeps, says why, and
# leaves the bytes of what is kept alone; a dry run does nothing.
. "$(dirname "$0")/../functions.sh"
requires python-libnbd jq cc

# A clock that shows what a file says: versions are dated by the server's.
cat >"$tmp/clock.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, time);
  FILE *file = clock == CLOCK_REALTIME ? fopen(getenv("CLOCK_FILE"), "r") : NULL;
  if (file) {
    long long seconds;
    if (fscanf(file, "%lld", &seconds) == 1) time->tv_sec = seconds;
    fclose(file);
  }
  return result;
}
END
cc -shared -fPIC -o "$tmp/clock.so" "$tmp/clock.c" -ldl
export CLOCK_FILE=$tmp/now
date +%s >"$tmp/now"

new_store
tplstore volume create vm1 --size 1M
LD_PRELOAD=$tmp/clock.so serve

$python - "$(uri vm1)" "$(uri vm1@VERSION)" "$TPLSTORE" "$tmp/now" <<'END'
import json, nbd, random, subprocess, sys
from datetime import datetime, timedelta, timezone

uri, version_uri, tplstore, clock = sys.argv[1:]
seed = random.SystemRandom().randrange(1 << 32)
print(f"seed {seed}")
chance = random.Random(seed)
guest = nbd.NBD()
guest.connect_uri(uri)

def run(*arguments):
    return json.loads(subprocess.run([tplstore, "version", *arguments, "--json"], check=True,
                                     stdout=subprocess.PIPE).stdout)

# Ever denser towards the end, around midnights, ends of weeks, months and years too.
last = datetime(2026, 1, 1, 0, 30, tzinfo=timezone.utc)
times = {last - timedelta(minutes=20 * n) for n in range(12)}
times |= {last - timedelta(minutes=chance.randrange(7 * 24 * 60)) for _ in range(12)}
times |= {last - timedelta(hours=chance.randrange(90 * 24)) for _ in range(12)}
times |= {last - timedelta(hours=chance.randrange(730 * 24)) for _ in range(12)}
times |= {datetime(2025, 12, 29, 0, 0, tzinfo=timezone.utc),
          datetime(2025, 12, 28, 23, 59, 59, tzinfo=timezone.utc),
          datetime(2024, 12, 31, 23, 59, 59, tzinfo=timezone.utc)}
model = []  # number, time, whether it has a name
for time in sorted(times):
    with open(clock, "w") as file:
        file.write(str(int(time.timestamp())))
    number = len(model) + 1
    guest.pwrite(b"%08d" % number * 512, 0)
    named = ["--name", f"release-{number}"] if chance.random() < 0.15 else []
    made = run("create", "vm1", *named)
    assert made["number"] == number
    assert made["created"] == time.strftime("%Y-%m-%dT%H:%M:%SZ"), (made, time)
    model.append((number, time, bool(named)))

PERIODS = {"last": None, "hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V",
           "monthly": "%Y-%m", "yearly": "%Y"}

def expected(rules, keep_named):
    reasons = {number: [] for number, _, _ in model}
    for rule, count in rules.items():
        seen = []
        for number, time, _ in reversed(model):
            period = number if rule == "last" else time.strftime(PERIODS[rule])
            if period not in seen and len(seen) < count:
                seen.append(period)
                reasons[number].append(rule)
    for number, _, named in model:
        if keep_named and named:
            reasons[number].append("named")
    return reasons

def check(rules, keep_named, dry):
    wanted = expected(rules, keep_named)
    arguments = [part for rule, count in rules.items() for part in (f"--keep-{rule}", str(count))]
    arguments += ["--keep-named"] * keep_named + ["--dry-run"] * dry
    told = run("prune", "vm1", *arguments)
    assert told["volume"] == "vm1" and told["dry_run"] == dry
    assert {v["number"]: v["reasons"] for v in told["versions"]} == wanted, arguments
    for version in told["versions"]:
        assert version["keep"] == bool(wanted[version["number"]])
        assert version["removed"] == (not dry and not version["keep"])
    left = [v["number"] for v in run("list", "vm1")][:-1]
    if not dry:
        model[:] = [entry for entry in model if wanted[entry[0]]]
    assert left == [number for number, _, _ in model], (left, model)
    print(" ".join(arguments), "->", len(left), "versions")

for _ in range(12):
    rules = {rule: chance.choice([1, 2, 5, 24]) for rule in PERIODS if chance.random() < 0.4}
    check(rules or {"last": 1}, chance.random() < 0.5, True)
check({"last": 2, "hourly": 24, "daily": 14, "weekly": 8, "monthly": 12, "yearly": 2}, True, False)
check({"daily": 5, "monthly": 3}, True, False)
check({"weekly": 2, "yearly": 10}, False, False)
assert len(model) >= 3
for number, _, _ in model:
    reader = nbd.NBD()
    reader.connect_uri(version_uri.replace("VERSION", str(number)))
    assert reader.pread(4096, 0) == b"%08d" % number * 512, f"version {number}"
    reader.shutdown()
check({"last": 1}, False, False)
guest.shutdown()
END
stop_nbdkit
equals "versions" "$(tplstore version list vm1 --json | jq length)" 2
