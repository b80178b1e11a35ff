"""train_gpt over MPI against its threads: the same parameters and losses, bit for bit, for every strategy and
type of lease; checkpoints of the one for the other; who speaks; and options that contradict the launcher."""

import json
import subprocess
import sys

import run
from run import Failed

SIZE = ["--layers", "2", "--width", "32", "--sequence", "32", "--clip", "0.5", "--quiet"]
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3-no-reshard")
LEASES = ("fp32", "bf16", "f16")


class Trainer:
    def __init__(self, options):
        self.options = options
        self.help = self.text([options.train_gpt, "--help"])

    def text(self, line, fails=False):
        done = subprocess.run([str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, stdin=subprocess.DEVNULL, timeout=120)
        if (done.returncode != 0) != fails:
            raise Failed(f"{line} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def over_mpi(self, ranks, words, **how):
        program = [str(self.options.train_gpt), *words]
        return self.text(run.command(self.options.launcher, self.options.kind, ranks, program), **how)

    def report(self, ranks, words, mpi, steps=3, overlap=("--overlap-from", "0")):
        file = self.options.work / "report.json"
        file.unlink(missing_ok=True)
        batch = 8 if 8 % ranks == 0 else 2 * ranks
        # Who runs a gather decides what is gathered ahead: the same with threads and in processes.
        words = [*SIZE, *overlap, "--steps", str(steps), "--batch", str(batch), *words, "--json", str(file)]
        said = (self.over_mpi(ranks, words) if mpi
                else self.text([self.options.train_gpt, *words, "--ranks", str(ranks)]))
        if said.count("parameters_hash") + said.count(" -> ") != 1:
            raise Failed(f"expected one rank's words, found:\n{said}")
        return json.loads(file.read_text())

    def compare(self, ranks, *words):
        threads, mpi = (self.report(ranks, words, mpi) for mpi in (False, True))
        for key in ("world", "strategy", "parameters_hash", "loss", "grad_norm", "traffic_per_step"):
            if threads[key] != mpi[key]:
                raise Failed(f"{ranks} ranks, {' '.join(words)}: {key} is {threads[key]} with threads and "
                             f"{mpi[key]} over MPI")
        print(f"{ranks} ranks, {' '.join(words)}: {mpi['parameters_hash']}", flush=True)
        return mpi["parameters_hash"]

    def refuses(self, ranks, words, *says):
        said = self.over_mpi(ranks, words, fails=True)
        for word in says:
            if word not in said:
                raise Failed(f"{words} with {ranks} ranks was refused without '{word}':\n{said}")


def check(trainer):
    hashes = {lease: {trainer.compare(4, "--strategy", strategy, "--lease", lease) for strategy in STRATEGIES}
              for lease in LEASES}
    for lease, found in hashes.items():
        if len(found) != 1:
            raise Failed(f"strategies differ with {lease} leases: {found}")
    if len(set().union(*hashes.values())) != len(LEASES):
        raise Failed(f"leases do not matter: {hashes}")
    if "--shard-group" in trainer.help:
        for group in (1, 2, 4):
            found = trainer.compare(4, "--strategy", "hybrid", "--shard-group", str(group))
            if found not in hashes["fp32"]:
                raise Failed(f"hybrid in groups of {group} gives {found}, expected {hashes['fp32']}")
    for ranks in (1, 2, 3, 7):
        trainer.compare(ranks, "--strategy", "zero3", "--micro-batches", "2")
    for mpi in (False, True):
        found = trainer.report(4, ["--strategy", "zero3"], mpi, overlap=())["parameters_hash"]
        if found not in hashes["fp32"]:
            raise Failed(f"what each chooses to run beside compute gives {found}, expected {hashes['fp32']}")
    for lease in LEASES:
        found = trainer.compare(4, "--strategy", "zero3", "--residency", "shared", "--lease", lease)
        if found not in hashes[lease]:
            raise Failed(f"sharing gives {found} with {lease} leases, expected {hashes[lease]}")
    if "--checkpoint" in trainer.help:
        check_checkpoints(trainer)
    trainer.refuses(3, ["--ranks", "4"], "--ranks 4", "of 3")
    trainer.refuses(2, ["--backend", "threads"], "--backend threads", "of 2")
    trainer.refuses(2, ["--backend", "self"], "--backend self", "of 2")


def check_checkpoints(trainer):
    """Saved by processes and by threads, each resumed by the other: the run that was not interrupted."""
    whole = trainer.report(3, [], mpi=False)["parameters_hash"]
    for saves_over_mpi in (True, False):
        folder = trainer.options.work / f"saves-{saves_over_mpi}"
        words = ["--checkpoint", str(folder), "--save-every", "1"]
        trainer.report(3, words, saves_over_mpi, steps=1)
        found = trainer.report(3, [*words, "--resume"], not saves_over_mpi)
        if len(found["loss"]) != 2 or found["parameters_hash"] != whole:
            raise Failed(f"saved {'over MPI' if saves_over_mpi else 'by threads'} and resumed by the other: "
                         f"{found['parameters_hash']} after {len(found['loss'])} steps, expected {whole} after 2")
    print(f"saved and resumed: {whole}", flush=True)


if __name__ == "__main__":
    sys.exit(run.run_check(__doc__, "--train-gpt", lambda options: check(Trainer(options))))
