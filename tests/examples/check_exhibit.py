"""The exhibit of examples/train_gpt: the sharded trainer adds at most 25 lines to the plain one and
touches no line of the mathematics; quickstart stays under 60 lines."""

import pathlib
import subprocess
import sys

LIMIT = 25


def problems(examples):
    plain = examples / "train_gpt/plain.cpp"
    sharded = examples / "train_gpt/sharded.cpp"
    diff = subprocess.run(["diff", plain, sharded], capture_output=True, text=True, check=False).stdout
    added = [line[2:] for line in diff.splitlines() if line.startswith(">")]
    print(f"{len(added)} lines added by sharding")
    if not added:
        yield "the two trainers do not differ"
    if len(added) > LIMIT:
        yield f"{len(added)} lines added, at most {LIMIT} may be"
    for line in diff.splitlines():
        if line[:1] in "<>" and "model." in line:
            yield f"a line of the mathematics differs: {line}"
    lines = len((examples / "quickstart/quickstart.cpp").read_text().splitlines())
    print(f"quickstart has {lines} lines")
    if lines >= 60:
        yield f"quickstart has {lines} lines, it must stay under 60"


found = list(problems(pathlib.Path(sys.argv[1])))
print("\n".join(found))
sys.exit(1 if found else 0)
