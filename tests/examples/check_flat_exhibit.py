"""The exhibit of examples/flat_host: a trainer in plain C style is sharded by replacing what allocates,
zeroes and updates its memory, and by at most 15 lines in its loops over layers, which take nothing away
and touch no line of the mathematics."""

import difflib
import pathlib
import re
import sys

LOOPS = {"gpt_forward", "gpt_backward"}
LOOP_LIMIT = 15
# What else may differ: allocation and its end, zero_grad, update; and who runs it, on which part of a batch.
REPLACED = {"gpt_build", "gpt_free", "gpt_zero_grad", "gpt_update", "run", "train"}
LIMIT = 100


def functions(source):
    """The text of each function by name, and what stands outside of them under ''."""
    found = {"": []}
    name = ""
    for line in source.splitlines():
        head = re.match(r"(?:void|Result) (\w+)\(", line)
        if not name and head:
            name = head[1]
        found.setdefault(name, []).append(line)
        if line == "}" or (name and line.startswith("void ") and line.endswith("}")):
            name = ""
    return found


def changes(before, after):
    lines = list(difflib.ndiff(before, after))
    return [x[2:] for x in lines if x.startswith("- ")], [x[2:] for x in lines if x.startswith("+ ")]


def problems(folder):
    declared = re.findall(r"^void (\w+_(?:forward|backward))\(", (folder / "gpt.hpp").read_text(), re.M)
    calls = re.compile(rf"\b({'|'.join(declared)})\(")
    plain = functions((folder / "plain.cpp").read_text())
    sharded = functions((folder / "sharded.cpp").read_text())
    if set(plain) != set(sharded):
        yield f"not the same functions: {sorted(set(plain) ^ set(sharded))}"
        return
    if not LOOPS | REPLACED <= set(plain):
        yield f"functions are missing: {sorted((LOOPS | REPLACED) - set(plain))}"
        return
    total = in_loops = 0
    for name in plain:
        removed, added = changes(plain[name], sharded[name])
        total += len(added)
        if name in LOOPS:
            in_loops += len(added)
            if not any(calls.search(line) for line in plain[name]):
                yield f"{name} calls no mathematics"
            if not added:
                yield f"{name} gathers nothing"
            for line in removed:
                yield f"{name} lost a line: {line}"
            for line in added:
                if not re.fullmatch(r" +model->units[^;]*;(  // .*)?", line):
                    yield f"{name}: more than a call of a unit: {line}"
        elif name and name not in REPLACED and (removed or added):
            yield f"{name} differs"
        for line in removed + added:
            if calls.search(line):
                yield f"a line of the mathematics differs: {line}"
    print(f"{in_loops} lines inserted in the loops, {total} added in all")
    if in_loops > LOOP_LIMIT:
        yield f"{in_loops} lines inserted in the loops, at most {LOOP_LIMIT} may be"
    if total > LIMIT:
        yield f"{total} lines added in all, at most {LIMIT} may be"


found = list(problems(pathlib.Path(sys.argv[1]) / "flat_host"))
print("\n".join(found))
sys.exit(1 if found else 0)
