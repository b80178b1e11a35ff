"""What the checks that call a compiler share."""

import os
import subprocess

# A directory that the compiler searches anyway must not be named again: with -isystem its place in the
# order changes and <cstdlib> no longer finds <stdlib.h>.
SEARCHED_ANYWAY = {"/usr/include", "/usr/local/include"}

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wsign-conversion", "-Werror"]


def add_arguments(parser):
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--include", action="append", default=[], help="searched as our own")
    parser.add_argument("--system", action="append", default=[], help="searched without warnings; separated by ;")
    parser.add_argument("--standard", default="c++20")


def command(options):
    line = [options.compiler, f"-std={options.standard}", *WARNINGS]
    line += [f"-I{directory}" for directory in options.include]
    for directory in ";".join(options.system).split(";"):
        if directory and os.path.normpath(directory) not in SEARCHED_ANYWAY:
            line += ["-isystem", directory]
    return line


def run(line, text=None):
    """Returns (whether it succeeded, what it said)."""
    done = subprocess.run(line, input=text, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr
