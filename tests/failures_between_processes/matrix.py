"""Runs programs in which one rank fails, under mpirun: does every other rank end in time, saying why?

For each collective the rank fails before it, inside it (waiting, or while bytes move) and after it; by an
exception, SIGKILL, SIGSTOP, or by returning early; in worlds of 2, 3 and 4; the first rank and the last.
"""

import argparse
import concurrent.futures
import itertools
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "mpi"))
from run import command  # noqa: E402

OPERATIONS = ("all_gather", "reduce_scatter", "all_reduce", "broadcast", "all_to_all", "barrier")
HOW = ("throw", "kill", "stop", "return")
WHEN = ("before", "inside", "after", "moving")
WORLDS = (2, 3, 4)
TIMEOUT = 1.5  # of a collective where a rank is stopped, in s
LIMIT = 5.0  # s in which the others must have ended, after the failure or the time-out
HANG = 40.0  # s after which a run is killed

LINE = re.compile(r"@(PROCESS|FAILING|ENDED) (\d+) ([\d.]+) (.*)")
REPORT = re.compile(r"shardwise: (rank \d+ .*)")


def cases():
    """(operation, how, when, world, victim)"""
    for operation, how, when, world in itertools.product(OPERATIONS, HOW, WHEN, WORLDS):
        if how == "return" and when in ("inside", "moving"):
            continue  # a rank returns between its calls
        for victim in (0, world - 1):
            yield operation, how, when, world, victim


def sample(count):
    """So many cases that every kind of failure, and as many collectives and worlds as there is room for, occurs."""
    everything = list(cases())
    random.Random(7).shuffle(everything)
    chosen, seen = [], set()
    for case in everything + everything:
        key = case[1:3]
        if len(chosen) < count and case not in chosen and (key not in seen or len(seen) == 14):
            seen.add(key)
            chosen.append(case)
    return chosen


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def expected(operation, how, victim):
    """What each of the other ranks must say."""
    words = {"throw": [f"rank {victim} failed: out of memory on purpose"],
             "kill": [f"rank {victim} died"],
             "stop": [f"missing ranks: {victim};", f"rank {victim} (missing): does not answer"],
             "return": [f"rank {victim} left the group", "returned early?"]}[how]
    return words + [f"{operation} #", '"block.']


class Run:
    def __init__(self, options, case):
        self.case = case
        operation, how, when, world, victim = case
        # Only a stopped rank is waited for in vain.
        timeout = TIMEOUT if how == "stop" else HANG
        line = command(options.launcher, options.kind, world,
                       [options.program, operation, how, when, str(victim), str(int(timeout * 1000))])
        begin = time.monotonic()
        # Where MPICH's transport, UCX, reads a peer's memory through the kernel, it aborts the reader's process when
        # the peer dies meanwhile.
        environment = {"UCX_TLS": "^cma", **os.environ}
        child = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        self.hung = False
        self.unheard = 0
        # MPICH's launcher kills all processes at once when one was killed, often before they can say anything.
        self.may_be_unheard = options.kind == "mpich" and how == "kill"
        try:
            output, _ = child.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            self.hung = True
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
        self.ended = time.monotonic()
        self.seconds = self.ended - begin
        self.output = output.decode("utf-8", "replace")
        self.status = child.returncode
        self.problems = list(self.check())

    def check(self):
        operation, how, _, world, victim = self.case
        pids, ends, failed_at = {}, {}, None
        for line in self.output.splitlines():
            found = LINE.search(line)
            if not found:
                continue
            what, rank, when, text = found[1], int(found[2]), float(found[3]), found[4]
            if what == "PROCESS":
                pids[rank] = int(text)
            elif what == "FAILING":
                failed_at = when
            else:
                ends[rank] = (when, text)
        if self.hung:
            yield f"hung for {HANG:.0f} s"
        if len(pids) != world or failed_at is None:
            yield "did not come to the failure"
            return
        # The launcher reaps its children a moment later.
        deadline = time.monotonic() + 3
        while any(map(alive, pids.values())) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [rank for rank, pid in pids.items() if alive(pid)]
        for rank in left:
            os.kill(pids[rank], signal.SIGKILL)
        if left:
            yield f"ranks {left} are left over"
        if self.status == 0:
            yield "the launcher says that all is well"
        if how == "return" and ends.get(victim, (0, "in peace"))[1] != "in peace":
            yield f"the rank that returned says {ends[victim][1]}"
        limit = LIMIT + (TIMEOUT if how == "stop" else 0)
        self.latency = 0.0
        reports = [found[1] for found in map(REPORT.search, self.output.splitlines()) if found]
        for rank in range(world):
            if rank == victim:
                continue
            # What the rank threw, or else the line that its channel wrote before the launcher ended it.
            said = [ends[rank][1]] if rank in ends else []
            said += [text for text in reports if f"; rank {rank} was " in text]
            if not said and self.may_be_unheard and "Killed (signal 9)" in self.output:
                self.unheard += 1
            elif not any(all(word in text for word in expected(operation, how, victim)) for text in said):
                yield f"rank {rank} does not say what happened: {said}"
            end = ends[rank][0] if rank in ends else self.ended
            self.latency = max(self.latency, end - failed_at)
        if self.latency > limit:
            yield f"a rank needed {self.latency:.2f} s, and has {limit:.1f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launcher", required=True)
    parser.add_argument("--kind", choices=("openmpi", "mpich"), required=True)
    parser.add_argument("--runs", type=int, help="so many cases; all of them without it")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", help="a regular expression on `operation how when world victim`")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("program")
    options = parser.parse_args()
    chosen = sample(options.runs) if options.runs else list(cases())
    if options.only:
        chosen = [case for case in chosen if re.search(options.only, " ".join(map(str, case)))]
    begin, bad, hangs, unheard, latencies = time.monotonic(), 0, 0, 0, {how: [] for how in HOW}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(lambda case: Run(options, case), chosen):
            hangs += run.hung
            bad += bool(run.problems)
            unheard += run.unheard
            latencies[run.case[1]].append(getattr(run, "latency", HANG))
            if run.problems or options.verbose:
                print(" ".join(map(str, run.case)), f"({run.seconds:.1f} s):", "; ".join(run.problems) or "well")
            if run.problems:
                print("  " + run.output.strip().replace("\n", "\n  "), flush=True)
    print(f"{len(chosen)} runs in {time.monotonic() - begin:.0f} s, {bad} of them bad, {hangs} hung; the last of the "
          "other ranks ended after at most " +
          ", ".join(f"{max(times):.2f} s ({how})" for how, times in latencies.items() if times))
    if unheard:
        print(f"{unheard} ranks were killed by the launcher before they could say why")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
