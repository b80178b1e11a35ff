"""examples/cuda_gpt as a program, on the emulation: its ranks as threads, as processes by the variables of
three launchers, with one that fails; and without a device."""

import argparse
import glob
import json
import os
import pathlib
import subprocess
import sys
import tempfile

SIZES = "--steps 3 --layers 2 --width 16 --heads 2 --sequence 8 --batch 12 --lease bf16 --quiet".split()
WORLD = 3
# Per rank, what a launcher sets.
LAUNCHERS = {
    "torchrun": lambda rank: {"RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_RANK": rank,
                              "LOCAL_WORLD_SIZE": WORLD, "TORCHELASTIC_RUN_ID": "run"},
    "Open MPI": lambda rank: {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": WORLD,
                              "OMPI_COMM_WORLD_LOCAL_RANK": rank, "OMPI_COMM_WORLD_LOCAL_SIZE": WORLD},
    "Slurm": lambda rank: {"SLURM_PROCID": rank, "SLURM_NTASKS": WORLD, "SLURM_LOCALID": rank,
                           "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0,
                           "NCCL_COMM_ID": f"127.0.0.1:{20000 + os.getpid() % 20000}"},
}
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "OMPI_", "PMI", "MPI_", "SLURM_",
                    "SHARDWISE_")


class Wrong(Exception):
    """What the program did otherwise than it should."""


def environment(emulation, more):
    """Ours without what a launcher of this test itself may have set."""
    result = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCH_VARIABLES)}
    result.pop("LD_LIBRARY_PATH", None)
    if emulation:
        result["LD_LIBRARY_PATH"] = emulation
    return result | {name: str(value) for name, value in more.items()}


def start(program, options, emulation, more):
    return subprocess.Popen([program, *options], env=environment(emulation, more), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def finish(process):
    """Exit status and what it wrote."""
    out, errors = process.communicate(timeout=60)
    return process.returncode, out + errors


def require(condition, what, *runs):
    if not condition:
        raise Wrong("\n".join([what, *(f"exit status {status}:\n{text}" for status, text in runs)]))


def in_processes(arguments, folder, variables, options_of):
    """The ranks' exit statuses and what they wrote."""
    meeting = {"SHARDWISE_RENDEZVOUS": pathlib.Path(folder, "meeting")}
    processes = [start(arguments.program, options_of(rank), arguments.emulation, variables(rank) | meeting)
                 for rank in range(WORLD)]
    return [finish(process) for process in processes]


def check_launches(arguments, folder):
    report = pathlib.Path(folder, "report.json")
    options = [*SIZES, "--json", str(report)]
    run = finish(start(arguments.program, [*options, "--ranks", str(WORLD)], arguments.emulation, {}))
    require(run[0] == 0 and "EMULATION" in run[1], "as threads it does not train", run)
    expected = json.loads(report.read_text())
    require(expected["world"] == WORLD and len(expected["loss"]) == 3, f"the report is {expected}")
    for name, variables in LAUNCHERS.items():
        report.unlink()
        runs = in_processes(arguments, folder, variables, lambda rank: options)
        require(all(status == 0 for status, _ in runs), f"{name}: a process failed", *runs)
        require("EMULATION" in runs[0][1] and not any(text for _, text in runs[1:]),
                f"{name}: rank 0 alone should say what happens", *runs)
        found = json.loads(report.read_text())
        for key in ("world", "loss", "grad_norm", "parameters_hash"):
            require(found[key] == expected[key],
                    f"{name}: {key} is {found[key]}, in threads {expected[key]}")


def check_failure(arguments, folder):
    """A text that is too short on one rank alone."""
    short = pathlib.Path(folder, "short.txt")
    short.write_text("short")
    runs = in_processes(arguments, folder, LAUNCHERS["torchrun"],
                        lambda rank: [*SIZES, "--text", str(short)] if rank == 1 else SIZES)
    require(all(status == 1 for status, _ in runs), "one rank fails: all should end with 1", *runs)
    require(all("the text has 5 bytes" in text for _, text in runs), "all should say why", *runs)


def check_refusals(arguments, folder):
    del folder
    for options, more, status, text in (
            (["--ranks", "3", "--batch", "4"], {}, 2, "--batch 4 does not divide"),
            (["--ranks", "2"], LAUNCHERS["torchrun"](0), 2, "a launcher has started 3 processes"),
            (["--lease", "f16"], {}, 105, "--lease: f16 not in"),
            (["--ranks", "64", "--batch", "64"], {}, 1, "64 ranks need a CUDA device each"),
            (["--strategy", "zero9"], {}, 1, "there is no strategy 'zero9'"),
    ):
        run = finish(start(arguments.program, options, arguments.emulation, more))
        require(run[0] == status and text in run[1], f"{options} should end with {status}: {text}", run)


def check_without_device(arguments, folder):
    del folder
    run = finish(start(arguments.program, SIZES, None, {}))
    if glob.glob("/dev/nvidia[0-9]*"):
        require("CUDA devices: " in run[1], "it does not name the devices", run)
    else:
        require(run == (77, "skipped: no CUDA device\n"), "without a device it should be skipped", run)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--emulation", required=True)
    arguments = parser.parse_args()
    for check in (check_launches, check_failure, check_refusals, check_without_device):
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(arguments, folder)
            except Wrong as wrong:
                sys.exit(f"{check.__name__}: {wrong}")
        print(f"{check.__name__}: good")


main()
