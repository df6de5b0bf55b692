"""Kills a server under VMs that never flush: death_under_load.py KILLS FOLDER TPLSTORE VOLUME... -- SERVER...

SERVER is run anew after each kill, with the listening socket FOLDER/server.socket as descriptor 3,
so that who comes back meanwhile waits. Some are killed while they recover what the last one left.
Each volume is the disk of a qemu-nbd, which comes back by itself and asks again what had no answer:
no request may fail, but for want of space where MAY_BE_FULL is set. For each block this keeps what
was acknowledged last; when nothing is under way that, and nothing else, must be read.

Now and then a version of the first disk is made, or removed, while nothing of it is under way, or the
disk is rolled back to one. What must be in a version goes to FOLDER/NUMBER.expected.
"""

import errno
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time

import nbd

BLOCK = 4096
VERSIONS_MAX = 6
kills, folder, tplstore = int(sys.argv[1]), sys.argv[2], sys.argv[3]
volumes = sys.argv[4:sys.argv.index("--")]
server_command = sys.argv[sys.argv.index("--") + 1:]
may_be_full = "MAY_BE_FULL" in os.environ
seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
print(f"seed {seed}", flush=True)
chance = random.Random(seed)
is_over = threading.Event()

path = os.path.join(folder, "server.socket")
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen(64)


class Server:
    def __init__(self):
        def hand_over():
            if listening.fileno() != 3:
                os.dup2(listening.fileno(), 3)
            os.set_inheritable(3, True)
        self.process = subprocess.Popen(
            ["sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh"] + server_command,
            preexec_fn=hand_over, close_fds=False, stderr=subprocess.PIPE, text=True)
        self.recovers = threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            if "recovered it" in line:
                self.recovers.set()
            sys.stderr.write(line)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()


