"""Rows of boot_storm.sh that need templates, volumes or loads of their own. See there."""

import json
import os
import random
import statistics
import subprocess
import sys
import time

from boot_sides import Nbdkit, Overlays, Tplstore
from waiting import answers, wait_for

MIB = 1 << 20
IMAGE_BYTES = 1 << 30


def boot_cache(side):
    return side.stats()["boot_cache"]


def boot_set(side):
    return side.boots()["golden"]["profile"]["bytes"]


def write_random(path, mib):
    chosen = random.Random(7)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(chosen.randbytes(MIB))
        file.truncate(IMAGE_BYTES)


class Copies(Nbdkit):
    """A full clone for each VM, served by a qemu-nbd."""

    def __init__(self, bench, cache):
        super().__init__(bench)
        self.cache = cache

    def make(self, count):
        for i in range(count):
            path = f"{self.bench.directory}/clone{i}.raw"
            if not os.path.exists(path):
                subprocess.run(["cp", "--sparse=always", self.bench.image, path], check=True)

    def serve(self, count):
        uris = []
        for i in range(count):
            path = f"{self.bench.directory}/clone{i}.sock"
            self.start(["qemu-nbd", "-t", "-e", "8", "-f", "raw", f"--cache={self.cache}",
                        "--aio=io_uring", "-k", path, f"{self.bench.directory}/clone{i}.raw"], path)
            uris.append(f"nbd+unix:///?socket={path}")
        return uris

    def remove(self):
        for name in os.listdir(self.bench.directory):
            if name.startswith("clone"):
                os.unlink(f"{self.bench.directory}/{name}")


def write_trace(bench, name, requests):
    path = f"{os.path.dirname(bench.json)}/boot-{name}.trace"
    with open(path, "w") as file:
        file.writelines(f"{kind} {offset} {length}\n" for kind, offset, length in requests)
    return path


# --- several origins


def full_images(bench):
    """Images that have all files of the template's elsewhere, imported one by one."""
    name = "16 full images, imported apart, direct"
    if not bench.wanted(name):
        return
    shift = 64 << 10
    ours = Tplstore(bench, "io=direct")
    ours.forget()
    shifted = f"{bench.directory}/shifted.raw"
    for i in range(16):
        with open(shifted, "wb") as file:
            file.write(random.Random(i).randbytes(i * shift))
        subprocess.run(["dd", f"if={bench.image}", f"of={shifted}", "bs=64K", f"seek={i}",
                        "conv=sparse,notrunc", "status=none"], check=True)
        os.truncate(shifted, IMAGE_BYTES + i * shift)
        ours.run("template", "import", f"image{i}", shifted)
    os.unlink(shifted)
    ours.origins = [("--template", f"image{i}") for i in range(16)]
    options = ("--shift", str(shift))
    for packs in (0, 0, 16):
        ours.make(16)
        ours.learn_each(16, *options, packs=packs)
    clones = Copies(bench, "writeback"), Copies(bench, "none")
    overlays = Overlays(bench, "none")
    one, many, qcow2, *full = bench.compare(
        [lambda: bench.cold(ours, 1), lambda: bench.cold(ours, 16, options=options),
         lambda: bench.cold(overlays, 16)] +
        [lambda side=side: bench.cold(side, 16) for side in clones])
    clones[0].remove()
    for i in range(16):
        ours.run("volume", "rm", f"vm{i}") if i < len(json.loads(
            ours.run("volume", "list", "--json"))) else None
    print(f"  1: {one[0]:.2f} s, {one[1]:.0f} reads; 16: {many[0]:.2f} s, {many[1]:.0f}; "
          f"16 qcow2 {qcow2[0]:.2f} s; 16 full clones {full[0][0]:.2f} s (writeback), "
          f"{full[1][0]:.2f} s (none)")
    bench.row(name, "16 qcow2, cache=none", qcow2[0] / many[0], ">=", 45)
    bench.row(name, "reads for each further VM", (many[1] - one[1]) / 15, "<=", 8.8)
    for side, seconds in zip(("writeback", "none"), full):
        bench.row(name, f"16 full clones, cache={side}", seconds[0] / many[0], ">=", 1)


