"""The exhibits: the sharded trainer of train_gpt and that of callback_host add at most 25 lines to the
plain one and touch no line of the mathematics; quickstart stays under 60 lines."""

import pathlib
import re
import subprocess
import sys

# Example -> how many lines sharding may add, and what every line of the mathematics matches.
EXHIBITS = {"train_gpt": (25, r"model\."), "callback_host": (25, r"\bnet[.(]")}


def problems_of(example, limit, mathematics):
    plain, sharded = example / "plain.cpp", example / "sharded.cpp"
    diff = subprocess.run(["diff", plain, sharded], capture_output=True, text=True, check=False).stdout
    added = [line[2:] for line in diff.splitlines() if line.startswith(">")]
    print(f"{example.name}: {len(added)} lines added by sharding")
    if not added:
        yield f"the two trainers of {example.name} do not differ"
    if len(added) > limit:
        yield f"{len(added)} lines added to {example.name}, at most {limit} may be"
    for line in diff.splitlines():
        if line[:1] in "<>" and re.search(mathematics, line):
            yield f"a line of the mathematics differs: {line}"


def problems(examples):
    for name, (limit, mathematics) in EXHIBITS.items():
        yield from problems_of(examples / name, limit, mathematics)
    lines = len((examples / "quickstart/quickstart.cpp").read_text().splitlines())
    print(f"quickstart has {lines} lines")
    if lines >= 60:
        yield f"quickstart has {lines} lines, it must stay under 60"


found = list(problems(pathlib.Path(sys.argv[1])))
print("\n".join(found))
sys.exit(1 if found else 0)
