#!/usr/bin/env python3
"""Checks who may use whom: the folders of lib/, and what else includes them.

ARROWS is the architecture, and README.md has the same lines. An arrow includes what is below it:
who may use `volume` may use what `volume` may use. Everything else is an error: an include that no
arrow covers, a folder without a line, a file that CMake does not build, headers that include each
other in a circle. nbdkit's header is included in plugin/ only, liburing's in the ring, libnbd's in
the image sources and the tool, zstd's in the byte stream, CLI11's in the tool's command line; nothing
in lib/ is for tests.
"""
import pathlib
import re
import sys

ARROWS = """
plugin    -> control, store
tools     -> control, store, transfer
control   -> store
store     -> volume, tier, boot
transfer  -> template
volume    -> map, template, lock
tier      -> template
boot      -> template
map       -> backend
template  -> backend
lock      -> backend
backend   -> base
"""

# Which files may include a header that is not ours.
ONLY_IN = {
    "nbdkit-plugin.h": r"plugin/.*",
    "liburing.h": r"lib/backend/dir/io_ring\..*",
    "libnbd.h": r"tools/.*|lib/transfer/image_.*",
    "zstd.h": r"lib/transfer/byte_stream\..*",
    "CLI/CLI.hpp": r"tools/command_line\..*|tools/main\.cpp",
}

top = pathlib.Path(__file__).resolve().parent.parent
direct = {}
for line in ARROWS.strip().splitlines():
    user, used = line.split("->")
    direct[user.strip()] = {name.strip() for name in used.split(",")}


def below(folder):
    """All that a folder may use."""
    result = set()
    for name in direct.get(folder, ()):
        result |= {name} | below(name)
    return result


def folder_of(path):
    """The folder that an arrow names: lib/map/dir/x.h is of `map`, plugin/x.cpp of `plugin`."""
    return path.parts[1] if path.parts[0] == "lib" else path.parts[0]


sources = sorted(path.relative_to(top) for folder in ("lib", "plugin", "tools")
                 for path in (top / folder).rglob("*") if path.suffix in (".h", ".cpp"))
errors = []
includes = {}
for path in sources:
    includes[path] = re.findall(r'^#include (["<][^">]+)[">]', (top / path).read_text(), re.M)
folders = {path.parts[1] for path in sources if path.parts[0] == "lib"}

for path, names in includes.items():
    allowed = below(folder_of(path)) | {folder_of(path)}
    for quoted in names:
        is_ours, name = quoted[0] == '"', quoted[1:]
        folder = name.split("/")[0]
        if is_ours and (top / "lib" / name).is_file():
            if folder not in allowed:
                errors.append(f"{path} includes {name}, which is not below {folder_of(path)}")
        elif is_ours and path.parts[0] == "lib":
            errors.append(f"{path} includes {name}, which is not in lib/")
        if name in ONLY_IN and not re.fullmatch(ONLY_IN[name], str(path)):
            errors.append(f"{path} includes {name}")

known = set(direct) | {name for used in direct.values() for name in used}
errors += [f"lib/{name}/ has no arrow" for name in sorted(folders - known)]
errors += [f"there is no {name}/" for name in sorted(known - folders - {"plugin", "tools"})]
errors += [f"{name} -> {name}: a circle of arrows" for name in sorted(known) if name in below(name)]

# Circles of headers.
visited = {}


def visit(header, trail):
    if header in trail:
        errors.append("a circle of includes: " + " ".join([*trail[trail.index(header):], header]))
    if header in visited or header in trail:
        return
    for quoted in includes.get(pathlib.Path("lib") / header, ()):
        visit(quoted[1:], [*trail, header])
    visited[header] = True


for path in sources:
    if path.parts[0] == "lib" and path.suffix == ".h":
        visit(str(path.relative_to("lib")), [])

built = (top / "lib/CMakeLists.txt").read_text()
errors += [f"{path} is not in lib/CMakeLists.txt" for path in sources
           if path.parts[0] == "lib" and path.suffix == ".cpp"
           and not re.search(rf"(^|\s){re.escape(str(path.relative_to('lib')))}(\s|\))", built)]

indented = "".join(f"    {line}\n" for line in ARROWS.strip().splitlines())
if indented not in (top / "README.md").read_text():
    errors.append("README.md does not have the arrows as they are here")

print("\n".join(errors) or f"{len(sources)} files, all includes go along the arrows")
sys.exit(1 if errors else 0)
