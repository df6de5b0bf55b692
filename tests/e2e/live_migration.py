"""Moves a running guest from one qemu to another while it writes: live_migration.py GUEST ROUNDS

GUEST is what examples/make-guest.sh has made; the store that $store names has the volume vm1 with
it. ROUNDS 0 goes through one case of each kind; else there are so many migrations each way, between
a Unix socket and TCP, and half as many that are cancelled.

The guest writes records one after the other, each known to the byte by its number: one to the end
of a file, and one over an old one in another file. Both are durable (O_DSYNC) before it says "ack"
and the number on its console. Beside that it writes what nobody flushes, and removes it, which the
file system tells the disk. After a migration all that was acknowledged must be on the disk, and the
guest's file system whole.

qemu emulates the guest's processor, and loses a write now and then, to a page of its memory that is
just being sent: its kernel finds its timers in disorder then, and panics. What a kernel has in memory
is no matter of disks, so this ends with 3, and is worth another try.
"""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import nbd

tmp = os.environ["tmp"]
DISK_PATH = f"{tmp}/disk.raw"
WRITER = r"""perl -e 'use Fcntl; $| = 1; sub lost { print "LOST $n: @_ $!\n"; exit }
sysopen R, "/records", O_WRONLY|O_CREAT|O_APPEND|O_DSYNC or lost;
sysopen S, "/slots", O_WRONLY|O_CREAT|O_DSYNC or lost;
for ($n = (-s R) / 512;; $n++) {
$b = sprintf("%015d\n", $n) x 32; syswrite(R, $b) == 512 or lost;
sysseek S, ($n % 200) * 4096, 0; syswrite(S, $b x 8) == 4096 or lost; print "ack $n\n";
if ($n % 20 == 0) { unlink "/bulk"; open B, ">/bulk"; print B $b x 3000; close B }
select undef, undef, undef, .01 }'""".replace("\n", " ")
GUEST_LOST = 3
READING = {"command-line": 'qemu-io net "read 0 512"'}


def note(text):
    print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)


