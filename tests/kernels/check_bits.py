"""Compares what bits.cpp says on this machine and on ARM, where a cross compiler of Debian's name and an emulator of
user programs (qemu-aarch64) are installed; ends with 77 where they are not.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

from check_host_codegen import compiler_for


def built(compiler, options, program, *flags):
    source = pathlib.Path(__file__).with_name("bits.cpp")
    subprocess.run([compiler, "-std=c++20", "-O2", "-ffp-contract=off", *flags, f"-I{options.include}", source, "-o",
                    program], check=True)
    return program


def lines_of(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--include", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    options = parser.parse_args()
    cross, emulator = compiler_for("aarch64", options.compiler), shutil.which("qemu-aarch64")
    if cross in (None, options.compiler) or emulator is None:
        print("skipped: this needs a cross compiler for aarch64 and qemu-aarch64")
        sys.exit(77)
    options.work.mkdir(parents=True, exist_ok=True)
    here = lines_of(built(options.compiler, options, options.work / "bits_here"))
    there = lines_of(emulator, built(cross, options, options.work / "bits_there", "-static"))
    different = [f"{a}, on ARM {b}" for a, b in zip(here, there) if a != b]
    print("\n".join(different) or f"{len(here)} lines are the same")
    sys.exit(1 if different or len(here) != len(there) or not here else 0)


if __name__ == "__main__":
    main()
