"""The programs that save: train_gpt that is stopped and goes on, checkpoint_inspect on what it leaves, and the
example that is killed and resumed at another number of ranks."""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys


class Failed(Exception):
    pass


def expect(holds, text):
    if not holds:
        raise Failed(text)


class Programs:
    def __init__(self):
        parser = argparse.ArgumentParser(description=__doc__)
        for name in ("train-gpt", "resume", "inspect"):
            parser.add_argument(f"--{name}", required=True)
        parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder to empty and fill")
        self.options = parser.parse_args()
        self.work = self.options.work
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def run(self, *line, fails=False):
        done = subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=120)
        expect((done.returncode != 0) == fails, f"{line} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def train(self, steps, ranks=2, *more):
        """The report and what was said."""
        file = self.work / "report.json"
        said = self.run(self.options.train_gpt, "--layers", 1, "--width", 32, "--sequence", 16, "--batch", 12,
                        "--steps", steps, "--ranks", ranks, "--json", file, *more)
        return json.loads(file.read_text()), said

    def inspect(self, folder, fails=False):
        return self.run(self.options.inspect, folder, fails=fails)


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def saves_of(folder):
    return sorted(path.name for path in folder.iterdir())


def check_train_gpt(programs):
    whole, _ = programs.train(12)
    folder = programs.work / "saves"
    options = ("--checkpoint", folder, "--save-every", 2)
    first, said = programs.train(7, 2, *options, "--resume")
    expect("has no save: starting anew" in said, f"a first start says: {said}")
    expect(saves_of(folder) == ["latest", "step-000006", "step-000007"], f"saves: {saves_of(folder)}")
    second, said = programs.train(12, 2, *options, "--resume")
    expect("resumed from" in said and "step 7, saved by 2 ranks" in said, f"a resume says: {said}")
    expect(second["parameters_hash"] == whole["parameters_hash"], "a resumed run ends with other parameters")
    for name in ("loss", "grad_norm"):
        expect(first[name] == whole[name][:7] and second[name] == whole[name][7:],
               f"{name} is not that of the steps which each process ran")
    expect(saves_of(folder) == ["latest", "step-000010", "step-000012"], f"saves: {saves_of(folder)}")

    again, _ = programs.train(12, 2, *options, "--resume")
    expect(again["loss"] == [] and again["parameters_hash"] == whole["parameters_hash"], "done is not done")
    other, _ = programs.train(12, 3, "--checkpoint", folder, "--resume", "--strategy", "zero1")
    expect(other["parameters_hash"] == whole["parameters_hash"], "3 ranks load other parameters than 2 saved")
    programs.run(programs.options.train_gpt, "--steps", 14, "--checkpoint", folder, "--resume", fails=True)

    said = programs.inspect(folder)
    expect("step-000012 (latest)" in said and "adamw after 12 steps" in said and "whole" in said, said)
    flip(folder / "step-000012" / "rank-00001.safetensors")
    expect("DAMAGED" in programs.inspect(folder, fails=True), "inspection finds no damage")
    third, said = programs.train(12, 2, *options, "--resume")
    expect("passed over" in said and "rank-00001.safetensors: chunk 0" in said, f"a fall back says: {said}")
    expect(third["loss"] == whole["loss"][10:], "it does not go on from the save before")
    expect(third["parameters_hash"] == whole["parameters_hash"], "nor does it end as it should")
    for save in folder.glob("step-*"):
        flip(save / "manifest.json")
    said = programs.run(programs.options.train_gpt, "--layers", 1, "--width", 32, "--sequence", 16, "--batch", 12,
                        "--steps", 14, "--checkpoint", folder, "--resume", fails=True)
    expect("no save in it can be loaded" in said and "manifest.json" in said, f"all damaged says: {said}")


def check_resume(programs):
    def go(folder, *more, **how):
        return programs.run(programs.options.resume, programs.work / folder, "--steps", 120, *more, **how)

    whole = go("uninterrupted").splitlines()[-1]
    line = [programs.options.resume, programs.work / "killed", "--steps", "120", "--die-after", "70"]
    died = subprocess.run([str(word) for word in line], capture_output=True, timeout=120)
    expect(died.returncode == -signal.SIGKILL, f"it was to be killed, and ended with {died.returncode}")
    said = go("killed", "--ranks", 4)
    expect("which 2 ranks saved" in said, said)
    expect(said.splitlines()[-1] == whole, f"resumed by 4 ranks: {said}\nuninterrupted: {whole}")
    said = go("killed", "--ranks", 1, "--die-after", 1000)
    expect(said.splitlines()[-1] == whole, f"loaded by one rank: {said}")


def main():
    programs = Programs()
    failures = 0
    for check in (check_train_gpt, check_resume):
        try:
            check(programs)
            print(f"{check.__name__}: passed")
        except Failed as reason:
            failures += 1
            print(f"{check.__name__}: FAILED\n{reason}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
