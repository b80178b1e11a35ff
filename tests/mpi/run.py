"""Runs a program under mpirun, as root too and with more ranks than cores, and ends with its status."""

import argparse
import atexit
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile


def own_folder():
    """A folder until the end of this process. Open MPI's launchers share one, named after the machine and the user,
    which one of them removes when it ends while the next wants to make it."""
    folder = tempfile.mkdtemp(prefix="ompi-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def command(launcher, kind, ranks, program):
    line = [launcher]
    if kind == "openmpi":
        folder = own_folder()
        line += ["--oversubscribe", "--mca", "btl_vader_backing_directory", folder, "--mca", "orte_tmpdir_base", folder]
        if os.geteuid() == 0:
            line.insert(1, "--allow-run-as-root")
    return line + ["-n", str(ranks), *program]


class Failed(Exception):
    """What a check has found, in words."""


def run_check(description, program, check):
    """The main function of a script that starts programs under mpirun: check(options) in an empty folder. `program`:
    the option that names what is started."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--launcher", required=True)
    parser.add_argument("--kind", choices=("openmpi", "mpich"), required=True)
    parser.add_argument(program, type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    try:
        check(options)
    except Failed as reason:
        print(reason)
        return 1
    return 0


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
