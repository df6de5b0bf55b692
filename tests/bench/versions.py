"""The cases of versions.sh. See there.

Each case is a method of Bench whose name begins with case_; it adds rows to the table. Servers are
real nbdkit and qemu-nbd processes, the load is fio's NBD engine, and versions are made at the
server's control socket.
"""

import argparse
import glob
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import nbd

from waiting import answers, wait_for

BLOCK = 4096
MIB = 1 << 20


def uri(path, export=""):
    return f"nbd+unix:///{export}?socket={path}"


def allocated(path):
    """Bytes that a file or a folder occupies."""
    if not os.path.isdir(path):
        return os.lstat(path).st_blocks * 512
    return sum(allocated(os.path.join(path, name)) for name in os.listdir(path))


class Client:
    """One NBD connection with many requests in flight."""

    def __init__(self, where):
        self.nbd = nbd.NBD()
        if isinstance(where, list):
            self.nbd.connect_systemd_socket_activation(where)
        else:
            self.nbd.connect_uri(where)
        self.errors = 0

    def done(self, error):
        self.errors += error.value != 0
        return 1

    def write(self, blocks, data):
        for block in blocks:
            while self.nbd.aio_in_flight() >= 32:
                self.nbd.poll(-1)
            self.nbd.aio_pwrite(data, block * BLOCK, self.done)
        while self.nbd.aio_in_flight():
            self.nbd.poll(-1)
        assert not self.errors, "a write failed"

    def close(self):
        self.nbd.flush()
        self.nbd.shutdown()


