"""Ways to serve the disks of VMs, as boot_storm.py compares them."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from waiting import answers, wait_for


class Side:
    """A way to serve the disks of some VMs. make() prepares new disks, serve() starts what serves
    them, within the limits, and gives their URIs."""

    def __init__(self, bench):
        self.bench = bench
        self.processes = []

    def start(self, command, path, slow=True):
        """Starts a server of the socket `path`."""
        if os.path.exists(path):
            os.unlink(path)
        log = open(f"{self.bench.directory}/server.log", "ab")
        limit = f"echo $$ >{self.bench.group}/cgroup.procs; " if slow else ""
        process = subprocess.Popen(["sh", "-c", limit + 'exec "$@"', "sh"] + command, stdout=log,
                                   stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        wait_for(lambda: process.poll() is not None or answers(path), "a server's start",
                 60)
        if process.poll() is not None:
            sys.exit(open(f"{self.bench.directory}/server.log").read())
        return path

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait()
        self.processes = []

    def cpu_seconds(self):
        total = 0
        for process in self.processes:
            with open(f"/proc/{process.pid}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


class Tplstore(Side):
    def __init__(self, bench, *options, store="store", slow=True):
        super().__init__(bench)
        self.options = options
        self.origins = [("--template", "golden")]
        self.store = f"{bench.directory}/{store}"
        self.slow = slow

    def run(self, *command):
        result = subprocess.run([self.bench.tplstore, "-s", self.store] + list(command),
                                capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"tplstore {' '.join(command)}: {result.stderr}")
        return result.stdout

    def make(self, count):
        """Volumes vm0 and so on of what `origins` names in turn."""
        for volume in json.loads(self.run("volume", "list", "--json")):
            if volume["name"].startswith("vm"):
                self.run("volume", "rm", volume["name"])
        for i in range(count):
            self.run("volume", "create", f"vm{i}", *self.origins[i % len(self.origins)])

    def serve(self, count):
        path = f"{self.bench.directory}/tplstore.sock"
        self.start(["nbdkit", "-f", "-U", path, self.bench.plugin, self.store] +
                   list(self.options), path, self.slow)
        return [f"nbd+unix:///vm{i}?socket={path}" for i in range(count)]

    def stats(self):
        return json.loads(self.run("stats", "--json"))

    def forget(self):
        """What was learnt of boots; not what the import has written for the first ones."""
        for path in glob.glob(f"{self.store}/boot/*") + glob.glob(f"{self.store}/packs/*"):
            if not path.endswith(".tables"):
                os.unlink(path)

    def boots(self):
        """What is known, by names."""
        return {boot["name"]: boot for boot in json.loads(self.run("boot", "show", "--json"))}

    def learn_each(self, count, *options, packs=0):
        """Lets it see one boot of each of so many volumes, as they are, from cold and within the
        limits: what is slow to read gets a pack. Waits a while for so many of them."""
        learner = Tplstore(self.bench, *self.options, "boot-quiet=1",
                           store=os.path.basename(self.store))
        self.bench.drop_caches()
        guests = subprocess.Popen([self.bench.replay_trace, "--hold", *options, self.bench.trace] +
                                  learner.serve(count), stdin=subprocess.PIPE,
                                  stdout=subprocess.DEVNULL)

        def has_learnt():
            boots = self.boots()
            return all(boots[f"vm{i}"]["windows"] and boots[f"vm{i}"]["windows"][-1]["reason"]
                       for i in range(count))

        wait_for(has_learnt, "learning", 240)
        end = time.monotonic() + 30
        while time.monotonic() < end and packs > sum(
                boot["pack"]["state"] == "ready" for boot in self.boots().values()):
            time.sleep(0.2)
        guests.communicate()
        learner.stop()

    def learn(self, pack):
        """Lets it see boots until it knows how the template boots, and has a pack of that."""
        self.forget()
        learner = Tplstore(self.bench, "boot-quiet=1",
                           *[option for option in self.options if option.startswith("packs=")],
                           store=os.path.basename(self.store))

        def template():
            return learner.boots()["golden"]

        for boot in range(1, 6):
            learner.make(1)
            uris = learner.serve(1)
            self.bench.drop_caches()
            guest = subprocess.Popen([self.bench.replay_trace, "--hold", self.bench.trace] + uris,
                                     stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            wait_for(lambda: template()["profile"] and template()["profile"]["boots"] >= boot,
                     "learning", 60)
            if pack and boot > 2:
                end = time.monotonic() + 10
                while template()["pack"]["state"] != "ready" and time.monotonic() < end:
                    time.sleep(0.1)
            has_pack = template()["pack"]["state"] == "ready"
            guest.communicate()
            learner.stop()
            if has_pack or not pack:
                return
        sys.exit("no pack was made in five boots")


class Overlays(Side):
    """qcow2 overlays of one image, each served by a qemu-nbd."""

    def __init__(self, bench, cache):
        super().__init__(bench)
        self.cache = cache

    def make(self, count):
        for i in range(count):
            path = f"{self.bench.directory}/overlay{i}.qcow2"
            if os.path.exists(path):
                os.unlink(path)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b",
                            self.bench.image, path], check=True)

    def serve(self, count):
        uris = []
        for i in range(count):
            path = f"{self.bench.directory}/overlay{i}.sock"
            self.start(["qemu-nbd", "-t", "-e", "8", "-f", "qcow2", f"--cache={self.cache}",
                        "--aio=io_uring", "-k", path, f"{self.bench.directory}/overlay{i}.qcow2"],
                       path)
            uris.append(f"nbd+unix:///?socket={path}")
        return uris


class Nbdkit(Side):
    """Plugins of nbdkit's own, with one disk for all."""

    def __init__(self, bench, *arguments, slow=True, copies=False):
        super().__init__(bench)
        self.arguments = arguments
        self.slow = slow
        self.copies = copies  # as many disks as VMs

    def make(self, count):
        if "file" in self.arguments:
            shutil.copyfile(self.bench.image, f"{self.bench.directory}/copy.raw")

    def serve(self, count):
        uris = []
        for i in range(count if self.copies else 1):
            path = f"{self.bench.directory}/nbdkit{i}.sock"
            self.start(["nbdkit", "-f", "-U", path] + list(self.arguments), path, self.slow)
            uris.append(f"nbd+unix:///?socket={path}")
        return uris if self.copies else uris * count
