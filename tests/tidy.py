#!/usr/bin/env python3
"""Runs clang-tidy, with the checks of .clang-tidy, over lib/, plugin/ and tools/; and with it clang's
look at what base/mutex.h's annotations say: which mutex guards what.

Usage: tidy.py [SOURCE...]    all sources unless some are named

Most of its time goes to headers, which many sources share. So sources are looked at many at a time,
as one file that includes them, which they can be since they can be compiled so.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

top = pathlib.Path(__file__).resolve().parent.parent
clang_tidy = os.environ.get("CLANG_TIDY", "clang-tidy")
engine = ["base", "backend", "map", "template", "tier", "lock", "volume", "store"]
pieces = [[top / "lib" / folder for folder in engine],
          [top / "lib/boot", top / "lib/control", top / "lib/transfer", top / "plugin"], [top / "tools"]]


def look_at(sources):
    with tempfile.TemporaryDirectory() as folder:
        piece = pathlib.Path(folder) / "piece.cpp"
        piece.write_text("".join(f'#include "{path}"\n' for path in sources))
        command = [clang_tidy, "--quiet", f"--config-file={top}/.clang-tidy",
                   f"--header-filter=^{re.escape(str(top))}/(lib|plugin|tools)/", str(piece), "--",
                   "-std=c++20", "-Wno-everything", "-Wthread-safety", f"-I{top}/lib",
                   f"-I{top}/tools"]
        command += [f'-D{name}=""' for name in ("TPLSTORE_FULL_VERSION", "TPLSTORE_BUILD",
                                                "TPLSTORE_NBDKIT_VERSION",
                                                "TPLSTORE_LIBURING_VERSION")]
        return subprocess.run(command, capture_output=True, text=True)


jobs = [[pathlib.Path(name).resolve()] for name in sys.argv[1:]]
if not jobs:
    jobs = [sorted(path for folder in piece for path in folder.rglob("*.cpp")) for piece in pieces]
with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    results = list(pool.map(look_at, jobs))
for result in results:
    sys.stdout.write(result.stdout)
    if result.returncode != 0 and not result.stdout:
        sys.stdout.write(result.stderr)
failed = sum(result.returncode != 0 for result in results)
print(f"{sum(map(len, jobs))} sources, " + ("with something to mend" if failed else "clean"))
sys.exit(1 if failed else 0)
