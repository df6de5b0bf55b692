#!/usr/bin/env python3
"""Breaks tplstore on purpose, one line at a time, and looks whether a test notices.

    tests/mutants/run.py [--only REGEX] [--list] [--check] [--again] [--preset P] [--build DIR]

Each mutant of mutants.py is applied to a copy of the tree, the tests that should notice are built
and run, and the copy is put right again. A mutant is *killed* when one of them fails, and has
*survived* when none does; then a test is missing, or the line. What was found out is kept in the
build folder, and the next run goes on from there as long as the library and the tests concerned
stay the same; --again forgets it. --check only looks whether all still apply. Slow: minutes each
where a header changes.

Exit status: 0 when every mutant that was chosen is killed, else 1. A mutant whose anchor is not in
the source exactly once, or that does not compile, is an error: mend the list.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import EQUIVALENT, MUTANTS  # noqa: E402

TOP = Path(__file__).resolve().parents[2]
TEST_SECONDS = 600


def tracked_files():
    """All files of the tree that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP, check=True, stdout=subprocess.PIPE).stdout
    names = [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]
    return [name for name in names if (TOP / name).is_file()]


def copy_tree(to):
    """Makes `to` a copy; files that are as they should be keep their times."""
    wanted = set(tracked_files())
    for name in sorted(wanted):
        content = (TOP / name).read_bytes()
        target = to / name
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            shutil.copymode(TOP / name, target)
    for folder in ("lib", "plugin", "tools", "tests"):
        for path in (to / folder).rglob("*"):
            if path.is_file() and path.relative_to(to) not in wanted and path.suffix in (".cpp", ".h"):
                path.unlink()


def digest_of(top, tests):
    """Stands for all that a verdict of these tests depends on."""
    digest = hashlib.sha256()
    paths = [top / "CMakeLists.txt", top / "CMakePresets.json", *(top / "lib").rglob("*"),
             *(top / "tests").glob("*.h"), *(top / "tests/memory").glob("*"), *(top / "tests" / f"{test}.cpp" for test in tests)]
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(bytes(path.relative_to(top)) + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def edits_of(mutant):
    """Pairs of what is replaced, and by what."""
    if isinstance(mutant.old, str):
        return [(mutant.old, mutant.new)]
    return list(zip(mutant.old, mutant.new, strict=True))


def fault_of(mutant, top):
    """What keeps a mutant from being applied, or None."""
    path = top / mutant.file
    if not path.is_file():
        return f"{mutant.file} is not there"
    text = path.read_text()
    for old, _ in edits_of(mutant):
        count = text.count(old)
        if count != 1:
            return f"{old.strip().splitlines()[0]!r} … is {count} times in {mutant.file}, not once"
    return None


def run(command, seconds, log, environment=None):
    """The exit status; a command that takes too long has failed."""
    with open(log, "ab") as output:
        output.write(f"$ {' '.join(map(str, command))}\n".encode())
        output.flush()
        try:
            return subprocess.run(command, stdout=output, stderr=output, timeout=seconds,
                                  env=environment).returncode
        except subprocess.TimeoutExpired:
            output.write(b"took too long\n")
            return 124


class Bench:
    """A copy of the tree with a build of its own."""

    def __init__(self, folder, preset):
        self.source = folder / "source"
        self.build = folder / preset
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        copy_tree(self.source)
        command = ["cmake", "-S", self.source, "-B", self.build, "--preset", preset,
                   "-DTPLSTORE_ALL_TESTS=ON"]
        if shutil.which("ccache"):
            command.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
        log = self.logs / "configure.log"
        log.unlink(missing_ok=True)
        # A preset's own folder is that of the source; -B comes before it.
        if subprocess.run(command, cwd=self.source, stdout=open(log, "wb"),
                          stderr=subprocess.STDOUT).returncode != 0:
            sys.exit(f"cannot be configured, see {log}")

    def build_and_test(self, tests, log):
        """killed, survived, or does not compile; and what said so."""
        for test in tests:
            if run(["ninja", "-C", self.build, test], 3600, log) != 0:
                return "does not compile", test
            environment = dict(os.environ, TPLSTORE_SEED=os.environ.get("TPLSTORE_SEED", "1"))
            command = [self.build / "tests" / test, "--abort-after=1"]
            if run(command, TEST_SECONDS, log, environment) != 0:
                return "killed", test
        return "survived", ""

    def try_mutant(self, mutant):
        log = self.logs / f"{mutant.name}.log"
        log.unlink(missing_ok=True)
        path = self.source / mutant.file
        original = path.read_text()
        broken = original
        for old, new in edits_of(mutant):
            broken = broken.replace(old, new)
        path.write_text(broken)
        try:
            return self.build_and_test(mutant.tests, log)
        finally:
            path.write_text(original)


def main():
    parser = argparse.ArgumentParser(description="Breaks tplstore, one line at a time.")
    parser.add_argument("--only", default="", metavar="REGEX", help="mutants whose names match")
    parser.add_argument("--list", action="store_true", help="print them, and what they break")
    parser.add_argument("--check", action="store_true", help="only look whether all apply")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--preset", default="release")
    parser.add_argument("--build", type=Path, default=TOP / "build" / "mutants", metavar="DIR")
    options = parser.parse_args()

    chosen = [m for m in MUTANTS if re.search(options.only, m.name)]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}: {mutant.breaks} ({', '.join(mutant.tests)})")
        for mutant in EQUIVALENT:
            print(f"{mutant.name}: equivalent. {mutant.why}")
        return 0

    failures = 0
    names = [m.name for m in MUTANTS + EQUIVALENT]
    for name in sorted({name for name in names if names.count(name) > 1}):
        print(f"error            {name}: listed twice")
        failures += 1
    applicable = []
    for mutant in chosen + (EQUIVALENT if not options.only else []):
        fault = fault_of(mutant, TOP)
        if fault:
            print(f"does not apply   {mutant.name}: {fault}")
            failures += 1
        elif mutant in chosen:
            applicable.append(mutant)
    if options.check:
        print(f"{len(applicable)} of {len(chosen)} apply")
        return 1 if failures else 0

    bench = Bench(options.build, options.preset)
    results_path = options.build / f"results.{options.preset}.json"
    results = {}
    if results_path.exists() and not options.again:
        results = json.loads(results_path.read_text())
    counts = {"does not apply": failures}
    # The tests as they are have to pass, or what they say of mutants means nothing.
    passing = results.setdefault("tests that pass", {})
    for mutant in applicable:
        digest = digest_of(bench.source, mutant.tests)
        key = hashlib.sha256(f"{digest}{mutant}".encode()).hexdigest()
        verdict, test = results.get(key, (None, ""))
        is_old = verdict is not None
        if not is_old:
            for name in mutant.tests:
                digest = digest_of(bench.source, [name])
                if passing.get(name) == digest:
                    continue
                verdict, _ = bench.build_and_test([name], bench.logs / f"unbroken.{name}.log")
                if verdict != "survived":
                    sys.exit(f"{name} fails without any mutant, see {bench.logs}")
                passing[name] = digest
            verdict, test = bench.try_mutant(mutant)
            results[key] = (verdict, test)
            results_path.write_text(json.dumps(results, indent=1))
        counts[verdict] = counts.get(verdict, 0) + 1
        by = f" by {test}" if verdict == "killed" else f": {mutant.breaks}"
        print(f"{verdict:<16} {mutant.name}{by}{' (known)' if is_old else ''}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))
    return 0 if set(v for v, n in counts.items() if n) <= {"killed"} else 1


if __name__ == "__main__":
    sys.exit(main())
