"""Doxygen makes the API reference without a warning, and what hosts look for is in it."""

import argparse
import pathlib
import re
import shutil
import sys
import xml.etree.ElementTree

import compiling

SCOPES = {"namespace", "class", "struct"}


def names_in(tag_file):
    """{(kind, qualified name)} of what the reference describes."""
    found = set()
    for compound in xml.etree.ElementTree.parse(tag_file).getroot().iter("compound"):
        name = compound.findtext("name")
        found.add((compound.get("kind"), name))
        if compound.get("kind") in SCOPES:
            found |= {(member.get("kind"), f"{name}::{member.findtext('name')}")
                      for member in compound.iter("member")}
    return found


def check(names, forward):
    """Returns what is wrong. `forward` is the text of fwd.hpp, which declares what hosts name."""
    types = {name for kind, name in names if kind in ("class", "struct")}
    declared = re.findall(r"^(?:class|struct) (\w+)[^;]*;", forward, re.MULTILINE)
    wrong = [f"shardwise::{name} is declared in fwd.hpp and not in the reference" for name in declared
             if f"shardwise::{name}" not in types]
    if not declared:
        wrong.append("fwd.hpp declares nothing")
    if ("page", "index") not in names:
        wrong.append("there is no main page")
    wrong += [f"{name} is in the reference" for kind, name in sorted(names)
              if kind in SCOPES and re.search(r"\b(detail|v\d+_\d+)\b", name)]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--doxygen", required=True)
    parser.add_argument("--doxyfile", required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="what the Doxyfile writes to")
    parser.add_argument("root", type=pathlib.Path, help="the directory that holds shardwise/")
    options = parser.parse_args()
    if not shutil.which(options.doxygen):
        sys.exit("doxygen is not installed; cmake/bootstrap.sh packages installs it")
    shutil.rmtree(options.output, ignore_errors=True)
    good, text = compiling.run([options.doxygen, options.doxyfile])
    if not good or "warning:" in text:
        sys.exit(f"doxygen has complaints:\n{text}")
    names = names_in(options.output / "shardwise.tag")
    wrong = check(names, (options.root / "shardwise/fwd.hpp").read_text(encoding="utf-8"))
    for line in wrong:
        print(f"error: {line}")
    print(f"{len(names)} names in the reference, {len(wrong)} errors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
