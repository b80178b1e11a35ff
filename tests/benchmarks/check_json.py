"""Runs a benchmark on next to nothing and reads what it writes: every row has the fields that are documented,
of their types, and numbers that fit each other. What they say of speed is not looked at: bounds may be missed.

    check_json.py NAME FILE COMMAND...     NAME of the benchmark, FILE that COMMAND writes with --json
"""

import json
import pathlib
import subprocess
import sys

NUMBER = (int, float)
TIMED = "positive"  # a number above 0
OPS = {"all_gather", "reduce_scatter", "all_reduce", "broadcast", "all_to_all"}
DTYPES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "i64": 8, "i32": 4, "i8": 1, "u8": 1}

FIELDS = {
    "collectives": {"op": OPS, "dtype": set(DTYPES), "bytes": TIMED, "time_us": TIMED, "time_us_min": TIMED,
                    "time_us_max": TIMED, "algbw_gbs": TIMED, "busbw_gbs": TIMED, "limit_us": TIMED,
                    "limit_ratio": TIMED, "wrong": int},
    "gather": {"residency": {"slots", "host_buffer", "shared", "in_place"}, "lease": {"f32", "bf16"},
               "prefetch": bool, "kept": bool, "pages": {"", "move", "alias", "shared"}, "ranks": TIMED, "bytes": TIMED, "spans": TIMED,
               "recycled_spans": int, "crumb_bytes": int, "gather_us": TIMED, "gather_us_min": TIMED,
               "gather_us_max": TIMED, "copy_us": TIMED, "slots_ratio": TIMED},
    "optimizer": {"optimizer": str, "parameter": set(DTYPES), "gradient": set(DTYPES),
                  "copy": {"none", "bf16", "f16"}, "elements": TIMED, "bytes_moved": TIMED, "time_us": TIMED,
                  "time_us_min": TIMED, "time_us_max": TIMED, "elements_per_s": TIMED, "gbs": TIMED,
                  "triad_gbs": TIMED, "triad_ratio": TIMED},
    "step": {"strategy": str, "ranks": TIMED, "layer_bytes": TIMED, "layers": TIMED, "compute_ms": TIMED,
             "step_ms": TIMED, "step_ms_min": TIMED, "step_ms_max": TIMED, "overhead_ms": NUMBER,
             "bytes_moved": TIMED, "copy_alone_ms": TIMED, "copy_limit_ms": TIMED,
             "overhead_ratio": NUMBER},
    "scale": {"what": {"plan", "shard", "simulate", "step", "register"}, "ranks": TIMED, "parameters": TIMED},
    "compile": {"header": str, "in_use": bool, "check_s": TIMED, "check_s_min": TIMED, "check_s_max": TIMED,
                "object_s": TIMED, "object_bytes": TIMED},
    "peers": {"op": OPS, "dtype": {"f32"}, "bytes": TIMED, "threads_us": TIMED, "threads_us_min": TIMED,
              "threads_us_max": TIMED},
}


def fail(name, row, why):
    sys.exit(f"{name}: {why}\n{json.dumps(row, indent=2)}")


def is_of(value, kind):
    if isinstance(kind, set):
        return value in kind
    if kind is TIMED:
        return isinstance(value, NUMBER) and not isinstance(value, bool) and 0 < value < float("inf")
    if kind is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, kind)


def near(a, b, part=1e-6):
    return abs(a - b) <= part * abs(b)


def check_collectives(row, run):
    ranks = run["ranks"]
    bus = {"broadcast": 1, "all_reduce": 2 * (ranks - 1) / ranks}.get(row["op"], (ranks - 1) / ranks)
    yield row["wrong"] == 0, "results are wrong"
    yield row["bytes"] % (ranks * DTYPES[row["dtype"]]) == 0, "the buffer is not so many elements for each rank"
    yield near(row["algbw_gbs"], row["bytes"] / row["time_us"] * 1e-3), "algbw_gbs is not bytes / time"
    yield near(row["busbw_gbs"], row["algbw_gbs"] * bus), "busbw_gbs is not that of nccl-tests"
    # The median of quotients is not the quotient of medians, but not far from it.
    low, high = row["limit_us"] / row["time_us_max"], row["limit_us"] / row["time_us_min"]
    yield low / 5 < row["limit_ratio"] < high * 5, "limit_ratio is not limit / time"
    if run["backend"] == "mpi":
        yield is_of(row.get("mpi_us"), TIMED) and is_of(row.get("mpi_ratio"), TIMED), "no time of the MPI call"
    if run["backend"] == "cuda":
        yield is_of(row.get("nccl_us"), TIMED) and is_of(row.get("nccl_ratio"), TIMED), "no time of the NCCL call"
        yield run["emulated"] == run["device"].startswith("EMULATED"), "does not say that it is emulated"