def forks(bench):
    """Forks of a volume in which 400 MB were written, and half of what a boot reads."""
    name = "16 forks with 400 MB, direct"
    if not bench.wanted(name):
        return
    ours = Tplstore(bench, "io=direct")
    ours.learn(True)
    ours.make(0)
    ours.run("volume", "create", "updated", "--template", "golden")
    reads = [line.split() for line in open(bench.trace) if line.startswith("R")]
    writes = [("W", int(offset), int(length)) for _, offset, length in reads[1::2]]
    writes += [("W", at, MIB) for at in range(IMAGE_BYTES - 400 * MIB, IMAGE_BYTES, MIB)]
    trace = write_trace(bench, "update", writes + [("F", 0, 0)])
    writer = Tplstore(bench, slow=False)
    path = writer.serve(0) or f"{bench.directory}/tplstore.sock"
    bench.replay([f"nbd+unix:///updated?socket={path}"], "--depth", "8", trace=trace)
    writer.stop()
    ours.run("version", "create", "updated")
    version = json.loads(ours.run("version", "list", "updated", "--json"))[0]["number"]
    fork = ("--from", f"updated@{version}")
    forked = Tplstore(bench, "io=direct")
    forked.origins = [fork]
    forked.make(1)
    for boot in range(4):
        forked.learn_each(1, packs=2 if boot == 3 else 0)
    a, b = bench.compare([lambda: bench.cold(forked, 16), lambda: bench.cold(ours, 16)])
    print(f"  {a[0]:.2f} s, {a[1]:.0f} reads; clones {b[0]:.2f} s, {b[1]:.0f}")
    bench.row(name, "16 clones, time", a[0] / b[0], "<=", 1.3)
    forked.make(0)
    forked.run("volume", "rm", "updated")


# --- little memory


def small_cap(bench):
    name = "boot set 4 x the cap, in turn, direct"
    if not bench.wanted(name):
        return
    ours = Tplstore(bench, "io=direct")
    ours.learn(False)
    set_bytes = boot_set(ours)
    cap = set_bytes // 4
    other = f"{bench.directory}/other.raw"
    write_random(other, 300)
    ours.run("template", "import", "other", other)
    os.unlink(other)
    ours.origins = [("--template", "golden"), ("--template", "other")]
    ours.make(2)
    ours.learn_each(2)
    small = Tplstore(bench, "io=direct", f"boot-cache={cap}", "boot-quiet=1", "packs=off")

    def in_turn():
        ours.make(2)
        bench.drop_caches()
        uris = small.serve(2)
        for _ in range(2):
            for i, uri in enumerate(uris):
                bench.replay([uri], "--reads")
                # What ends with the connection; the pause between two windows of a volume is
                # as short as boot-quiet.
                wait_for(lambda: small.boots()[f"vm{i}"]["windows"][-1]["reason"], "a boot's end")
                time.sleep(1)
        windows = [small.boots()[f"vm{i}"]["windows"][-1] for i in range(2)]
        small.stop()
        hits = sum(window["hits"] for window in windows)
        return [hits / (hits + sum(window["misses"] for window in windows))]

    (rate,), = bench.compare([in_turn])
    print(f"  {rate:.3f} of blocks were hits, with {cap / MIB:.1f} of {set_bytes / MIB:.1f} MiB")
    bench.row(name, "cap / boot set", rate / (cap / set_bytes), ">=", 0.9)
    ours.make(0)


def memory(bench):
    name = "memory for a boot set"
    if bench.wanted(name):
        ours = Tplstore(bench, "io=direct", "packs=off")
        ours.learn(False)
        _, _, cache = bench.cold(ours, 1, boot_cache)
        allowed = 1.06 * cache["slots"] * 4096 + MIB
        print(f"  {cache['used'] / MIB:.2f} MiB for {cache['slots'] * 4096 / MIB:.2f}")
        bench.row(name, "1.06 x its blocks + 1 MiB", cache["used"] / allowed, "<=", 1)
    name = "page cache and cache after a boot, buffered"
    if bench.wanted(name):
        ours = Tplstore(bench, "boot-quiet=1", "packs=off")
        ours.learn(False)

        def cached(side):
            wait_for(lambda: side.boots()["vm0"]["windows"][-1]["reason"], "the boot's end")
            time.sleep(1)  # it is let go of a moment later
            segments = [f"{folder}/{file}" for folder, _, files in
                        os.walk(f"{side.store}/segments") for file in files]
            pages = subprocess.run(["fincore", "--bytes", "--noheadings", "--output", "RES"] +
                                   segments, check=True, capture_output=True, text=True)
            return sum(map(int, pages.stdout.split())) + boot_cache(side)["slots"] * 4096

        _, _, both = bench.cold(ours, 1, cached)
        bench.row(name, "boot set", both / boot_set(ours), "<=", 1.3)


# --- other load


