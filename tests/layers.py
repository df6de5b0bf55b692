#!/usr/bin/env python3
"""Checks that dependencies go one way, as lib/CMakeLists.txt lists the modules: lower layers first.

A module includes modules of its own group and of groups above it in that file. nbdkit's header is
included in plugin/ only, liburing's in the ring only, libnbd's in the import library and the tool.
"""
import pathlib
import re
import sys

top = pathlib.Path(__file__).resolve().parent.parent
lists = (top / "lib/CMakeLists.txt").read_text()
lists = lists[lists.index("add_library(tplstore_core"):]

# Modules to the number of their group; a comment line begins a group.
group_of = {}
group = 0
for line in lists.splitlines():
    if line.strip().startswith("#") or line.startswith("add_library"):
        group += 1
    for name in re.findall(r"\b(\w+)\.cpp\b", line):
        group_of[name] = group

errors = []
includes = {}
for path in sorted((top / "lib").glob("*.h")) + sorted((top / "lib").glob("*.cpp")):
    includes[path] = re.findall(r'#include ["<]([^">]+)[">]', path.read_text())

# Headers without a source belong to the lowest group that includes them.
headers = {path.stem for path in includes if path.suffix == ".h"}
for header in headers - set(group_of):
    users = [group_of[path.stem] for path, names in includes.items()
             if header + ".h" in names and path.stem in group_of]
    group_of[header] = min(users, default=0)

for path, names in includes.items():
    for name in names:
        stem = name.removesuffix(".h")
        if stem in headers and group_of[stem] > group_of[path.stem]:
            errors.append(f"{path.relative_to(top)} includes {name} of a higher layer")

only_in = {
    "nbdkit-plugin.h": lambda p: p.parts[0] == "plugin",
    "liburing.h": lambda p: p.name.startswith("io_ring."),
    "libnbd.h": lambda p: p.parts[0] == "tools" or p.stem.startswith("image_"),
}
for folder in ("lib", "plugin", "tools"):
    for path in (top / folder).iterdir():
        if path.suffix not in (".h", ".cpp"):
            continue
        relative = path.relative_to(top)
        for name in re.findall(r'#include ["<]([^">]+)[">]', path.read_text()):
            if name in only_in and not only_in[name](relative):
                errors.append(f"{relative} includes {name}")

missing = {p.stem for p in includes if p.suffix == ".cpp"} - set(group_of)
errors += [f"lib/{name}.cpp is not in lib/CMakeLists.txt" for name in sorted(missing)]
print("\n".join(errors) or f"{len(includes)} files, all dependencies go down")
sys.exit(1 if errors else 0)