class Server:
    """nbdkit with our plugin, or another server that is given as its command line."""

    def __init__(self, bench, command, path):
        self.path = path
        if os.path.exists(path):
            os.unlink(path)
        self.log = open(path + ".log", "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        bench.servers.append(self)
        wait_for(lambda: answers(path), command[0])

    def wait_until_idle(self):
        """Until it has used no processor time for half a second: upkeep has come to its end."""
        before = None
        while before != (before := self.processor_time()):
            time.sleep(0.5)

    def processor_time(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[11:13]

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()


class Control:
    """The control socket of a server, to which the store leads; a request a connection."""

    def __init__(self, store, pid):
        pattern = os.path.join(store, "servers", f"*.{pid}")
        wait_for(lambda: glob.glob(pattern), "the control socket")
        with open(glob.glob(pattern)[0]) as server:
            self.path = server.read()

    def answer(self, request):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            connection.sendall(json.dumps({"protocol": 1, **request}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                return json.loads(lines.readline())

    def ask(self, **request):
        answer = self.answer(request)
        assert answer["ok"], answer
        return answer["result"]

    def ask_when_open(self, **request):
        """As ask(), when somebody has opened the volume; nothing when nobody does for a while."""
        for _ in range(500):
            answer = self.answer(request)
            if answer["ok"]:
                return answer["result"]
            assert answer["code"] == "ENOENT_OPEN", answer
            time.sleep(0.01)
        return None

    def timed(self, **request):
        start = time.monotonic()
        result = self.ask(**request)
        return (time.monotonic() - start) * 1000, result


class Bench:
    def __init__(self, options):
        self.options = options
        self.tmp = options.directory
        self.store = os.path.join(self.tmp, "store")
        self.quick = options.quick
        self.servers = []
        self.rows = []
        self.is_missed = False
        self.data = nbd.Buffer.from_bytearray(bytearray(os.urandom(BLOCK)))
        self.tool("init", self.store)

    # --- what cases are made of

    def tool(self, *arguments):
        environment = dict(os.environ, TPLSTORE_STORE=self.store)
        return subprocess.run([self.options.tplstore, *arguments], env=environment, check=True,
                              capture_output=True, text=True).stdout

    def serve(self):
        return Server(self, ["nbdkit", "-f", "-U", os.path.join(self.tmp, "ours"),
                             self.options.plugin, self.store], os.path.join(self.tmp, "ours"))

    def serve_file(self, path):
        return Server(self, ["nbdkit", "-f", "-U", os.path.join(self.tmp, "file"), "file", path],
                      os.path.join(self.tmp, "file"))

    def control(self, server):
        return Control(self.store, server.process.pid)

    def fio(self, where, *options):
        output = os.path.join(self.tmp, "fio.json")
        subprocess.run(["fio", "--name=bench", "--thread", "--ioengine=nbd", f"--uri={where}",
                        "--bs=4k", "--iodepth=32", "--output-format=json", f"--output={output}",
                        *options], check=True, cwd=self.tmp, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        with open(output) as file:
            text = file.read()
        return json.loads(text[text.index("{"):])["jobs"][0]

    def row(self, case, value, required="", is_met=True):
        self.rows.append({"case": case, "value": value, "required": required, "met": is_met})
        self.is_missed |= not is_met
        print(f"{case:<66} {value:<42} {required:<22}"
              f"{'' if not required else 'ok' if is_met else 'MISSED'}", flush=True)

    def scaled(self, usual, quick):
        return quick if self.quick else usual

    def fill(self, volume, server, blocks, versions, seed=1):
        """Writes each block once, in random order, by so many versions."""
        order = list(range(blocks))
        random.Random(seed).shuffle(order)
        control = self.control(server)
        client = Client(uri(server.path, volume))
        per_version = blocks // versions
        for version in range(versions):
            end = blocks if version == versions - 1 else (version + 1) * per_version
            client.write(order[version * per_version:end], self.data)
            if version < versions - 1:
                control.ask(op="version-create", volume=volume)
        client.close()

    def fdatasync_ms(self, count=50):
        """What this disk takes for a small write that is made durable."""
        path = os.path.join(self.tmp, "sync")
        times = []
        with open(path, "wb") as file:
            file.write(bytes(MIB))
            os.fsync(file.fileno())
            for i in range(count):
                os.pwrite(file.fileno(), os.urandom(BLOCK), i * BLOCK)
                start = time.monotonic()
                os.fdatasync(file.fileno())
                times.append((time.monotonic() - start) * 1000)
        os.unlink(path)
        return statistics.median(times)

    # --- the cases

    def case_flat_reads(self):
        blocks = self.scaled(640_000, 64_000)
        counts = self.scaled([1, 100, 1000, 10_000], [1, 10, 100, 1000])
        server = self.serve()
        for count in counts:
            self.tool("volume", "create", f"flat{count}", "--size", str(blocks * BLOCK))
            self.fill(f"flat{count}", server, blocks, count)
        # Somebody who reads an old version keeps the volume open: no run begins with opening files.
        readers = [Client(uri(server.path, f"flat{count}@1")) for count in counts[1:]]
        seconds = self.scaled(4, 1)
        runs = {count: [] for count in counts}
        for i in range(self.scaled(9, 3)):
            for count in counts[i % len(counts):] + counts[:i % len(counts)]:
                job = self.fio(uri(server.path, f"flat{count}"), "--rw=randread", "--time_based",
                               f"--runtime={seconds}")
                if i > 0:  # the first one fills the caches
                    runs[count].append(job["read"]["iops"])
        for reader in readers:
            reader.nbd.shutdown()
        server.stop()
        base = statistics.median(runs[counts[0]])
        for count in counts:
            ratio = statistics.median(runs[count]) / base
            required = {counts[2]: 0.95, counts[3]: 0.9}.get(count)
            self.row(f"random reads of {blocks} blocks written by {count} versions",
                     f"{base * ratio / 1000:.1f}k/s, ratio {ratio:.2f}",
                     "" if required is None else f">= {required}",
                     required is None or ratio >= required)
        for count in counts:
            self.tool("volume", "rm", f"flat{count}")
        self.peers_flat_reads(base, seconds)

    def peers_flat_reads(self, ours, seconds):
        # A tenth of the blocks: each costs qcow2 a cluster of 64 KiB, and all is to be in memory.
        blocks = 64_000
        count = self.scaled(100, 10)
        order = list(range(blocks))
        random.Random(1).shuffle(order)
        parts = [order[i * blocks // count:(i + 1) * blocks // count] for i in range(count)]
        image = os.path.join(self.tmp, "chain0.qcow2")

        def qemu_img(*arguments):
            subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)

        def write(path, part):
            client = Client(["qemu-nbd", "--format=qcow2", path])
            client.write(part, self.data)
            client.close()

        qemu_img("create", "-q", "-f", "qcow2", image, str(blocks * BLOCK))
        for i, part in enumerate(parts):
            write(image, part)
            overlay = os.path.join(self.tmp, f"chain{i + 1}.qcow2")
            if i + 1 < count:
                qemu_img("create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay)
                image = overlay
        internal = os.path.join(self.tmp, "internal.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", internal, str(blocks * BLOCK))
        for i, part in enumerate(parts):
            write(internal, part)
            qemu_img("snapshot", "-q", "-c", f"s{i}", internal)
        for name, path in (("chain of overlays", image), ("internal snapshots", internal)):
            where = os.path.join(self.tmp, "qemu")
            server = Server(self, ["qemu-nbd", "--persistent", "--shared=8", "--format=qcow2",
                                   f"--socket={where}", path], where)
            rates = [self.fio(uri(where), "--rw=randread", "--time_based",
                              f"--runtime={seconds}")["read"]["iops"] for _ in range(3)]
            server.stop()
            rate = statistics.median(rates)
            self.row(f"  qcow2, {blocks} blocks, {count} versions, {name}",
                     f"{rate / 1000:.1f}k/s, {rate / ours:.2f} of ours with 1 version")
        for name in os.listdir(self.tmp):
            if name.endswith(".qcow2"):
                os.unlink(os.path.join(self.tmp, name))

    def case_version_create(self):
        counts = self.scaled([10, 10_000], [10, 500])
        server = self.serve()
        control = self.control(server)
        clients = []
        for count in counts:
            volume = f"create{count}"
            self.tool("volume", "create", volume, "--size", "1G")
            client = Client(uri(server.path, volume))
            for i in range(count):
                client.write([i], self.data)
                control.ask(op="version-create", volume=volume)
            client.nbd.flush()
            clients.append(client)
        server.wait_until_idle()
        sync_ms = self.fdatasync_ms()
        times = {count: [] for count in counts}
        for _ in range(self.scaled(200, 20)):
            for count in counts:
                time.sleep(0.02)  # idle, so that the next one is prepared
                times[count].append(control.timed(op="version-create", volume=f"create{count}")[0])
        for client in clients:
            client.close()
        medians = {count: statistics.median(times[count]) for count in counts}
        limit = 3 * sync_ms + 1
        for count in counts:
            self.row(f"version create, idle, {count} versions",
                     f"{medians[count]:.2f} ms (an fdatasync: {sync_ms:.2f} ms)",
                     f"<= {limit:.2f} ms", medians[count] <= limit)
        ratio = medians[counts[1]] / medians[counts[0]]
        self.row("  both beside each other", f"ratio {ratio:.2f}", "0.8 to 1.2",
                 ratio <= 1.2)
        server.stop()

    def stalls(self, where, seconds, name):
        """The longest requests of each 20 ms, in ms."""
        self.fio(where, "--rw=randwrite", "--time_based", f"--runtime={seconds}",
                 f"--write_lat_log={name}", "--log_avg_msec=20", "--log_max_value=1")
        with open(os.path.join(self.tmp, f"{name}_clat.1.log")) as log:
            return [int(line.split(",")[1]) / 1e6 for line in log]

    def case_create_under_load(self):
        server = self.serve()
        control = self.control(server)
        volume = "load"
        self.tool("volume", "create", volume, "--size", "1G")
        self.fill(volume, server, 1024 * MIB // BLOCK // 4, 1)
        seconds = self.scaled(45, 4)
        percentiles = {}
        creates = []
        for name in ("without", "with"):
            end = threading.Event()

            def create():
                control.ask_when_open(op="version-list", volume=volume)
                while not end.wait(0.1):
                    creates.append(control.timed(op="version-create", volume=volume)[0])

            thread = threading.Thread(target=create)
            if name == "with":
                thread.start()
            # Creates end before the load does, for they need the volume to be open.
            threading.Timer(seconds - 0.5, end.set).start()
            stalls = sorted(self.stalls(uri(server.path, volume), seconds, name))
            if name == "with":
                thread.join()
            percentiles[name] = stalls[int(len(stalls) * 0.99)]
        server.stop()
        more = percentiles["with"] - percentiles["without"]
        self.row(f"longest stalls of writers, p99, {len(creates)} creates under load",
                 f"{percentiles['with']:.1f} ms, without {percentiles['without']:.1f} ms",
                 "<= 20 ms more", more <= 20)
        self.row("  such a create takes", f"{statistics.median(creates):.1f} ms (median)")

    def case_first_writes(self):
        size = self.scaled(1024, 128) * MIB
        server = self.serve()
        self.tool("volume", "create", "first", "--size", str(size))
        self.fill("first", server, size // BLOCK, 1)
        ours, theirs, growth = [], [], []
        for _ in range(self.scaled(5, 2)):
            frozen = json.loads(self.tool("version", "create", "first", "--json"))["number"]
            before = allocated(self.store)
            job = self.fio(uri(server.path, "first"), "--rw=randwrite")
            growth.append((allocated(self.store) - before) / size)
            ours.append(job["write"]["iops"])
            self.tool("version", "rm", "first", str(frozen))
            self.tool("gc")
            path = os.path.join(self.tmp, "sparse")
            with open(path, "wb") as file:
                file.truncate(size)
            peer = self.serve_file(path)
            theirs.append(self.fio(uri(peer.path), "--rw=randwrite")["write"]["iops"])
            peer.stop()
            os.unlink(path)
        server.stop()
        ratio = statistics.median(ours) / statistics.median(theirs)
        self.row("first writes after a version, beside a sparse file being filled",
                 f"{statistics.median(ours) / 1000:.1f}k/s, ratio {ratio:.2f}", ">= 0.9",
                 ratio >= 0.9)
        self.row("  space that they use", f"{max(growth):.3f} of the bytes written", "<= 1.1",
                 max(growth) <= 1.1)

    def case_keep_last_1(self):
        blocks = self.scaled(65536, 8192)
        cycles = self.scaled(200, 30)
        server = self.serve()
        control = self.control(server)
        self.tool("volume", "create", "cycles", "--size", str(blocks * BLOCK))
        self.fill("cycles", server, blocks, 1)
        folder = os.path.join(self.store, "volumes", self.uuid_of("cycles"))
        client = Client(uri(server.path, "cycles"))
        chance = random.Random(2)
        used = []
        previous = None
        for _ in range(cycles):
            number = control.ask(op="version-create", volume="cycles")["number"]
            client.write([chance.randrange(blocks) for _ in range(2000)], self.data)
            if previous is not None:
                control.ask(op="version-rm", volume="cycles", versions=[str(previous)])
            previous = number
            control.ask(op="volume-reclaim", volume="cycles")
            used.append(allocated(folder))
        client.close()
        server.stop()
        tenth = max(1, cycles // 10)
        first, last = max(used[tenth:2 * tenth]), max(used[-tenth:])
        self.row(f"keep-last-1 for {cycles} cycles of 2,000 random overwrites",
                 f"{first / MIB:.1f} MiB, at the end {last / MIB:.1f} MiB", "flat (<= 1.02)",
                 last <= first * 1.02)
        self.row("  a disk and one version's changes are",
                 f"{(blocks + 2000) * BLOCK / MIB:.1f} MiB")

    def case_delete_in_the_middle(self):
        blocks, versions = self.scaled(640_000, 32_000), self.scaled(1000, 50)
        server = self.serve()
        control = self.control(server)
        self.tool("volume", "create", "middle", "--size", str(blocks * BLOCK))
        self.fill("middle", server, blocks, versions)
        where = uri(server.path, "middle")
        client = Client(where)
        took = control.timed(op="version-rm", volume="middle", versions=[str(versions // 2)])[0]
        client.close()
        self.row(f"delete the middle one of {versions} versions, until answered", f"{took:.1f} ms",
                 "<= 50 ms", took <= 50)
        # A version that replaced everything, so that each removal has much to punch.
        rates = {"without": [], "with": []}
        doomed = list(range(versions // 2 + 1, versions - 1))
        for _ in range(self.scaled(4, 2)):
            for name in ("without", "with"):
                end = threading.Event()

                def remove():
                    control.ask_when_open(op="version-list", volume="middle")
                    while not end.wait(0.25):
                        numbers = [str(doomed.pop(0)) for _ in range(min(20, len(doomed)))]
                        if numbers:
                            control.ask(op="version-rm", volume="middle", versions=numbers)

                thread = threading.Thread(target=remove)
                if name == "with":
                    thread.start()
                seconds = self.scaled(4, 2)
                threading.Timer(seconds - 0.5, end.set).start()
                job = self.fio(where, "--rw=randwrite", "--time_based", f"--runtime={seconds}")
                rates[name].append(job["write"]["iops"])
                if name == "with":
                    thread.join()
        server.stop()
        ratio = statistics.median(rates["with"]) / statistics.median(rates["without"])
        self.row("  writers while 80 versions a second are deleted, beside none",
                 f"{statistics.median(rates['with']) / 1000:.1f}k/s, ratio {ratio:.2f}", ">= 0.9",
                 ratio >= 0.9)

    def case_terabyte_with_many_versions(self):
        versions = self.scaled(10_000, 300)
        server = self.serve()
        control = self.control(server)
        self.tool("volume", "create", "tera", "--size", "1T")
        client = Client(uri(server.path, "tera"))
        chance = random.Random(3)
        for _ in range(versions):
            client.write([chance.randrange((1 << 40) // BLOCK) for _ in range(64)], self.data)
            control.ask(op="version-create", volume="tera")
        middle = versions // 2
        times = [control.timed(op="version-diff", volume="tera", **{"from": str(middle + i)},
                               to=str(middle + i + 1)) for i in range(20)]
        diff_ms = statistics.median(time for time, _ in times)
        assert all(result["data_bytes"] == 64 * BLOCK for _, result in times)
        self.row(f"diff of two neighbours of {versions} versions of a 1 TiB volume",
                 f"{diff_ms:.1f} ms", "<= 50 ms", diff_ms <= 50)
        folder = os.path.join(self.store, "volumes", self.uuid_of("tera"))
        opened = []
        for _ in range(5):
            client.write([chance.randrange((1 << 40) // BLOCK) for _ in range(1000)], self.data)
            client.nbd.flush()
            server.stop(signal.SIGKILL)
            server = self.serve()
            start = time.monotonic()
            client = Client(uri(server.path, "tera"))
            client.nbd.pread(BLOCK, 0)
            opened.append((time.monotonic() - start) * 1000)
        opened_ms = statistics.median(opened)
        self.row(f"opening a volume with {versions} versions after kill -9",
                 f"{opened_ms:.0f} ms", "<= 500 ms", opened_ms <= 500)
        logs = sum(allocated(os.path.join(folder, name)) for name in os.listdir(folder)
                   if name.startswith("map."))
        self.row("  its map log, as it stands", f"{logs / MIB:.0f} MiB")
        client.close()
        server.stop()

    def case_fork(self):
        intervals = self.scaled(1 << 20, 1 << 16)
        server = self.serve()
        control = self.control(server)
        self.tool("volume", "create", "parent", "--size", str(2 * intervals * BLOCK))
        client = Client(uri(server.path, "parent"))
        client.write(range(0, 2 * intervals, 2), self.data)
        control.ask(op="version-create", volume="parent")
        took = [control.timed(op="volume-fork", volume="parent", version="1", name=f"fork{i}",
                              size=0)[0] for i in range(7)]
        client.close()
        server.stop()
        fork_ms = statistics.median(took)
        self.row(f"fork of a volume with {intervals} intervals that is open", f"{fork_ms:.1f} ms",
                 "<= 50 ms", fork_ms <= 50)

    def case_metadata(self):
        directory = os.path.join(self.tmp, "maps")
        for name in ("map0", "map1", "map2", "map3", "large"):
            os.makedirs(os.path.join(directory, name))
        result = json.loads(subprocess.run(
            [self.options.map_metadata, directory, str(self.scaled(1, 16))], check=True,
            capture_output=True, text=True).stdout)
        limits = [(4, 4), (230, 230), (None, 1024), (None, 700)]
        for case, (memory_mib, disk_mib) in zip(result["cases"], limits):
            memory, disk = case["memory_bytes"] / MIB, case["disk_bytes"] / MIB
            is_met = (disk <= disk_mib and (memory_mib is None or memory <= memory_mib) and
                      case["disk_bytes"] < min(case["qcow2_bytes"], case["flat_bytes"]))
            self.row(f"metadata of 1 TiB, {case['case']}",
                     f"{memory:.1f} MiB in memory, {disk:.1f} MiB on disk",
                     f"<= {disk_mib} MiB, peers'", is_met)
            self.row("  qcow2's L2 tables; a flat map of each version",
                     f"{case['qcow2_bytes'] / MIB:.0f} MiB; {case['flat_bytes'] / MIB:.0f} MiB")
        shutil.rmtree(directory)

    def uuid_of(self, volume):
        with open(os.path.join(self.store, "names", volume)) as file:
            return file.read().strip()


def main():
    parser = argparse.ArgumentParser()
    for name in ("tplstore", "plugin", "map-metadata", "directory", "json"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--case", default="")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    bench = Bench(options)
    try:
        for name in [name for name in Bench.__dict__ if name.startswith("case_")]:
            if re.search(options.case, name[5:].replace("_", " ")):
                getattr(bench, name)()
    finally:
        for server in bench.servers:
            if server.process.poll() is None:
                server.stop(signal.SIGKILL)
    with open(options.json, "w") as file:
        json.dump(bench.rows, file, indent=2)
    return 1 if bench.is_missed else 0


sys.exit(main())
