"""A source that must not compile, and must say why; with -DPOSITIVE_CONTROL it must compile.

Without the control a misspelt name would pass for the error that is wanted.
"""

import argparse
import re
import sys

import compiling


def check(options, source, expected):
    """Returns what is wrong, or None."""
    line = compiling.command(options) + ["-fsyntax-only", source]
    good, text = compiling.run(line + ["-DPOSITIVE_CONTROL"])
    if not good:
        return f"{source} does not compile with -DPOSITIVE_CONTROL either:\n{text}"
    good, text = compiling.run(line)
    if good:
        return f"{source} compiles, but must not"
    if not re.search(expected, text):
        return f"{source} fails without saying /{expected}/:\n{text}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    compiling.add_arguments(parser)
    parser.add_argument("--expect", required=True, help="regular expression on what the compiler says")
    parser.add_argument("source")
    options = parser.parse_args()
    wrong = check(options, options.source, options.expect)
    print(wrong or f"{options.source} is refused as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