def check_optimizer(row, _):
    width = DTYPES[row["parameter"]] * 2 + DTYPES[row["gradient"]] + DTYPES.get(row["copy"], 0)
    states = {"AdamW": 2, "Adam": 2, "SGD momentum": 1, "SGD": 0, "Lion": 1}[row["optimizer"]]
    yield row["bytes_moved"] == row["elements"] * (width + 8 * states), "bytes_moved: another count of arrays"
    yield near(row["gbs"], row["bytes_moved"] / row["time_us"] * 1e-3), "gbs is not bytes / time"
    yield near(row["elements_per_s"], row["elements"] / row["time_us"] * 1e6), "elements_per_s"


def check_step(row, _):
    yield row["bytes_moved"] % row["layer_bytes"] == 0, "bytes_moved are not whole buffers"
    most = {"zero3": 3, "ddp": 1}.get(row["strategy"], 2) * row["layers"] * row["layer_bytes"]
    yield row["layers"] * row["layer_bytes"] <= row["bytes_moved"] <= most, "bytes_moved"
    yield row["overhead_ms"] < row["step_ms"], "a step costs less than what it adds"
    yield row["copy_alone_ms"] <= row["copy_limit_ms"] * 1.001, "copies cost less in a step than alone"


def check_gather(row, run):
    yield run["backend"] == "threads" or run["backend"] == "mpi" and row["ranks"] == 2, "not the ranks of the launch"
    if row["residency"] == "slots" and row["lease"] == "f32" and not row["prefetch"]:
        yield row["slots_ratio"] == 1, "slots differ from themselves"
    yield row["spans"] in (1, 12), "spans"
    yield (row["residency"] == "in_place") == (row["pages"] != ""), "pages are of parameters in place"


def check_peers(row, run):
    times = [row[peer + "_us"] for peer in ("openmpi", "mpich") if peer + "_us" in row]
    if times:
        yield all(is_of(time, TIMED) for time in times), "a peer's time"
        yield near(row["times_better"], min(times) / row["threads_us"]), "times_better is not the better peer's"


def check_compile(row, _):
    yield row["object_bytes"] > 100, "an object file of nothing"


CHECKS = {"collectives": check_collectives, "optimizer": check_optimizer, "step": check_step,
          "gather": check_gather, "peers": check_peers, "compile": check_compile}


def check(name, result):
    machine = result["machine"]
    if not is_of(machine["processor"], str) or not is_of(machine["cores"], TIMED):
        fail(name, machine, "no machine")
    if not result["rows"]:
        fail(name, result, "no rows")
    for row in result["rows"]:
        for field, kind in FIELDS[name].items():
            if field not in row or not is_of(row[field], kind):
                fail(name, row, f"{field} is missing or not of {kind}")
        for field in [field for field in row if field.endswith("_min")]:
            middle, most = row[field[:-4]], row[field[:-4] + "_max"]
            if not 0 < row[field] <= middle <= most:
                fail(name, row, f"{field[:-4]} is not between its least and its most")
        for good, why in CHECKS.get(name, lambda *_: ())(row, result["run"]):
            if not good:
                fail(name, row, why)
    if name == "collectives":
        found = [(row["op"], row["dtype"], row["bytes"]) for row in result["rows"]]
        if len(found) != len(set(found)) or {(op, dtype) for op, dtype, _ in found} != {
                (op, dtype) for op in OPS for dtype in DTYPES}:
            fail(name, found, "not every operation and type, once a size")


def main():
    name, file, *command = sys.argv[1:]
    path = pathlib.Path(file)
    path.unlink(missing_ok=True)
    done = subprocess.run([*command, "--json", file], capture_output=True, text=True)
    if done.returncode not in (0, 1) or not path.exists():  # 1: a bound was missed, or an error
        sys.exit(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    check(name, json.loads(path.read_text()))
    usage = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    if "--json" not in usage:
        sys.exit(f"{name}: --help does not tell of --json:\n{usage}")


if __name__ == "__main__":
    main()
