"""compare_strategies in processes: the table, JSON, HTML and configuration of one rank; the bytes that were planned;
the bits of threads; and what does not fit the launcher is refused."""

import json
import pathlib
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "mpi"))
import run  # noqa: E402
from run import Failed  # noqa: E402

SIZE = ["--layers", "2", "--width", "32", "--sequence", "16", "--steps", "3", "--rounds", "1"]


def output(line, fails=False):
    done = subprocess.run([str(word) for word in line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)
    if (done.returncode != 0) != fails:
        raise Failed(f"{line} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stderr if fails else done.stdout


def report(options, ranks, mpi, *words):
    files = {kind: options.work / f"{ranks}-{mpi}.{kind}" for kind in ("json", "html", "yaml")}
    # Who runs a gather decides what is gathered ahead: the same with threads and in processes.
    line = [options.program, *SIZE, "--overlap-from", "0", "--batch", 2 * ranks, "--json", files["json"],
            "--html", files["html"], "--write-config", files["yaml"], *words]
    said = output(run.command(options.launcher, options.kind, ranks, [str(word) for word in line]) if mpi
                  else [*line, "--ranks", ranks])
    if said.count("I would take") != 1 or f"{ranks} ranks ({'mpi' if mpi else 'threads'})" not in said:
        raise Failed(f"expected one table of {ranks} ranks, found:\n{said}")
    if "<svg" not in files["html"].read_text() or "recommended by compare_strategies" not in files["yaml"].read_text():
        raise Failed(f"the report or the configuration of {ranks} ranks is not there")
    found = json.loads(files["json"].read_text())
    if not (found["same_bits"] and found["planned_bytes_are_held"]):
        raise Failed(f"{ranks} ranks: bits or planned bytes differ: {json.dumps(found, indent=1)}")
    return found


def check(options):
    for ranks in (2, 3):
        threads, mpi = (report(options, ranks, mpi) for mpi in (False, True))
        for key in ("parameters_hash", "loss", "traffic_per_step"):
            a, b = ([row[key] for row in found["strategies"]] for found in (threads, mpi))
            if a != b:
                raise Failed(f"{ranks} ranks: {key} is {a} with threads and {b} in processes")
        # Processes sum through landing buffers, which threads do not need: they are planned, too.
        slots = [[row["bytes_per_rank"]["slots"] for row in found["strategies"]] for found in (threads, mpi)]
        if not all(b > a for a, b in zip(*slots)):
            raise Failed(f"{ranks} ranks: no landing buffers: {slots}")
        print(f"{ranks} ranks: {mpi['strategies'][0]['parameters_hash']}", flush=True)
    tuned = report(options, 2, True, "--tune")
    if not tuned["tuning"]["tried"]:
        raise Failed("nothing was tried")
    said = output(run.command(options.launcher, options.kind, 2, [str(options.program), "--ranks", "3"]), fails=True)
    if "--ranks 3" not in said:
        raise Failed(f"3 ranks in 2 processes were refused without saying so:\n{said}")


if __name__ == "__main__":
    sys.exit(run.run_check(__doc__, "--program", check))
