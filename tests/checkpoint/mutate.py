"""Takes out every fsync, rename and agreement of a save or a load, one at a time, and expects a test to fail each
time; without a mutation they pass."""

import argparse
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "meta"))

import compiling  # noqa: E402

# (what is taken out, header, text, what it becomes, how many times it stands there, which of them, test)
MUTATIONS = [
    ("fsync of a data file", "data_file", "  file.sync();\n", "", 1, 0, "crash"),
    ("rename of a data file", "data_file", "partial = partial_name(path)", "partial = path", 1, 0, "crash"),
    ("fsync of the names of data files", "data_file", "  sync_directory(files, directory);\n", "", 1, 0, "crash"),
    ("fsync of manifest and pointer", "file", "  file.sync();\n", "", 1, 0, "crash"),
    ("rename of manifest and pointer", "file", "partial = partial_name(path)", "partial = path", 1, 0, "crash"),
    ("fsync of the manifest's name", "save", "    sync_directory(files, directory_);\n", "", 1, 0, "crash"),
    ("fsync of the directory's name", "save", "    sync_directory(files, request_.folder);", "", 2, 0, "crash"),
    ("fsync of the pointer's name", "save", "    sync_directory(files, request_.folder);", "", 2, 1, "crash"),
    ("fsync of the folder's name", "save_names", "= files.sync_directory(parent)", "= 0", 1, 0, "crash"),
    ("fsync of a manifest's removal", "save_names", "    sync_directory(files, path);\n", "", 1, 0, "crash"),
    ("agreement on the directory", "save", "outcome.agree(group_, \"save: directory\"",
     "if (name.empty()) name = \"step-000000\";\n    static_cast<void>(0", 1, 0, "faults"),
    ("agreement on the data", "save", "outcome_.agree(group_, \"save: data\"", "static_cast<void>(0", 1, 0, "faults"),
    ("agreement on the manifest", "save", "outcome.agree(group_, \"save: manifest\"", "static_cast<void>(0", 1, 0,
     "faults"),
    ("agreement on the retention", "save", "outcome.agree(group_, \"save: retention\"", "static_cast<void>(0", 1, 0,
     "faults"),
    ("agreement on what there is", "loader", "outcome.agree(group_, \"load: folder\"", "static_cast<void>(0", 1, 0,
     "folder"),
    ("agreement on the manifest that is read", "loader", "outcome.agree(group_, \"load: manifest\"",
     "static_cast<void>(0", 1, 0, "folder"),
    ("agreement on what fits", "loader", "outcome.agree(group_, \"load: match\"", "static_cast<void>(0", 1, 0, "folder"),
    ("agreement on what was loaded", "loader", "outcome.agree(group_, \"load: data\"", "static_cast<void>(0", 1, 0,
     "folder"),
]
# Of a test, if not all.
CASES = {"folder": ["all ranks fall back together*,what fails on one rank only*"]}


class Tests:
    def __init__(self, options):
        self.options = options
        self.work = options.work
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(options.project / "include", self.work / "include")
        self.headers = self.work / "include" / "shardwise" / "checkpoint"
        self.line = compiling.command(options)
        self.line[2:] = [word for word in self.line[2:] if not word.startswith("-W")]  # a mutant may leave things over
        self.line[2:2] = [f"-I{self.work / 'include'}"]  # before the headers that are whole
        self.line += [f"-I{options.project / 'tests'}"]

    def build(self, test):
        program = self.work / f"{test}_test"
        # Ten thousand crashes want a fast program; else what compiles fast is over soonest.
        optimization = "-O1" if test == "crash" else "-O0"
        done, said = compiling.run([*self.line, optimization, str(HERE / f"{test}_test.cpp"), "-o", str(program),
                                    *self.options.library, "-pthread"])
        if not done:
            sys.exit(f"{test} does not compile:\n{said}")
        return program

    def passes(self, test):
        """Whether it passes. One that hangs or crashes does not."""
        try:
            line = [self.build(test), *CASES.get(test, [])]
            return subprocess.run(line, capture_output=True, timeout=600).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    compiling.add_arguments(parser)
    parser.add_argument("--project", type=pathlib.Path, required=True)
    parser.add_argument("--library", action="append", default=[])
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder to empty and fill")
    parser.add_argument("--only", action="append", default=[], help="mutations with one of these words")
    options = parser.parse_args()
    tests = Tests(options)
    chosen = [mutation for mutation in MUTATIONS
              if not options.only or any(word in mutation[0] for word in options.only)]
    failures = 0
    for test in sorted({mutation[-1] for mutation in chosen}):
        if not tests.passes(test):
            print(f"without a mutation {test}_test fails")
            failures += 1
    for what, header, text, instead, times, which, test in chosen:
        begin = time.monotonic()
        path = tests.headers / f"{header}.hpp"
        original = path.read_text(encoding="utf-8")
        parts = original.split(text)
        if len(parts) - 1 != times:
            print(f"{what}: '{text.strip()}' stands {len(parts) - 1} times in {header}.hpp, expected {times}")
            failures += 1
            continue
        path.write_text(text.join(parts[:which + 1]) + instead + text.join(parts[which + 1:]), encoding="utf-8")
        found = not tests.passes(test)
        path.write_text(original, encoding="utf-8")
        failures += not found
        print(f"{what}: {'found' if found else 'NOT FOUND'} by {test}_test ({time.monotonic() - begin:.0f} s)",
              flush=True)
    print(f"{failures} of {len(chosen)} not as they should be")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
