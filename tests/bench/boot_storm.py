"""The rows of boot_storm.sh. See there."""

import argparse
import json
import re
import statistics
import subprocess
import sys

import boot_rows
from boot_sides import Nbdkit, Overlays, Tplstore


class Bench:
    def __init__(self, arguments):
        self.__dict__.update(vars(arguments))
        self.rows = []
        self.missed = False
        self.image = f"{self.directory}/image.raw"
        subprocess.run(["cp", "--sparse=always", arguments.image, self.image], check=True)
        first = Tplstore(self)
        subprocess.run([self.tplstore, "init", first.store], check=True, stdout=subprocess.DEVNULL)
        first.run("template", "import", "golden", self.image)
        info = json.loads(first.run("template", "list", "--json"))[0]
        self.segments = info["segments"]
        self.trace_reads = sum(line.startswith("R") for line in open(self.trace))

    def drop_caches(self):
        subprocess.run(["sync"], check=True)
        with open("/proc/sys/vm/drop_caches", "w") as drop:
            drop.write("3")

    def device_reads(self):
        with open(f"{self.group}/blkio.throttle.io_serviced") as counts:
            for line in counts:
                if line.startswith(f"{self.device} Read"):
                    return int(line.split()[2])
        return 0

    def replay(self, uris, *options, trace=None):
        result = subprocess.run([self.replay_trace, *options, trace or self.trace] + uris,
                                capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(result.stderr)
        return json.loads(result.stdout)

    def cold(self, side, count, look=None, options=(), beside=None):
        """One cold boot of so many VMs at once: seconds, device reads, and what `look` sees. What
        `beside` starts, given their URIs, goes on meanwhile."""
        side.make(count)
        self.drop_caches()
        uris = side.serve(count)
        self.drop_caches()
        before = self.device_reads()
        # The VMs stay until all have booted and all is counted.
        others = beside(uris) if beside else None
        guests = subprocess.Popen([self.replay_trace, "--hold", *options, self.trace] + uris[:count],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = guests.stdout.readline()
        if not line:
            sys.exit("a boot failed")
        seconds = json.loads(line)["seconds"]
        reads = self.device_reads() - before
        if others and others.wait() != 0:
            sys.exit("what goes on beside failed")
        seen = look(side) if look else None
        guests.communicate()
        side.stop()
        return seconds, reads, seen

    def compare(self, measures):
        """Runs of each alternate; the medians of all that each gives."""
        results = [[] for _ in measures]
        for _ in range(self.runs):
            for result, measure in zip(results, measures):
                result.append(measure())
        medians = []
        for result in results:
            columns = list(zip(*result))
            medians.append([statistics.median(column) if column[0] is not None else None
                            for column in columns])
        return medians

    def wanted(self, name):
        return not self.case or re.search(self.case, name)

    def row(self, name, against, value, relation, required):
        ok = value <= required if relation == "<=" else value >= required
        self.missed |= not ok
        self.rows.append({"case": name, "against": against, "value": value,
                          "required": f"{relation}{required}", "ok": ok})
        print(f"{name:44} {against:40} {value:9.3f} {relation + str(required):>9}  "
              f"{'ok' if ok else 'MISSED'}", flush=True)

    # --- rows

    def first_boots(self):
        if self.wanted("1 VM, first boot, buffered"):
            ours, without = Tplstore(self), Tplstore(self, "boot-cache=0")

            def first(side):
                side.forget()
                return self.cold(side, 1)

            a, b = self.compare([lambda: first(ours), lambda: first(without)])
            print(f"  {a[0]:.2f} s, {a[1]:.0f} reads; without {b[0]:.2f} s, {b[1]:.0f}")
            self.row("1 VM, first boot, buffered", "boot-cache=0, time", a[0] / b[0], "<=", 1.05)
            self.row("1 VM, first boot, buffered", "boot-cache=0, reads", a[1] / b[1], "<=", 1.05)
        if self.wanted("first boot, direct"):
            ours = Tplstore(self, "io=direct")
            overlays = Overlays(self, "none")

            def first_direct(count):
                ours.forget()
                return self.cold(ours, count)

            one, one_qcow2, many, many_qcow2 = self.compare([
                lambda: first_direct(1), lambda: self.cold(overlays, 1),
                lambda: first_direct(16), lambda: self.cold(overlays, 16)])
            print(f"  1: {one[0]:.2f} s, {one[1]:.0f} reads (qcow2 {one_qcow2[0]:.2f} s); "
                  f"16: {many[0]:.2f} s, {many[1]:.0f} reads (qcow2 {many_qcow2[0]:.2f} s)")
            allowed = self.trace_reads + 2 * self.segments
            self.row("1 VM, first boot, direct", "reads of the trace + 2 a segment",
                     one[1] / allowed, "<=", 1)
            self.row("1 VM, first boot, direct", "qcow2, cache=none, time", one[0] / one_qcow2[0],
                     "<=", 1.1)
            self.row("16 VMs, first boot, direct", "reads of 1", many[1] / one[1], "<=", 1.1)
            self.row("16 VMs, first boot, direct", "qcow2, cache=none, speed",
                     many_qcow2[0] / many[0], ">=", 12)

    def known_boots(self):
        for pack, io in ((False, "buffered"), (False, "direct"), (True, "buffered"),
                         (True, "direct")):
            name = f"1 VM, {'pack' if pack else 'profile'}, {io}"
            if not self.wanted(name):
                continue
            ours = Tplstore(self, f"io={io}", "packs=auto" if pack else "packs=off")
            ours.learn(pack)
            file = Nbdkit(self, "file", f"{self.directory}/copy.raw")
            overlay = Overlays(self, "none")
            a, b, c = self.compare([lambda: self.cold(ours, 1), lambda: self.cold(file, 1),
                                    lambda: self.cold(overlay, 1)])
            print(f"  {a[0]:.2f} s, {a[1]:.0f} reads; file {b[0]:.2f} s, {b[1]:.0f}; "
                  f"qcow2 {c[0]:.2f} s, {c[1]:.0f}")
            self.row(name, "nbdkit file", b[0] / a[0], ">=", 5 if pack else 3)
            self.row(name, "qcow2, cache=none", c[0] / a[0], ">=", 7 if pack else 3)

    def storms(self):
        if not self.wanted("VMs at once, pack, direct"):
            return
        ours = Tplstore(self, "io=direct")
        ours.learn(True)
        overlays = Overlays(self, "none")

        def filled(side):
            return side.stats()["boot_cache"]["fill_bytes"]

        one, many, most, qcow2 = self.compare([
            lambda: self.cold(ours, 1, filled), lambda: self.cold(ours, 16, filled),
            lambda: self.cold(ours, 64, filled), lambda: self.cold(overlays, 16)])
        print(f"  1: {one[0]:.2f} s, {one[1]:.0f} reads; 16: {many[0]:.2f} s, {many[1]:.0f}; "
              f"64: {most[0]:.2f} s, {most[1]:.0f}; 16 qcow2 {qcow2[0]:.2f} s, {qcow2[1]:.0f}")
        self.row("16 VMs at once, pack, direct", "16 qcow2, cache=none", qcow2[0] / many[0], ">=",
                 50)
        boot_set = ours.boots()["golden"]["profile"]["bytes"]
        self.row("16 VMs at once, pack, direct", "bytes read, of the boot set",
                 many[2] / boot_set, "<=", 1.02)
        self.row("16 VMs at once, pack, direct", "reads for each further VM",
                 (many[1] - one[1]) / 15, "<=", 8)
        self.row("64 VMs at once, pack, direct", "reads for each further VM",
                 (most[1] - one[1]) / 63, "<=", 8)

    def warm_boots(self):
        for io in ("buffered", "direct"):
            name = f"64 VMs, warm, reads only, {io}"
            if self.wanted(name):
                ours = Tplstore(self, f"io={io}", slow=False)
                memory = Nbdkit(self, "memory", "2G", slow=False)
                # Memory that nobody has written would be read as zeros without looking anywhere.
                stored = boot_rows.write_trace(self, "store", [
                    ("W", *line.split()[1:]) for line in open(self.trace) if line.startswith("R")])
                self.warm(name, "nbdkit memory", ours, memory, 64, 0.9, "--reads", stored=stored)
            name = f"16 VMs, warm, whole trace, {io}"
            if self.wanted(name):
                ours = Tplstore(self, f"io={io}", slow=False)
                cow = Nbdkit(self, "--filter=cow", "file", f"{self.directory}/copy.raw",
                             slow=False, copies=True)
                self.warm(name, "nbdkit --filter=cow file", ours, cow, 16, 0.9)

    def warm(self, name, against, ours, peer, count, required, *options, stored=None):
        def measure(side):
            side.make(count)
            uris = side.serve(count)
            if side is peer and stored:
                self.replay(uris[:1], trace=stored)
            self.replay(uris[:1], "--reads")
            subprocess.run(["sync"], check=True)  # what was prepared is written now, not meanwhile
            begin = side.cpu_seconds()
            seconds = self.replay(uris, *options)["seconds"]
            used = side.cpu_seconds() - begin
            side.stop()
            return seconds, used, None

        a, b = self.compare([lambda: measure(ours), lambda: measure(peer)])
        print(f"  {a[0]:.2f} s, {a[1]:.2f} s of processor; {against} {b[0]:.2f} s, {b[1]:.2f} s")
        self.row(name, against, b[0] / a[0], ">=", required)


def main():
    parser = argparse.ArgumentParser()
    for name in ("tplstore", "plugin", "replay-trace", "trace", "image", "group", "device",
                 "directory", "json"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case")
    bench = Bench(parser.parse_args())
    bench.first_boots()
    bench.known_boots()
    bench.storms()
    bench.warm_boots()
    boot_rows.run(bench)
    with open(bench.json, "w") as file:
        json.dump(bench.rows, file, indent=1)
    print(f"Written to {bench.json}")
    sys.exit(bench.missed)


main()