def wait_for(seconds, what, condition):
    """Waits for what the condition gives, until it is something."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{seconds} s have passed without: {what}"
        time.sleep(0.01)


def start(command, **options):
    """A process that ends with this one, however that ends."""
    set_option = ctypes.CDLL(None).prctl
    death_signal = 1  # PR_SET_PDEATHSIG
    return subprocess.Popen(command, **options,
                            preexec_fn=lambda: set_option(death_signal, signal.SIGKILL))


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def tplstore(*arguments):
    return run(os.environ["TPLSTORE"], *arguments)


class Server:
    """nbdkit on a Unix socket and on TCP at once. Started anew it is found at the same places."""

    def __init__(self, *arguments, name="server"):
        self.path = f"{tmp}/{name}.socket"
        self.log = f"{tmp}/{name}.log"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.arguments = arguments
        self.start()

    def start(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        with socket.socket(socket.AF_UNIX) as local, \
                socket.create_server(("127.0.0.1", self.port)) as tcp:
            local.bind(self.path)
            local.listen()
            descriptors = (local.fileno(), tcp.fileno())
            environment = dict(os.environ, LISTEN_FDS="2")
            if os.environ.get("TPLSTORE_PRELOAD"):
                environment["LD_PRELOAD"] = os.environ["TPLSTORE_PRELOAD"]
            with open(self.log, "a") as log:
                self.process = start(
                    ["bash", "-c", 'exec 100<&$0 101<&$1; exec 3<&100 4<&101 100<&- 101<&-; '
                     'shift; LISTEN_PID=$$ exec nbdkit --foreground "$@"',
                     *map(str, descriptors), *self.arguments],
                    env=environment, pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log)

    def kill_and_start(self):
        self.process.kill()
        self.process.wait()
        self.start()

    def stop(self):
        self.process.terminate()
        assert self.process.wait(60) == 0, "the server ended badly"

    def said(self):
        with open(self.log) as log:
            return log.read()

    def options(self, export, transport):
        """What a -blockdev needs."""
        server = (f"server.type=unix,server.path={self.path}" if transport == "unix" else
                  f"server.type=inet,server.host=127.0.0.1,server.port={self.port}")
        return f"driver=nbd,{server},export={export},reconnect-delay=60"

    def uri(self, export, transport="unix"):
        return (f"nbd+unix:///{export}?socket={self.path}" if transport == "unix" else
                f"nbd://127.0.0.1:{self.port}/{export}")


class Qemu:
    """One qemu, that boots a guest or waits for one."""

    count = 0

    def __init__(self, guest, drive, cache="none", waits=False):
        Qemu.count += 1
        self.name = f"{tmp}/qemu.{Qemu.count}"
        caching = {"none": "cache.direct=on,cache.no-flush=off",
                   "unsafe": "cache.direct=off,cache.no-flush=on"}[cache]
        self.console = f"{self.name}.console"
        with open(self.console, "w") as console, open(f"{self.name}.log", "w") as log:
            self.process = start(
                ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults",
                 "-display", "none", "-no-reboot", "-serial", "stdio",
                 "-qmp", f"unix:{self.name}.qmp,server=on,wait=off",
                 "-kernel", f"{guest}/vmlinuz", "-initrd", f"{guest}/initrd",
                 "-append", "console=ttyS0 root=/dev/vda rw quiet panic=-1 no_timer_check",
                 "-blockdev", f"node-name=net,{drive},{caching},discard=unmap",
                 "-blockdev", f"node-name=disk,driver=raw,file=net,{caching},discard=unmap",
                 "-device", "virtio-blk-pci,drive=disk",
                 *(["-incoming", "defer"] if waits else [])],
                stdin=subprocess.PIPE, stdout=console, stderr=log)
        self.socket = socket.socket(socket.AF_UNIX)
        wait_for(60, f"{self.name} answers", self.is_connected)
        self.lines = self.socket.makefile()
        self.lines.readline()  # its greeting
        self.ask("qmp_capabilities")

    def is_connected(self):
        assert self.process.poll() is None, open(f"{self.name}.log").read()
        try:
            self.socket.connect(f"{self.name}.qmp")
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def tell(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())

    def ask(self, command, **arguments):
        self.tell(command, **arguments)
        for line in self.lines:
            answer = json.loads(line)
            if "event" not in answer:
                return answer["return"]
        raise EOFError(f"{self.name} has ended: " + open(f"{self.name}.log").read())

    def enable(self, capability, state=True):
        self.ask("migrate-set-capabilities",
                 capabilities=[{"capability": capability, "state": state}])

    def state(self):
        return self.ask("query-status")["status"]

    def migration(self):
        return self.ask("query-migrate").get("status")

    def say(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def said(self):
        with open(self.console, errors="replace") as console:
            return console.read()

    def quit(self):
        self.ask("quit")
        self.process.wait(60)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Vm:
    """The guest, in whichever qemu it is."""

    def __init__(self, guest, drive):
        self.before = ""  # what it said in earlier ones
        self.guest = guest
        self.qemu = Qemu(guest, drive)
        wait_for(240, "the guest is up", lambda: "GUEST up" in self.said())
        self.qemu.say("run " + WRITER)
        self.goes_on()

    def said(self):
        return self.before + self.qemu.said()

    def acknowledged(self):
        """The number of its last record that is durable."""
        found = re.findall(r"^ack (\d+)\r?\n", self.said(), re.MULTILINE)
        return int(found[-1]) if found else -1

    def goes_on(self, seconds=60):
        """Waits until it writes now, and has lost nothing as far as it knows."""
        # What is on the way now is no sign.
        last = self.acknowledged() + 3

        def has_gone_on():
            if "Kernel panic - not syncing: Fatal exception" in self.qemu.said():
                print(self.qemu.said()[-3000:])
                sys.exit(GUEST_LOST)
            return self.acknowledged() > last
        wait_for(seconds, "the guest goes on", has_gone_on)
        assert "LOST" not in self.said(), self.said()[-500:]

    def stands_still(self, meanwhile):
        """qemu flushes the disk first: a server that is killed takes along what is not."""
        self.qemu.ask("stop")
        meanwhile()
        self.qemu.ask("cont")
        self.goes_on()

    def begin_move(self, destination, **parameters):
        path = f"{destination.name}.migration"
        destination.ask("migrate-incoming", uri=f"unix:{path}")
        self.qemu.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 30, **parameters})
        self.qemu.ask("migrate", uri=f"unix:{path}")

    def end_move(self, destination):
        """Returns the qemu that it has left, and for how many milliseconds it stood still."""
        def has_moved():
            state = self.qemu.migration()
            assert state not in ("failed", "cancelled"), self.qemu.ask("query-migrate")
            return state == "completed"
        wait_for(120, "the migration ends", has_moved)
        source, self.qemu = self.qemu, destination
        self.before += source.said()
        self.goes_on()
        assert self.qemu.state() == "running"
        return source, source.ask("query-migrate")["downtime"]


class Case:
    """What the cases share: one server, one guest, and tokens that are new each time."""

    def __init__(self, guest, transport="unix"):
        self.guest = guest
        self.server = Server(os.environ["TPLSTORE_PLUGIN"], os.environ["store"])
        self.tokens = 0
        self.boot(transport)

    def new_export(self):
        self.tokens += 1
        return f"vm1;writer=run-{self.tokens}"

    def lock(self):
        return json.loads(tplstore("lock", "show", "vm1", "--json"))

    def boot(self, transport):
        self.vm = Vm(self.guest, self.server.options(self.new_export(), transport))
        self.bystander_is_refused()
        note(f"a guest runs, over {transport}")

    def bystander_is_refused(self):
        for export in ("vm1", "vm1;writer=bystander"):
            client = nbd.NBD()
            try:
                client.connect_uri(self.server.uri(export))
            except nbd.Error:
                continue
            raise AssertionError(f"{export} was let in: {self.lock()}")

    def stand_by(self, transport="unix", cache="none"):
        export = self.new_export()
        drive = self.server.options(export, transport)
        tplstore("volume", "handover", "vm1", "--to", export.partition("=")[2])
        self.bystander_is_refused()
        destination = Qemu(self.guest, drive, cache, waits=True)
        self.bystander_is_refused()
        lock = self.lock()
        assert lock["state"] == "handover" and lock["handover"]["standby"], lock
        return destination

    def has_moved(self):
        lock = self.lock()
        assert lock["state"] == "held" and lock["writer"]["token"] == f"run-{self.tokens}", lock
        self.bystander_is_refused()

    def move(self, transport="unix", cache="none"):
        """Returns the source, which is there still, and the downtime."""
        destination = self.stand_by(transport, cache)
        self.vm.begin_move(destination)
        self.bystander_is_refused()
        moved = self.vm.end_move(destination)
        self.has_moved()
        return moved

    def end_source(self, source):
        """Its requests are refused, and so is the flush that it ends with."""
        source.ask("human-monitor-command", **READING)
        source.quit()
        assert "transport endpoint shutdown" in source.said(), source.said()[-500:]
        self.vm.goes_on()

    def cancel(self, transport, when):
        destination = self.stand_by(transport)
        is_late = when == "late"
        # Without it qemu would be done before it can be told.
        self.vm.qemu.enable("pause-before-switchover", is_late)
        self.vm.begin_move(destination, **({} if is_late else {"max-bandwidth": 1 << 20}))
        at = "pre-switchover" if is_late else "active"
        wait_for(60, at, lambda: self.vm.qemu.migration() == at)
        self.vm.qemu.ask("migrate_cancel")
        wait_for(60, "it is cancelled", lambda: self.vm.qemu.migration() == "cancelled")
        self.vm.qemu.enable("pause-before-switchover", False)
        destination.process.wait(60)
        wait_for(60, "it runs", lambda: self.vm.qemu.state() == "running")
        self.vm.goes_on()
        wait_for(10, "the hand-over is off", lambda: self.lock()["handover"] is None)
        lock = self.lock()
        assert lock["state"] == "held" and lock["writer"]["token"] != f"run-{self.tokens}", lock
        self.bystander_is_refused()

    def move_by_post_copy(self):
        """Nothing when the host does not allow it."""
        destination = self.stand_by()
        try:
            for qemu in (destination, self.vm.qemu):
                qemu.enable("postcopy-ram")
        except KeyError:
            destination.quit()
            return None
        self.vm.begin_move(destination, **{"max-bandwidth": 1 << 20})
        wait_for(60, "it moves", lambda: self.vm.qemu.migration() == "active")
        self.vm.qemu.ask("migrate-start-postcopy")
        moved = self.vm.end_move(destination)
        destination.enable("postcopy-ram", False)
        self.has_moved()
        return moved

    def check_disk(self):
        number = self.vm.acknowledged()
        run("nbdcopy", self.server.uri("vm1@current"), DISK_PATH)
        # The journal of a guest that runs is not empty.
        for options, status in (("-fp", 1), ("-fn", 0)):
            check = subprocess.run(["e2fsck", options, DISK_PATH], capture_output=True, text=True)
            assert check.returncode <= status, check.stdout + check.stderr
        for name in ("records", "slots"):
            run("debugfs", "-R", f"dump /{name} {tmp}/{name}", DISK_PATH)

        def content(record):
            return b"%015d\n" % record * 32
        with open(f"{tmp}/records", "rb") as file:
            records = file.read()
        with open(f"{tmp}/slots", "rb") as file:
            slots = file.read()
        count = len(records) // 512
        assert count > number, f"record {number} was acknowledged, and there are {count}"
        assert records[:count * 512] == b"".join(map(content, range(count))), "other records"
        # What was not acknowledged may be there, or a part of it.
        for record in range(max(0, number - 198), number + 1):
            at = record % 200 * 4096
            later = range(record, count + 1, 200)
            assert any(slots[at:at + 4096] == content(one) * 8 for one in later), \
                f"record {record} is not there"
        return number

    def end(self, how):
        wait_for(10, "the volume is free", lambda: self.lock()["state"] == "free")
        number = self.check_disk()
        self.server.stop()
        note(f"{how}; all is there of {number} records")


def one_of_each(guest):
    case = Case(guest)
    source, _ = case.move("unix")
    case.end_source(source)
    case.check_disk()
    note("moved over the Unix socket")

    case.cancel("unix", "early")
    case.cancel("unix", "late")
    note("cancelled, early and late")
    source, _ = case.move("tcp")
    case.end_source(source)
    source, _ = case.move("tcp")
    case.end_source(source)
    note("moved after that, to TCP and over TCP")

    destination = case.stand_by("tcp")
    case.vm.stands_still(case.server.kill_and_start)
    case.vm.begin_move(destination)
    source, _ = case.vm.end_move(destination)
    case.has_moved()
    note("moved after the server was killed")
    case.vm.stands_still(case.server.kill_and_start)
    source.tell("human-monitor-command", **READING)
    wait_for(60, "it is refused", lambda: "others have changed it since" in case.server.said())
    source.kill()
    case.vm.goes_on()
    case.check_disk()
    note("the server was killed after a move")

    destination = case.stand_by("unix")
    case.vm.begin_move(destination, **{"max-bandwidth": 1 << 20})
    wait_for(60, "it moves", lambda: case.vm.qemu.migration() == "active")
    case.vm.stands_still(case.server.kill_and_start)
    case.bystander_is_refused()
    case.vm.qemu.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
    source, _ = case.vm.end_move(destination)
    case.has_moved()
    case.end_source(source)
    case.check_disk()
    note("the server was killed in a move")

    source, _ = case.move("unix", cache="unsafe")
    case.end_source(source)
    source, _ = case.move("unix")
    case.end_source(source)
    note("moved to cache=unsafe and from it")

    moved = case.move_by_post_copy()
    if moved:
        case.end_source(moved[0])
    note("moved by post-copy" if moved else "no post-copy on this host")

    source, _ = case.move("unix")
    # Nobody should do that.
    length = len(source.said())
    source.ask("cont")
    wait_for(60, "it cannot write", lambda: "LOST" in source.said()[length:])
    assert "ack" not in source.said()[length:], source.said()[length:]
    source.kill()
    case.vm.goes_on()
    case.has_moved()
    note("a source that was run again could write nothing, and was killed")

    destination = case.stand_by("unix")
    case.vm.begin_move(destination, **{"max-bandwidth": 1 << 20})
    wait_for(60, "it moves", lambda: case.vm.qemu.migration() == "active")
    case.vm.qemu.kill()
    destination.process.wait(60)
    case.end("the source was killed before the move")


def many(guest, rounds):
    case = Case(guest)
    downtimes = {"unix": [], "tcp": []}
    for number in range(rounds):
        for transport in ("tcp", "unix"):
            source, downtime = case.move(transport)
            downtimes[transport].append(downtime)
            case.end_source(source)
            case.check_disk()
        if number % 2:
            case.cancel("tcp" if number % 4 == 1 else "unix", "late" if number % 3 else "early")
            case.check_disk()
        note(f"round {number + 1}")
    for transport, times in downtimes.items():
        note(f"to {transport}: {len(times)} moved, the guest stood still for {sorted(times)} ms")
    case.vm.qemu.say("poweroff")
    case.vm.qemu.process.wait(120)
    case.end("it has powered itself off")


started = time.monotonic()
if __name__ == "__main__":
    guest_folder, round_count = sys.argv[1], int(sys.argv[2])
    if round_count > 0:
        many(guest_folder, round_count)
    else:
        one_of_each(guest_folder)
