"""Whatever system call of an export or an import fails, on whichever ranks, all of them end with an error that names
path and reason; nothing is left of such an export, and what a signal interrupts goes on. Skipped where strace is
missing or may not trace."""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys

SKIPPED = 4
RANKS = "3"
# The call, the errors that it gets in turn, whether it is one of an export.
FAULTS = [("pwrite64", ["ENOSPC", "EIO"], True), ("ftruncate", ["ENOSPC"], True), ("fsync", ["EIO"], True),
          ("rename", ["EACCES"], True), ("pread64", ["EIO"], False)]
REASONS = {"ENOSPC": "No space left on device (errno 28)", "EIO": "Input/output error",
           "EACCES": "Permission denied (errno 13)"}


def run(program, what, folder, *strace):
    return subprocess.run([*strace, program, what, folder, RANKS], capture_output=True, text=True, timeout=60)


def watched(folder):
    """Only calls on files that are there: what loads the program reads files, too."""
    return [word for path in sorted(folder.iterdir()) for word in ("-P", str(path))] if folder.exists() else []


def calls_of(program, what, folder, name, log):
    """The most calls of this name that one thread makes."""
    run(program, what, folder, "strace", "-f", "-qq", *watched(folder), "-e", f"trace={name}", "-o", str(log))
    threads = [line.split()[0] for line in log.read_text().splitlines() if f"{name}(" in line]
    return max((threads.count(thread) for thread in set(threads)), default=0)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    work = options.work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if not shutil.which("strace") or subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "true"],
                                                    capture_output=True).returncode:
        print("skipped: strace is missing, or may not trace here")
        return SKIPPED
    good = work / "good"
    if (plain := run(options.program, "export-one", good)).returncode:
        sys.exit(plain.stderr)
    expected = content(good)
    if (plain := run(options.program, "import-one", good)).returncode:
        sys.exit(plain.stderr)
    refused = 0
    for name, errors, is_export in FAULTS:
        what = "export-one" if is_export else "import-one"
        folder = work / "counted" if is_export else good
        count = calls_of(options.program, what, folder, name, work / "log")
        shutil.rmtree(work / "counted", ignore_errors=True)
        if count == 0:
            sys.exit(f"{what} makes no {name}")
        for error in [*errors, "EINTR"]:
            # An interrupted fsync or rename is an error like others.
            goes_on = error == "EINTR" and name in ("pwrite64", "pread64", "ftruncate")
            if error == "EINTR" and not goes_on:
                continue
            for call in range(1, count + 1):
                where = f"{name} {call} of {count}: {error}"
                folder = work / "failed" if is_export else good
                ended = run(options.program, what, folder, "strace", "-f", "-qq", "-o", "/dev/null",
                            *watched(folder), "-e", f"trace={name}", "-e", f"inject={name}:error={error}:when={call}")
                if goes_on:
                    if ended.returncode or (is_export and content(folder) != expected):
                        sys.exit(f"{where} did not go on: {ended.stderr}")
                else:
                    refused += 1
                    if not re.search(r"rank \d: .*(failed|good)", ended.stderr) or REASONS[error] not in ended.stderr:
                        sys.exit(f"{where}: {ended.returncode}, {ended.stderr}")
                    if is_export and content(folder):
                        sys.exit(f"{where} left {sorted(content(folder))}")
                if is_export:
                    shutil.rmtree(folder, ignore_errors=True)
    if content(good) != expected:
        sys.exit("an import has changed files")
    print(f"{refused} refusals, each an error on all ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
