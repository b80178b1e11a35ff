"""The tests of the sharded types with ranks that are processes, on the emulation: the same program is started once
for each rank, and what a test does on ranks it does on these. Each process also runs every rank as a thread and looks
at its own results beside theirs."""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

RAN = re.compile(r"emulated: (\d+) runs as rank (\d+) of (\d+) processes")
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "OMPI_", "PMI", "MPI_", "SLURM_")


def start(options, world, rank, folder, output):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCH_VARIABLES)}
    environment |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
                    "SHARDWISE_TEST_PROCESSES": folder, "LD_LIBRARY_PATH": options.emulation,
                    "SHARDWISE_EMULATION_LEAKS": "error", "SHARDWISE_EMULATION_LEGACY_STREAM": "error",
                    "TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0"}
    return subprocess.Popen([options.program, *options.tests], env=environment, stdin=subprocess.DEVNULL, stdout=output,
                            stderr=subprocess.STDOUT, start_new_session=True)


def run(options, world):
    """Each process' exit status and what it wrote. All are killed when the time is up, or soon after one failed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [tempfile.TemporaryFile("w+") for _ in range(world)]
        processes = [start(options, world, rank, folder, outputs[rank]) for rank in range(world)]
        deadline = time.monotonic() + options.seconds
        try:
            while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
                if any(process.poll() not in (None, 0) for process in processes):
                    deadline = min(deadline, time.monotonic() + 20)  # peers of one that failed have a moment
                time.sleep(0.05)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        result = []
        for process, output in zip(processes, outputs):
            output.seek(0)
            result.append((process.returncode, output.read()))
            output.close()
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--emulation", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, default=280, help="for each number of ranks")
    parser.add_argument("tests", nargs="*", help="behind --: which tests, as the program's own arguments")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the processes, too
    for world in options.ranks:
        begin = time.monotonic()
        runs = run(options, world)
        found = [RAN.search(text) for _, text in runs]
        counts = {int(match[1]) for match in found if match}
        # A slice may have no test of so many ranks.
        enough = len(counts) == 1 and (counts != {0} or "--shard-count" in options.tests)
        good = (all(status == 0 for status, _ in runs) and all(found) and enough
                and [(int(match[2]), int(match[3])) for match in found] == [(rank, world) for rank in range(world)])
        if not good:
            for rank, (status, text) in enumerate(runs):
                print(f"emulated, rank {rank} of {world} processes ended with {status}:\n{text[-6000:]}")
            return 1
        print(f"emulated, {world} processes: {counts.pop()} runs, all as on threads ({time.monotonic() - begin:.0f} s)",
              flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
