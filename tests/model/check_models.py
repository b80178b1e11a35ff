"""Runs the models of the thread backend's protocol through spin: what is built must be found right in every
interleaving, with every line reached; each mistake that a model knows how to make must be found."""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def explore(model, definitions, compiler):
    """(errors, states, text of the verifier) of one search through all interleavings."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"-D{name}={value}" for name, value in definitions.items()]
        run(["spin", *flags, "-a", model.resolve()], folder)
        run([compiler, "-x", "c", "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c"], folder)
        text = run(["./pan", "-m100000"], folder)
    if "max search depth too small" in text or "Search not completed" in text and "errors: 0" in text:
        sys.exit(f"{model.name} {definitions}: the search was not complete:\n{text}")
    errors = re.search(r"errors: (\d+)", text)
    states = re.search(r"(\S+) states, stored", text)
    if not errors or not states:
        sys.exit(f"{model.name} {definitions}: no result from the verifier:\n{text}")
    return int(errors.group(1)), int(float(states.group(1))), text


def mistakes_of(model):
    return re.findall(r"^#define (\w+) ([1-9]\d*)$", re.sub(r"#define [A-Z].*", "", model.read_text()), re.M)


def check_right(model, definitions, compiler):
    errors, states, text = explore(model, definitions, compiler)
    shown = " ".join(f"{name}={value}" for name, value in definitions.items())
    if errors:
        sys.exit(f"{model.name} {shown}: the verifier found an error:\n{text}")
    unreached = re.findall(r"^\t\S+:(\d+), state \d+, \"(.*)\"$", text, re.M)
    unreached = [where for where in unreached if where[1] != "-end-"]
    if unreached:
        sys.exit(f"{model.name} {shown}: never reached: {unreached}")
    print(f"{model.name}{' ' * bool(shown)}{shown}: right in {states} states")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="gcc", help="gcc, or what takes its options")
    options = parser.parse_args()
    if shutil.which("spin") is None:
        print("skipped: spin is not installed, so that the models are not checked")
        sys.exit(SKIPPED)

    here = pathlib.Path(__file__).parent
    barrier, wait_point = here / "barrier.pml", here / "wait_point.pml"
    for definitions in ({"N": 3, "ROUNDS": 2}, {"N": 3, "ROUNDS": 2, "TIMEOUTS": 0}, {"N": 2, "ROUNDS": 3},
                        {"N": 4, "ROUNDS": 1}):
        check_right(barrier, definitions, options.compiler)
    check_right(wait_point, {}, options.compiler)
    for model in (barrier, wait_point):
        for name, number in mistakes_of(model):
            # What never waits for a peer's poison would be saved by its own time-out.
            timeouts = {"TIMEOUTS": 0} if name == "waits_for_commit_alone" else {}
            errors, _, text = explore(model, {"BROKEN": number, **timeouts}, options.compiler)
            if errors == 0:
                sys.exit(f"{model.name}: '{name}' is a mistake, and the verifier found nothing wrong")
            found = re.search(r"pan:\d+: (.*)", text)
            print(f"{model.name} {name}: {found.group(1) if found else 'found'}")


main()
