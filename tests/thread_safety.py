#!/usr/bin/env python3
"""Lets clang check what base/mutex.h's annotations say: which mutex guards what.

Usage: thread_safety.py [SOURCE...]    all sources of lib/ unless some are named

clang++ reads the sources only; the compiler that the project is built with may be another one.
"""
import concurrent.futures
import os
import pathlib
import subprocess
import sys

top = pathlib.Path(__file__).resolve().parent.parent
clang = os.environ.get("CLANGXX", "clang++")
sources = [pathlib.Path(name) for name in sys.argv[1:]] or sorted(
    (top / "lib").rglob("*.cpp"))


def check(path):
    command = [clang, "-std=c++20", "-fsyntax-only", f"-I{top}/lib", "-DTPLSTORE_VERSION=\"\"",
               "-Wno-everything", "-Wthread-safety", "-Werror=thread-safety-analysis",
               "-Werror=thread-safety-attributes", "-Werror=thread-safety-precise", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    results = list(pool.map(check, sources))
for result in results:
    sys.stderr.write(result.stderr)
failed = sum(result.returncode != 0 for result in results)
print(f"{len(sources)} sources, {failed} of them with something to mend")
sys.exit(1 if failed else 0)
