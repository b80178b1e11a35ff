"""Everything that a machine with GPUs can say about the CUDA backend, by one command.

1. The tests of label gpu: programs that pass on the emulation, on the real libraries and devices.
2. compute-sanitizer, where it is installed, over the kernels' tests: memcheck, racecheck, initcheck, synccheck.
3. Rates of the kernels beside a copy, and bandwidths of the collectives with the formulas of nccl-tests.

Where there is no device it says 'skipped: no CUDA device' and exits with 77.
"""

import argparse
import pathlib
import shlex
import shutil
import subprocess
import sys

SKIPPED = 77


def run(title, line):
    """Whether the command succeeded; its output goes where ours goes."""
    print(f"== {title}: {' '.join(map(str, line))}", flush=True)
    status = subprocess.run(list(map(str, line))).returncode
    print(f"== {title}: {'passed' if status == 0 else f'failed with {status}'}", flush=True)
    return status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="the build folder")
    parser.add_argument("--devices", type=pathlib.Path, required=True, help="the program that lists devices")
    parser.add_argument("--benchmark", type=shlex.split, action="append", default=[],
                        help="a program and its arguments, in one word; several times")
    parser.add_argument("--sanitize", type=pathlib.Path, nargs="*", default=[],
                        help="programs for compute-sanitizer")
    parser.add_argument("--or-skip", action="store_true", help="no device is a success")
    options = parser.parse_args()

    listed = subprocess.run([options.devices], capture_output=True, text=True)
    print(listed.stdout, end="", flush=True)
    if listed.returncode == SKIPPED:
        return 0 if options.or_skip else SKIPPED
    if listed.returncode != 0:
        print(listed.stderr, file=sys.stderr)
        return 1

    passed = [run("tests", ["ctest", "--test-dir", options.build, "-L", "^gpu$", "--output-on-failure"])]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("== compute-sanitizer: skipped: it is not installed", flush=True)
    else:
        for program in options.sanitize:
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
                passed.append(run(f"{tool} of {program.name}",
                                  [sanitizer, "--tool", tool, "--error-exitcode", "1", program]))
    passed += [run(pathlib.Path(line[0]).name, line) for line in options.benchmark]
    print(f"== {passed.count(True)} passed, {passed.count(False)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
