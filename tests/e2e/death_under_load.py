"""Kills a server under VMs that never flush: death_under_load.py KILLS SOCKET VERSION-COMMAND URI... -- SERVER...

SERVER is run anew after each kill, with the listening socket SOCKET as descriptor 3, so that who
comes back meanwhile waits. Each URI is a disk of a process that comes back by itself and asks again
what had no answer: no request may fail. For each block this keeps what was acknowledged last; when
nothing is under way that, and nothing else, must be read. Now and then VERSION-COMMAND makes a
version of the first disk while nothing of it is under way; what must be in it goes to NUMBER.expected
beside the socket.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import nbd

BLOCK = 4096
kills, path, version_command = int(sys.argv[1]), sys.argv[2], sys.argv[3]
uris = sys.argv[4:sys.argv.index("--")]
server_command = sys.argv[sys.argv.index("--") + 1:]
seed = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 32)))
print(f"seed {seed}", flush=True)
chance = random.Random(seed)
is_over = threading.Event()

listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen(64)


def start():
    def hand_over():
        if listening.fileno() != 3:
            os.dup2(listening.fileno(), 3)
        os.set_inheritable(3, True)
    return subprocess.Popen(
        ["sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh"] + server_command,
        preexec_fn=hand_over, close_fds=False)


def content(block, tag):
    return b"%016x%016x" % (block, tag) * (BLOCK // 32) if tag else bytes(BLOCK)


def connect(uri):
    deadline = time.monotonic() + 60
    while True:
        client = nbd.NBD()
        try:
            client.connect_uri(uri)
            return client
        except nbd.Error:
            assert time.monotonic() < deadline, f"nobody serves {uri}"
            time.sleep(0.02)


class Disk:
    """One thread of its own for each."""

    def __init__(self, uri, seed):
        self.chance = random.Random(seed)
        self.client = connect(uri)
        self.blocks = self.client.get_size() // BLOCK
        self.acked = [0] * self.blocks
        self.busy = set()
        self.tag = 0
        self.answered = 0
        self.error = None

    def poll_until(self, count):
        while len(self.busy) > count:
            self.client.poll(-1)

    def change(self):
        kind = self.chance.choice(["write"] * 12 + ["trim", "zero"])
        count = self.chance.choice([1, 1, 1, 1, 2, 8]) if kind == "write" else \
            self.chance.choice([1, 7, 64, 512])
        first = self.chance.randrange(self.blocks - count)
        mine = range(first, first + count)
        if any(block in self.busy for block in mine):
            return
        self.busy.update(mine)
        self.tag += 1
        tag = self.tag if kind == "write" else 0

        def done(error):
            if error.value:
                self.error = f"{kind} of {count} blocks from {first}: {os.strerror(error.value)}"
            for block in mine:
                self.acked[block] = tag
            self.busy.difference_update(mine)
            self.answered += 1
            return 1
        if kind == "write":
            data = b"".join(content(block, tag) for block in mine)
            self.client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), first * BLOCK, done)
        elif kind == "trim":
            self.client.aio_trim(count * BLOCK, first * BLOCK, done)
        else:
            self.client.aio_zero(count * BLOCK, first * BLOCK, done)

    def compare(self, first, count):
        data = self.client.pread(count * BLOCK, first * BLOCK)
        for number in range(count):
            found = bytes(data[number * BLOCK:(number + 1) * BLOCK])
            block = first + number
            assert found == content(block, self.acked[block]), \
                f"block {block} has {found[:32]!r}, and {self.acked[block]} was acknowledged"

    def compare_all(self):
        self.poll_until(0)
        for first in range(0, self.blocks, 1024):
            self.compare(first, min(1024, self.blocks - first))

    def make_version(self):
        self.poll_until(0)
        made = subprocess.run(version_command, shell=True, capture_output=True, text=True)
        # It is not there when the server was killed meanwhile, or is, and nobody was told.
        if made.returncode == 0:
            with open(os.path.join(os.path.dirname(path), made.stdout.strip() + ".expected"), "wb") as file:
                for block, tag in enumerate(self.acked):
                    file.write(content(block, tag))

    def work(self, makes_versions):
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
            if makes_versions and time.monotonic() > next_version:
                self.make_version()
                next_version = time.monotonic() + self.chance.uniform(0.5, 2)
        if makes_versions:
            self.make_version()
        self.compare_all()
        assert self.error is None, self.error


failures = []


def live(disk, makes_versions):
    try:
        disk.work(makes_versions)
    except BaseException as error:
        failures.append(f"{type(error).__name__}: {error}")
        is_over.set()


server = start()
try:
    # The processes that the disks are of wait for the server themselves.
    disks = [Disk(uri, seed + number) for number, uri in enumerate(uris)]
    threads = [threading.Thread(target=live, args=(disk, number == 0))
               for number, disk in enumerate(disks)]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        # Some lives end before they have begun, or in the middle of taking over; the others when
        # something was answered, however busy the machine is.
        before = sum(disk.answered for disk in disks)
        end = time.monotonic() + 30
        lives_on = chance.random() >= 0.3
        while lives_on and time.monotonic() < end and not is_over.is_set() and \
                sum(disk.answered for disk in disks) < before + 100:
            is_over.wait(0.01)
        is_over.wait(chance.uniform(0, 0.3 if lives_on else 0.06))
        if is_over.is_set():
            break
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        server = start()
    is_over.wait(0.3)
    is_over.set()
    for thread in threads:
        thread.join()
    for disk in disks:
        disk.client.shutdown()
finally:
    is_over.set()
    server.kill()
    server.wait()
assert not failures, "\n".join(failures)
answered = sum(disk.answered for disk in disks)
print(f"{kills} kills, {answered} changes answered")
assert answered > 20 * kills, "that was no load"
