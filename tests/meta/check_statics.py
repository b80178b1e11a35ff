"""No variable of ours lies in writable memory, in an object file that uses much of the library.

Function-local and thread-local statics count, and so do the guards of those that are initialised at run
time. Tables of virtual functions and type information are in .data.rel.ro, which is not writable then.
"""

import argparse
import re
import subprocess
import sys

WRITABLE = re.compile(r"\.(data|bss|tdata|tbss)(?!\.rel\.ro)")
OURS = re.compile(r"\bshardwise::")
# Signals belong to the process: who watches for faults in debug mode does, too.
ALLOWED = re.compile(r"detail::FaultWatch::of_process\(\)::watch$")


def check(objects):
    """Returns (number of our symbols, [(symbol, section)] of those in writable memory)."""
    count, bad = 0, []
    for path in objects:
        table = subprocess.run(["nm", "-C", "--format=sysv", path], capture_output=True, text=True, check=True)
        for row in table.stdout.splitlines():
            # name|value|class|type|size|line|section; a demangled name may hold a bar (operator|)
            cells = row.rsplit("|", 6)
            if len(cells) < 7 or not OURS.search(cells[0]):
                continue
            count += 1
            section = cells[6].strip()
            if WRITABLE.match(section) and not ALLOWED.search(cells[0].strip()):
                bad.append((cells[0].strip(), section))
    return count, bad


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("objects", nargs="+")
    count, bad = check(parser.parse_args().objects)
    for symbol, section in bad:
        print(f"error: {symbol} is a mutable static: it lies in {section}")
    print(f"{count} symbols of ours, {len(bad)} of them in writable memory")
    return 1 if bad or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
