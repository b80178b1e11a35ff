"""examples/cuda_gpt under mpirun, on the emulation: NCCL's identifier travels by MPI. The same parameters as its
ranks that are threads, bit for bit; every rank's words where one fails; and a small program that fails while
ranks meet, before and while NCCL connects them."""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "mpi"))
from run import command  # noqa: E402

SIZES = "--steps 3 --layers 2 --width 16 --heads 2 --sequence 8 --batch 12 --lease bf16 --quiet".split()
ENDED = re.compile(r"@ENDED (\d+) (.*)")
REPORT = re.compile(r"shardwise: (rank \d+ .*)")
LIMIT = 30.0  # s for a run that fails; ranks wait for each other for 4
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "OMPI_", "PMI", "MPI_", "SLURM_",
                    "SHARDWISE_")


class Wrong(Exception):
    """What a program did otherwise than it should."""


class Launcher:
    def __init__(self, options):
        self.options = options
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(LAUNCH_VARIABLES)} | {"LD_LIBRARY_PATH": options.emulation}

    def run(self, line, seconds=90, **more):
        """Exit status, and what it wrote."""
        child = subprocess.Popen([str(word) for word in line], env=self.environment | more, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            raise Wrong(f"{line} hangs: not done in {seconds:.0f} s\n{output}") from None
        return child.returncode, output

    def over_mpi(self, ranks, *program, **how):
        return self.run(command(self.options.launcher, self.options.kind, ranks, list(program)), **how)

    def fails(self, ranks, *program, **how):
        status, output = self.over_mpi(ranks, *program, **how)
        if status == 0:
            raise Wrong(f"{program} should fail:\n{output}")
        return output


def expect(output, *words):
    for word in words:
        if word not in output:
            raise Wrong(f"this should say '{word}':\n{output}")


def check_hashes(launcher, folder):
    program = launcher.options.program
    report = folder / "report.json"

    def train(line, **more):
        report.unlink(missing_ok=True)
        status, output = launcher.run([*line, "--json", report], **more)
        if status != 0:
            raise Wrong(f"{line} ended with {status}:\n{output}")
        if output.count("EMULATION") != 1:
            raise Wrong(f"expected one rank's words, found:\n{output}")
        return json.loads(report.read_text())

    for ranks, strategy, ways in ((4, "zero3", ("auto", "files")), (3, "ddp", ("mpi",)), (2, "zero2", ("auto",))):
        words = [*SIZES, "--strategy", strategy]
        threads = train([program, *words, "--ranks", ranks])
        for way in ways:
            over = train(command(launcher.options.launcher, launcher.options.kind, ranks,
                                 [program, *words, "--rendezvous", way]))
            for key in ("world", "strategy", "parameters_hash", "loss", "grad_norm", "traffic_per_step"):
                if threads[key] != over[key]:
                    raise Wrong(f"{ranks} ranks, {strategy}, rendezvous {way}: {key} is {over[key]}, "
                                f"with threads {threads[key]}")
            print(f"emulated, {ranks} ranks, {strategy}, rendezvous {way}: {over['parameters_hash']}", flush=True)


def check_failure(launcher, folder):
    """A text that is too short, for all or for one rank alone: each says so. Wrong options; a launcher that is not the
    one of the MPI."""
    program = launcher.options.program
    short = folder / "short.txt"
    short.write_text("short")
    expect(launcher.fails(3, program, *SIZES, "--text", str(short)), "the text has 5 bytes")
    alone = 'case "$OMPI_COMM_WORLD_RANK$PMI_RANK" in 1) exec "$@" --text "$0";; *) exec "$@";; esac'
    output = launcher.fails(3, "sh", "-c", alone, str(short), program, *SIZES)
    said = [line for line in output.splitlines() if line.startswith("cuda_gpt: ") and "the text has 5 bytes" in line]
    if len(said) != 3 or sum("rank 1 failed" in line for line in said) != 2:
        raise Wrong(f"all three ranks should say why, two of them by whom:\n{output}")
    expect(launcher.fails(2, program, *SIZES, "--ranks", "3"), "a launcher has started 2 processes")
    status, output = launcher.run([program, *SIZES, "--rendezvous", "mpi"], SHARDWISE_RANK="0", SHARDWISE_SIZE="2")
    if status != 1:
        raise Wrong(f"a process that MPI has not connected ended with {status}:\n{output}")
    expect(output, "this is process 0 of 2, MPI says 0 of 1")


def victims_words(how, when, victim):
    if how == "throw":
        return f"rank {victim} failed: out of memory on purpose"
    if how == "kill":
        return f"rank {victim} (failed: it )?died"
    if how == "version":
        return rf"rank 0 found the library of NCCL [\d.]+, rank {victim or 1} that of [\d.]+, .*LD_LIBRARY_PATH"
    return f"waited in vain.*missing ranks: {victim}" if when == "before" else "waited in vain"


class Unheard(Wrong):
    """The launcher ended all ranks before one could speak."""


def check_start(launcher, how, when, victim, ranks=3):
    begin = time.monotonic()
    output = launcher.fails(ranks, launcher.options.meeting, how, when, victim, seconds=40)
    seconds = time.monotonic() - begin
    ends = {int(found[1]): found[2] for found in ENDED.finditer(output)}
    lines = REPORT.findall(output)
    unheard = 0
    for rank in range(ranks):
        if rank == victim and how != "version":
            continue
        # What the rank threw, or else the line that its channel wrote before the launcher ended it.
        said = [ends[rank]] if rank in ends else [line for line in lines if f"; rank {rank} was " in line]
        if not said and how == "kill":
            unheard += 1  # the launcher ends all processes where one was killed
        elif not any(re.search(victims_words(how, when, victim), text) for text in said):
            raise Wrong(f"rank {rank} should say {victims_words(how, when, victim)}:\n{output}")
    if unheard == ranks - 1 and launcher.options.kind == "openmpi":
        raise Unheard(f"no rank says that rank {victim} was killed:\n{output}")
    if seconds > LIMIT:
        raise Wrong(f"it took {seconds:.1f} s:\n{output}")
    return f"emulated, rank {victim}: {how} {when}: every other rank says so ({seconds:.1f} s)"


def check_starts(launcher, folder):
    del folder
    status, output = launcher.over_mpi(3, launcher.options.meeting)
    if status != 0 or output.count("in peace") != 3:
        raise Wrong(f"without a failure it ends with {status}:\n{output}")
    cases = (("throw", "before", 1), ("throw", "given", 0), ("throw", "connecting", 2), ("kill", "before", 0),
             ("kill", "given", 2), ("kill", "connecting", 1), ("kill", "given", 0), ("stop", "before", 1),
             ("stop", "connecting", 2), ("version", "before", 2), ("version", "before", 0))
    def check(case):
        for _ in range(2):
            with contextlib.suppress(Unheard):
                return check_start(launcher, *case)
        return check_start(launcher, *case)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # most of the time they wait
        for said in pool.map(check, cases):
            print(said, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launcher", required=True, help="mpirun")
    parser.add_argument("--kind", choices=("openmpi", "mpich"), required=True)
    parser.add_argument("--emulation", required=True)
    parser.add_argument("--program", required=True, help="cuda_gpt")
    parser.add_argument("--meeting", help="nccl_over_mpi; without it nothing fails while ranks meet")
    options = parser.parse_args()
    for check in (check_hashes, check_failure, *((check_starts,) if options.meeting else ())):
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(Launcher(options), pathlib.Path(folder))
            except Wrong as wrong:
                sys.exit(f"{check.__name__}: {wrong}")
        print(f"{check.__name__}: good", flush=True)


main()
