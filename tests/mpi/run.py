"""Runs a program under mpirun, as root too and with more ranks than cores, and ends with its status."""

import argparse
import os
import signal
import subprocess
import sys


def command(launcher, kind, ranks, program):
    line = [launcher]
    if kind == "openmpi":
        line += ["--oversubscribe", "--mca", "btl_vader_backing_directory", os.environ.get("TMPDIR", "/tmp")]
        if os.geteuid() == 0:
            line.insert(1, "--allow-run-as-root")
    return line + ["-n", str(ranks), *program]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launcher", required=True, help="mpirun, mpiexec")
    parser.add_argument("--kind", choices=("openmpi", "mpich"), required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="then all of it is killed")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    line = command(options.launcher, options.kind, options.ranks, options.program)
    child = subprocess.Popen(line, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return child.wait(options.seconds)
    except subprocess.TimeoutExpired:
        print(f"{' '.join(line)} hangs: not done in {options.seconds:.0f} s", flush=True)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return 1


if __name__ == "__main__":
    sys.exit(main())
