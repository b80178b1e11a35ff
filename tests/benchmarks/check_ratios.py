"""What the benchmarks must show, as ratios within one run: label bench, on a quiet machine.

    check_ratios.py CLAIM COMMAND...

COMMAND, a benchmark with its arguments, runs up to three times, and for each row its best median counts.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

MIB = 1 << 20


def limit(row, least):
    """Of the collectives that have a bound: from 1 MiB up."""
    return row["limit_ratio"], least, row["bytes"] >= MIB and row["op"] in ("all_gather", "reduce_scatter")


def peers(row):
    least = {"all_gather": 1.8, "reduce_scatter": 3}.get(row["op"], 0)
    return row.get("times_better", 0), least if row["bytes"] >= 65536 else 1, "times_better" in row and least > 0


def optimizer(row):
    fused = (row["gradient"], row["copy"]) in (("f32", "none"), ("bf16", "bf16"))
    in_memory = row["bytes_moved"] >= 256 * MIB
    return row["triad_ratio"], 0.9, row["optimizer"] == "AdamW" and row["parameter"] == "f32" and fused and in_memory


def step(row):
    """The limit over the overhead: 1.15 at most the other way round."""
    return (1 / row["overhead_ratio"] if row["overhead_ratio"] > 0 else 99), 1 / 1.15, row["strategy"] == "zero3"


# Of a row: a value of which more is better, the least that it must be, and whether the claim speaks of the row.
CLAIMS = {"limit": lambda row: limit(row, 0.9),
          "limit of more ranks than cores": lambda row: limit(row, 0.6),  # no cliff
          "peers": peers, "optimizer": optimizer, "step": step,
          "step of large layers": step}
IDENTITY = ("op", "dtype", "bytes", "optimizer", "parameter", "gradient", "copy", "elements", "strategy", "ranks",
            "layer_bytes")


def main():
    claim = CLAIMS[sys.argv[1]]
    best, least = {}, {}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "results.json")
            subprocess.run([*sys.argv[2:], "--json", file], check=True, stdout=subprocess.DEVNULL)
            rows = json.loads(file.read_text())["rows"]
        for row in rows:
            value, bound, counts = claim(row)
            if not counts:
                continue
            key = " ".join(str(row[name]) for name in IDENTITY if name in row)
            best[key], least[key] = max(value, best.get(key, 0)), bound
        missed = [key for key in best if best[key] < least[key]]
        if not missed:
            break
    for key, value in best.items():
        print(f"{key:48} {value:8.3f}, at least {least[key]:.3f}{'   <- missed' if key in missed else ''}")
    if not best:
        print("skipped: nothing to compare with")
        return 77
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