def full_reads(bench):
    name = "full reads beside and between boots, direct"
    if not bench.wanted(name):
        return
    ours = Tplstore(bench, "io=direct", "packs=off")
    ours.learn(False)

    def boots(has_reads):
        ours.make(18)
        bench.drop_caches()
        uris = ours.serve(18)

        def copy(uri):
            if has_reads:
                return subprocess.Popen(["nbdcopy", uri, "null:"])
            return None

        others = [copy(uri) for uri in (uris[16], uris[0].replace("vm0", "vm0@current"))]
        bench.replay(uris[:16])
        for other in others:
            if other and other.wait() != 0:
                sys.exit("nbdcopy failed")
        if has_reads:
            copy(uris[16]).wait()
        evictions = boot_cache(ours)["evictions"]
        before = bench.device_reads()
        bench.replay(uris[17:])
        reads = bench.device_reads() - before
        ours.stop()
        return reads, evictions

    a, b = bench.compare([lambda: boots(True), lambda: boots(False)])
    print(f"  a later boot reads {a[0]:.0f} times, without full reads {b[0]:.0f}")
    bench.row(name, "evictions", a[1], "<=", 0)
    bench.row(name, "a later boot's reads", a[0] / max(1, b[0]), "<=", 1.02)


def beside_prefetch(bench):
    """A guest's misses while a gigabyte of another template's profile is read ahead."""
    name = "p99 of misses beside a prefetch, direct"
    if not bench.wanted(name):
        return
    ours = Tplstore(bench, "io=direct", "packs=off", "boot-cache=3G")
    ours.forget()
    large = f"{bench.directory}/large.raw"
    write_random(large, IMAGE_BYTES // MIB)
    ours.run("template", "import", "large", large)
    os.unlink(large)
    order = list(range(0, IMAGE_BYTES, 128 << 10))
    random.Random(1).shuffle(order)
    everything = write_trace(bench, "everything", [("R", 0, 4096)] +
                             [("R", offset, 128 << 10) for offset in order])
    misses = write_trace(bench, "misses", [("R", random.Random(2).randrange(4096, 100 * MIB) // 4096
                                            * 4096 + i * 64 * 1024, 4096) for i in range(600)])
    ours.origins = [("--template", "large"), ("--template", "golden")]
    learner = Tplstore(bench, "boot-quiet=1", "boot-cache=3G", slow=False)
    ours.make(2)
    bench.replay(learner.serve(1), trace=everything)
    learner.stop()
    if ours.boots()["large"]["profile"] is None:
        sys.exit("the large template's profile was not learnt")
    begin = write_trace(bench, "begin", [("R", 0, 4096), ("R", order[0], 128 << 10)])

    def p99(has_prefetch):
        ours.make(2)
        bench.drop_caches()
        uris = ours.serve(2)
        booting = subprocess.Popen([bench.replay_trace, "--hold", begin, uris[0]],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if has_prefetch:
            booting.stdout.readline()
        else:
            booting.communicate()
        result = bench.replay(uris[1:], trace=misses)["p99"]
        share = boot_cache(ours)["prefetch_bytes"]
        if has_prefetch:
            booting.communicate()
        ours.stop()
        return result, share

    a, b = bench.compare([lambda: p99(True), lambda: p99(False)])
    print(f"  {1000 * a[0]:.1f} ms while {a[1] / MIB:.0f} MiB came; without {1000 * b[0]:.1f} ms")
    bench.row(name, "without", a[0] / b[0], "<=", 3)
    ours.make(0)


# --- the processor's time, and the start


def hits(bench):
    ours = Tplstore(bench, "io=direct", slow=False)
    without = Tplstore(bench, "io=buffered", "boot-cache=0", slow=False)
    peer = Nbdkit(bench, "memory", "2G", slow=False)
    for length, label, count in ((4 << 10, "4 KiB", 100_000), (128 << 10, "128 KiB", 20_000)):
        name = f"processor, {label} hit, direct"
        if not bench.wanted(name):
            continue
        # What lies in the template's data, without a stream.
        at = [offset for _, offset, _ in (line.split() for line in open(bench.trace)
                                          if line.startswith("R"))]
        offsets = sorted({int(offset) // length * length for offset in at} - {0})
        random.Random(3).shuffle(offsets)
        fill = write_trace(bench, "fill", [("R", 0, 4096)] + [("R", offset, length)
                                                              for offset in offsets])
        # Memory that nobody has written would be read as zeros without looking anywhere.
        store = write_trace(bench, "store", [("W", offset, length) for offset in offsets])
        chosen = random.Random(4)
        trace = write_trace(bench, "hits", [("R", chosen.choice(offsets), length)
                                            for _ in range(count)])

        def measure(side):
            side.make(1)
            uris = side.serve(1)
            bench.replay(uris, trace=store if side is peer else fill)
            begin = side.cpu_seconds()
            bench.replay(uris, "--depth", "32", trace=trace)
            used = side.cpu_seconds() - begin
            missed = boot_cache(side)["misses"] if side is ours else 0
            side.stop()
            return used / count, missed

        a, b, c = bench.compare([lambda: measure(ours), lambda: measure(peer),
                                 lambda: measure(without)])
        print(f"  {1e6 * a[0]:.2f} us ({a[1]:.0f} misses); nbdkit memory {1e6 * b[0]:.2f}, "
              f"page cache {1e6 * c[0]:.2f}")
        bench.row(name, "nbdkit memory", a[0] / b[0], "<=", 1.1)
        if length == 4 << 10:
            bench.row(name, "page cache, boot-cache=0", a[0] / c[0], "<=", 1)
    # Of what no boot reads, the boot cache is not to be noticed.
    for io in ("buffered", "direct"):
        for kind, label in (("R", "read of own data"), ("W", "overwrite")):
            name = f"processor, 4 KiB {label}, {io}"
            if not bench.wanted(name):
                continue
            offsets = list(range(MIB, 65 * MIB, 4096))
            random.Random(5).shuffle(offsets)
            own = write_trace(bench, "own", [("W", at, 4096) for at in offsets] + [("F", 0, 0)])
            chosen = random.Random(6)
            count = 100_000 if io == "buffered" else 30_000
            trace = write_trace(bench, "own-again", [(kind, chosen.choice(offsets), 4096)
                                                     for _ in range(count)])

            def measure_own(side):
                side.make(1)
                uris = side.serve(1)
                bench.replay(uris, "--depth", "32", trace=own)
                begin = side.cpu_seconds()
                bench.replay(uris, "--depth", "32", trace=trace)
                used = side.cpu_seconds() - begin
                side.stop()
                return [used / count]

            a, b = bench.compare([
                lambda: measure_own(Tplstore(bench, f"io={io}", slow=False)),
                lambda: measure_own(Tplstore(bench, f"io={io}", "boot-cache=0", slow=False))])
            bench.row(name, "boot-cache=0", a[0] / b[0], "<=", 1.01)


def start_with_profiles(bench):
    """With a profile of each of 200 templates: as large as one of a gigabyte with its hashes. What
    is in them does not matter as long as none is read."""
    name = "start with 200 templates' profiles"
    if not bench.wanted(name):
        return
    store = f"{bench.directory}/many"
    subprocess.run([bench.tplstore, "init", store], check=True, stdout=subprocess.DEVNULL)
    ours = Tplstore(bench, store="many", slow=False)
    small = f"{bench.directory}/small.raw"
    for i in range(200):
        with open(small, "wb") as file:
            file.write(random.Random(i).randbytes(64 << 10))
        ours.run("template", "import", f"template{i}", small)
    os.unlink(small)
    profile = random.Random(9).randbytes(262144 * 16 + 4096 * 24)

    def start(has_profiles):
        ours.forget()
        if has_profiles:
            os.makedirs(f"{store}/boot", exist_ok=True)
            for template in json.loads(ours.run("template", "list", "--json")):
                with open(f"{store}/boot/{template['uuid']}.1", "wb") as file:
                    file.write(profile)
        bench.drop_caches()
        begin = time.monotonic()
        ours.serve(0)
        wait_for(lambda: answers(f"{bench.directory}/tplstore.sock"), "a server's start")
        seconds = time.monotonic() - begin
        time.sleep(0.5)  # whatever it might do in the background
        with open(f"/proc/{ours.processes[0].pid}/status") as status:
            resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        ours.stop()
        return seconds, resident

    a, b = bench.compare([lambda: start(True), lambda: start(False)])
    print(f"  {1000 * a[0]:.0f} ms, {a[1] / 1024:.1f} MiB; without {1000 * b[0]:.0f} ms, "
          f"{b[1] / 1024:.1f} MiB")
    bench.row(name, "without, ms more", 1000 * (a[0] - b[0]), "<=", 50)
    bench.row(name, "without, MiB more", (a[1] - b[1]) / 1024, "<=", 4)


def run(bench):
    full_images(bench)
    forks(bench)
    small_cap(bench)
    memory(bench)
    full_reads(bench)
    beside_prefetch(bench)
    hits(bench)
    start_with_profiles(bench)
