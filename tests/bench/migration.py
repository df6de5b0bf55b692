"""For how long a guest stands still that moves to another qemu: migration.py GUEST ROUNDS

GUEST is what examples/make-guest.sh has made; the store that $store names has the volume vm1 with
it. One guest's disk is that volume, another one's a raw file behind nbdkit's file plugin; both write
as in tests/e2e/live_migration.py. They take turns, and whose turn it is not is stopped. Prints JSON:
for each of the two, in milliseconds, what qemu calls the downtime of its moves, and the longest
times between two writes that the guest saw acknowledged meanwhile.
"""

import json
import os
import shutil
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from live_migration import Case, Qemu, Server, Vm, tmp


class Watch:
    """Of what guests say: the longest time in which none said anything."""

    def __init__(self, *qemus):
        self.consoles = [qemu.console for qemu in qemus]
        self.longest = 0
        self.is_over = False
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        before, since = None, time.monotonic()
        while not self.is_over:
            said = [os.stat(console).st_size for console in self.consoles]
            now = time.monotonic()
            if said != before:
                if before:
                    self.longest = max(self.longest, now - since)
                before, since = said, now
            time.sleep(0.001)

    def end(self):
        self.is_over = True
        self.thread.join()
        return round(self.longest * 1000)


class VolumeSide(Case):
    def destination(self):
        return self.stand_by()


class FileSide:
    def __init__(self, guest):
        self.guest = guest
        shutil.copy(f"{guest}/disk.raw", f"{tmp}/raw.disk")
        self.server = Server("file", f"{tmp}/raw.disk", name="file")
        self.vm = Vm(guest, self.server.options("", "unix"))

    def destination(self):
        return Qemu(self.guest, self.server.options("", "unix"), waits=True)


def main(guest, rounds):
    sides = {"volume": VolumeSide(guest)}
    sides["volume"].vm.qemu.ask("stop")
    sides["file"] = FileSide(guest)
    sides["file"].vm.qemu.ask("stop")
    results = {name: {"downtime_ms": [], "pause_ms": []} for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side.vm.qemu.ask("cont")
            side.vm.goes_on()
            destination = side.destination()
            watch = Watch(side.vm.qemu, destination)
            side.vm.begin_move(destination)
            source, downtime = side.vm.end_move(destination)
            results[name]["pause_ms"].append(watch.end())
            results[name]["downtime_ms"].append(downtime)
            source.quit()
            side.vm.qemu.ask("stop")
    print(json.dumps(results))


main(sys.argv[1], int(sys.argv[2]))