def content(block, tag):
    return b"%016x%016x" % (block, tag) * (BLOCK // 32) if tag else bytes(BLOCK)


class Disk:
    """One thread of its own for each."""

    def __init__(self, volume, seed):
        self.volume = volume
        self.chance = random.Random(seed)
        self.connect()
        self.blocks = self.client.get_size() // BLOCK
        self.acked = [0] * self.blocks
        self.unsure = {}  # what a block may have as well, since a request of it has failed
        self.versions = {}
        self.busy = set()
        self.tag = 0
        self.answered = 0
        self.refused = 0
        self.rollbacks = 0
        self.error = None

    def connect(self):
        place = os.path.join(folder, f"{self.volume}.socket")
        # qemu's NBD driver, as a VM has it.
        self.vm = subprocess.Popen(
            ["qemu-nbd", "--socket", place, "--discard=unmap", "--persistent", "--image-opts",
             "driver=raw,discard=unmap,file.driver=nbd,file.server.type=unix,"
             f"file.server.path={path},file.export={self.volume},"
             "file.reconnect-delay=60,file.open-timeout=60"])
        deadline = time.monotonic() + 60
        while True:
            self.client = nbd.NBD()
            try:
                self.client.connect_uri(f"nbd+unix:///?socket={place}")
                return
            except nbd.Error:
                assert time.monotonic() < deadline, f"nobody serves {self.volume}"
                time.sleep(0.02)

    def disconnect(self):
        self.client.shutdown()
        self.vm.kill()
        self.vm.wait()
        os.unlink(os.path.join(folder, f"{self.volume}.socket"))

    def poll_until(self, count):
        while len(self.busy) > count:
            self.client.poll(-1)

    def change(self):
        kind = self.chance.choice(["write"] * 12 + ["trim", "zero"])
        count = self.chance.choice([1, 1, 1, 1, 2, 8]) if kind == "write" else \
            self.chance.choice([1, 7, 16] if may_be_full else [1, 7, 64, 512])
        first = self.chance.randrange(self.blocks - count)
        mine = range(first, first + count)
        if any(block in self.busy for block in mine):
            return
        self.busy.update(mine)
        self.tag += 1
        tag = self.tag if kind == "write" else 0

        def done(error):
            if error.value == 0:
                for block in mine:
                    self.acked[block] = tag
                    self.unsure.pop(block, None)
                self.answered += 1
            elif error.value == errno.ENOSPC and may_be_full:
                for block in mine:
                    self.unsure.setdefault(block, set()).add(tag)
                self.refused += 1
            else:
                self.error = f"{kind} of {count} blocks from {first}: {os.strerror(error.value)}"
            self.busy.difference_update(mine)
            return 1
        if kind == "write":
            data = b"".join(content(block, tag) for block in mine)
            self.client.aio_pwrite(data, first * BLOCK, done)
        elif kind == "trim":
            self.client.aio_trim(count * BLOCK, first * BLOCK, done)
        else:
            self.client.aio_zero(count * BLOCK, first * BLOCK, done)

    def compare(self, first, count):
        data = self.client.pread(count * BLOCK, first * BLOCK)
        for number in range(count):
            found = bytes(data[number * BLOCK:(number + 1) * BLOCK])
            block = first + number
            for tag in self.unsure.pop(block, ()):
                if found == content(block, tag):
                    self.acked[block] = tag
            assert found == content(block, self.acked[block]), \
                f"block {block} of {self.volume} has {found[:32]!r}, and {self.acked[block]} was acknowledged"

    def compare_all(self):
        self.poll_until(0)
        for first in range(0, self.blocks, 1024):
            self.compare(first, min(1024, self.blocks - first))

    def run(self, *arguments):
        return subprocess.run([tplstore, "version", *arguments], capture_output=True, text=True)

    def expected(self, number):
        return os.path.join(folder, f"{number}.expected")

    def make_version(self):
        self.poll_until(0)
        if self.unsure:
            self.compare_all()
        made = self.run("create", self.volume, "--json")
        # It is not there when the server was killed meanwhile, or is, and nobody was told.
        if made.returncode != 0:
            return
        number = json.loads(made.stdout)["number"]
        self.versions[number] = list(self.acked)
        with open(self.expected(number), "wb") as file:
            for block, tag in enumerate(self.acked):
                file.write(content(block, tag))

    def remove_version(self):
        number = self.chance.choice(list(self.versions))
        del self.versions[number]
        os.unlink(self.expected(number))
        self.run("rm", self.volume, str(number))

    # The VM is off meanwhile; servers go on dying.
    def roll_back(self):
        self.compare_all()
        self.disconnect()
        number = self.chance.choice(list(self.versions))
        before = self.acked
        self.acked = list(self.versions[number])
        deadline = time.monotonic() + 30
        while True:
            result = self.run("rollback", self.volume, str(number))
            if result.returncode == 0:
                self.rollbacks += 1
                break
            # Whether one has happened whose server was killed, nobody was told.
            for block, tag in enumerate(before):
                self.unsure[block] = {tag}
            if time.monotonic() > deadline or "space" in result.stderr:
                break
            time.sleep(0.02)
        if result.returncode == 0:
            self.unsure = {}
        self.connect()
        self.compare_all()
        if result.returncode != 0:
            assert self.acked in (before, self.versions[number]), "half a rollback"

    def work(self, is_first):
        next_version = time.monotonic() + 1
        while not is_over.is_set():
            for _ in range(self.chance.randrange(32)):
                self.change()
            self.poll_until(24)
            assert self.error is None, self.error
            if self.chance.random() < 0.01:
                self.poll_until(0)
                count = 64
                self.compare(self.chance.randrange(self.blocks - count), count)
            if self.chance.random() < 0.001:
                self.compare_all()
            if is_first and time.monotonic() > next_version:
                if self.versions and (self.rollbacks == 0 or self.chance.random() < 0.3):
                    self.roll_back()
                elif len(self.versions) >= VERSIONS_MAX:
                    self.remove_version()
                else:
                    self.make_version()
                next_version = time.monotonic() + self.chance.uniform(0.3, 1)
        if is_first:
            self.make_version()
        self.compare_all()
        assert self.error is None, self.error


failures = []


def live(disk, is_first):
    try:
        disk.work(is_first)
    except BaseException as error:
        failures.append(f"{type(error).__name__}: {error}")
        is_over.set()


server = Server()
disks = []
kills_while_recovering = 0
try:
    for number, volume in enumerate(volumes):
        disks.append(Disk(volume, seed + number))
    threads = [threading.Thread(target=live, args=(disk, number == 0))
               for number, disk in enumerate(disks)]
    for thread in threads:
        thread.start()
    while may_be_full and not is_over.is_set() and not any(disk.refused for disk in disks):
        is_over.wait(0.01)
    for number in range(kills):
        end = time.monotonic() + 30
        if number % 4 == 1:
            while not server.recovers.is_set() and not is_over.is_set() and time.monotonic() < end:
                server.recovers.wait(0.1)
            time.sleep(chance.uniform(0, 0.005))
            kills_while_recovering += 1
        elif chance.random() < 0.2:
            is_over.wait(chance.uniform(0, 0.06))
        else:
            # When something was answered, however busy the machine is.
            before = sum(disk.answered for disk in disks)
            while time.monotonic() < end and not is_over.is_set() and \
                    sum(disk.answered for disk in disks) < before + 100:
                is_over.wait(0.01)
            is_over.wait(chance.uniform(0, 0.3))
        if is_over.is_set():
            break
        server.kill()
        server = Server()
    is_over.wait(0.3)
    is_over.set()
    for thread in threads:
        thread.join()
    for disk in disks:
        disk.client.shutdown()
finally:
    is_over.set()
    for disk in disks:
        disk.vm.kill()
        disk.vm.wait()
    server.kill()
assert not failures, "\n".join(failures)
answered = sum(disk.answered for disk in disks)
refused = sum(disk.refused for disk in disks)
print(f"{kills} kills, {kills_while_recovering} of them in the middle of recovery; {answered} changes "
      f"answered, {refused} refused for want of space, {disks[0].rollbacks} rollbacks")
assert answered > 20 * kills, "that was no load"
assert refused > 0 or not may_be_full, "the disk was not full"
