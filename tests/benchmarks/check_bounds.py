"""Runs a benchmark that knows its own bounds up to three times: label bench, on a quiet machine. One run within them
is enough: where a run's memory fills the last cache, its pages are lucky there or not, for as long as it runs.

    check_bounds.py COMMAND...
"""

import subprocess
import sys


def main():
    for _ in range(3):
        result = subprocess.run(sys.argv[1:]).returncode
        if result == 0:
            break
    return result


if __name__ == "__main__":
    sys.exit(main())
