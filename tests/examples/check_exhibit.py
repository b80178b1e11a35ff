"""The exhibits of examples/: each sharded trainer adds few lines to its plain twin, for sharding and for what
the plain one does not do at all (checkpoints), and touches no line of the mathematics; quickstart stays under
60 lines."""

import pathlib
import re
import subprocess
import sys

# Example: how many lines sharding may add, and what tells a line of the mathematics.
EXHIBITS = {
    "train_gpt": (25, re.compile(r"model\.")),
    "callback_host": (25, re.compile(r"\bnet[.(]")),
    "libtorch": (35, re.compile(r"embedding\(|block\(|head\(|cross_entropy|backward\(")),
}
CHECKPOINTS = re.compile(r"checkpointing")
MOST_FOR_CHECKPOINTS = 6


def problems(examples):
    for example, (limit, mathematics) in EXHIBITS.items():
        trainers = [examples / example / name for name in ("plain.cpp", "sharded.cpp")]
        diff = subprocess.run(["diff", *trainers], capture_output=True, text=True, check=False).stdout
        added = [line[2:] for line in diff.splitlines() if line.startswith(">")]
        saving = [line for line in added if CHECKPOINTS.search(line)]
        added = [line for line in added if line not in saving]
        print(f"{example}: {len(added)} lines added by sharding, {len(saving)} by checkpoints")
        if not added:
            yield f"{example}: the two trainers do not differ"
        if len(saving) > MOST_FOR_CHECKPOINTS:
            yield f"{example}: {len(saving)} lines added by checkpoints, at most {MOST_FOR_CHECKPOINTS} may be"
        if len(added) > limit:
            yield f"{example}: {len(added)} lines added, at most {limit} may be"
        for line in diff.splitlines():
            if line[:1] in "<>" and mathematics.search(line):
                yield f"{example}: a line of the mathematics differs: {line}"
        if not any(mathematics.search(line) for line in trainers[0].read_text().splitlines()):
            yield f"{example}: no line of the plain trainer looks like mathematics"
    lines = len((examples / "quickstart/quickstart.cpp").read_text().splitlines())
    print(f"quickstart has {lines} lines")
    if lines >= 60:
        yield f"quickstart has {lines} lines, it must stay under 60"


found = list(problems(pathlib.Path(sys.argv[1])))
print("\n".join(found))
sys.exit(1 if found else 0)
