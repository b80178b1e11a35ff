"""Two machines on one: network namespaces with host names of their own, a cable between them, two ranks on each.

train_gpt trains over Open MPI and TCP with the bits of four threads; a rank that dies on one machine is known on
the other; so is a machine whose cable is pulled. Skipped (status 77) where namespaces cannot be made.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

SKIPPED = 77
NETWORK = "10.203.77"
SIZE = ["--steps", "3", "--layers", "2", "--width", "32", "--sequence", "32", "--batch", "8", "--quiet"]


class Failed(Exception):
    pass


class NoNamespaces(Exception):
    pass


def do(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise NoNamespaces(f"{' '.join(words)}: {done.stdout.strip()}")


class Machines:
    def __init__(self, launcher, work):
        self.launcher = launcher
        self.names = [f"shardwise-{side}-{os.getpid()}" for side in "ab"]
        self.addresses = [f"{NETWORK}.{number}" for number in (1, 2)]
        self.agent = work / "agent.sh"
        self.hosts = work / "hosts"

    def __enter__(self):
        try:
            self.make()
        except (NoNamespaces, FileNotFoundError):
            self.__exit__()
            raise
        # What a launcher does by ssh elsewhere: the first word is the host.
        self.agent.write_text(f"#!/bin/sh\nshift\nexec {shlex.join(self.inside(1))} sh -c \"$*\"\n")
        self.agent.chmod(0o700)
        self.hosts.write_text("".join(f"{address} slots=2\n" for address in self.addresses))
        return self

    def make(self):
        for name in self.names:
            do("ip", "netns", "add", name)
        do("ip", "link", "add", "cable", "netns", self.names[0], "type", "veth", "peer", "name", "cable", "netns",
           self.names[1])
        for name, address in zip(self.names, self.addresses):
            do("ip", "-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                do("ip", "-n", name, "link", "set", device, "up")
        do(*self.inside(0), "true")

    def __exit__(self, *_):
        for name in self.names:
            # Whatever is left of a run that went wrong.
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def inside(self, machine):
        """The words before a command that runs on a machine."""
        name = self.names[machine]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name} && exec "$@"', "sh"]

    def pull_the_cable(self):
        do("ip", "-n", self.names[1], "link", "set", "cable", "down")

    def command(self, program):
        network = f"{NETWORK}.0/24"
        line = [self.launcher, "--hostfile", str(self.hosts), "-n", "4", "--oversubscribe"]
        for name, value in (("plm_rsh_agent", str(self.agent)), ("btl", "tcp,vader,self"), ("pml", "ob1"),
                            ("btl_tcp_if_include", network), ("oob_tcp_if_include", network),
                            ("orte_tmpdir_base", str(self.hosts.parent))):
            line += ["--mca", name, value]
        if os.geteuid() == 0:
            line.insert(1, "--allow-run-as-root")
        return [*self.inside(0), *line, *program]


def text_of(line, seconds=120, fails=False):
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
                          timeout=seconds)
    if (done.returncode != 0) != fails:
        raise Failed(f"{' '.join(line)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def expect(output, *words):
    for word in words:
        if word not in output:
            raise Failed(f"expected '{word}' in\n{output}")


def check_hashes(machines, train_gpt, work):
    file = work / "report.json"
    # The last one keeps the sharding within a machine.
    for words in (["ddp"], ["zero2"], ["zero3"], ["hybrid", "--shard-group", "2"]):
        strategy = " ".join(words)
        hashes = []
        for line in ([train_gpt, "--ranks", "4"], machines.command([train_gpt])):
            file.unlink(missing_ok=True)
            text_of([*line, *SIZE, "--strategy", *words, "--json", str(file)])
            report = json.loads(file.read_text(encoding="utf-8"))
            hashes.append((report["world"], report["parameters_hash"]))
        print(f"{strategy}: threads {hashes[0]}, two machines {hashes[1]}", flush=True)
        if hashes[0] != hashes[1]:
            raise Failed(f"{strategy} gives {hashes[0]} with threads and {hashes[1]} on two machines")


def check_names(machines):
    """The ranks do live on two machines, and the network between them is the cable."""
    output = text_of(machines.command(["hostname"]))
    # The launcher may say something, too.
    found = [line for line in output.splitlines() if line in machines.names]
    if sorted(found) != sorted(2 * machines.names):
        raise Failed(f"four ranks are on {found}:\n{output}")


def check_death(machines, failing_rank):
    for victim in (0, 3):
        output = text_of(machines.command([failing_rank, "all_reduce", "kill", "before", str(victim), "5000"]),
                         fails=True)
        others = [rank for rank in range(4) if rank != victim]
        for rank in others:
            lines = [line for line in output.splitlines() if f"rank {rank} was in all_reduce" in line]
            expect("\n".join(lines) or f"nothing from rank {rank} in {output}", f"rank {victim} died", '"block.3"')
        print(f"rank {victim} killed: known on both machines", flush=True)


def check_cable(machines, failing_rank, work):
    # The rank that is to fail does nothing for a long time: the others wait for it.
    line = machines.command([failing_rank, "all_reduce", "wait", "before", "3", "60000"])
    said = work / "cable.txt"
    with said.open("wb") as file, subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT,
                                                   stdin=subprocess.DEVNULL) as run:
        while "@FAILING" not in said.read_text(encoding="utf-8"):
            if run.poll() is not None:
                raise Failed(said.read_text(encoding="utf-8"))
            time.sleep(0.05)
        begin = time.monotonic()
        machines.pull_the_cable()
        # The launcher itself would wait for its other half.
        while any(f"@ENDED {rank}" not in said.read_text(encoding="utf-8") for rank in (0, 1)):
            if time.monotonic() - begin > 60:
                run.kill()
                raise Failed("hangs after the cable was pulled:\n" + said.read_text(encoding="utf-8"))
            time.sleep(0.1)
        seconds = time.monotonic() - begin
        run.kill()
    for rank in (0, 1):
        expect(said.read_text(encoding="utf-8"), "died: its connection broke", f"rank {rank} was in all_reduce")
    print(f"cable pulled: known after {seconds:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launcher", required=True, help="Open MPI's mpirun")
    parser.add_argument("--train-gpt", type=pathlib.Path)
    parser.add_argument("--failing-rank", type=pathlib.Path)
    parser.add_argument("--cable", action="store_true", help="pull it, too, which takes half a minute")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with Machines(options.launcher, work) as machines:
            check_names(machines)
            if options.train_gpt:
                check_hashes(machines, str(options.train_gpt), work)
            if options.failing_rank:
                check_death(machines, str(options.failing_rank))
                if options.cable:
                    check_cable(machines, str(options.failing_rank), work)
    except NoNamespaces as reason:
        print(f"skipped: this needs network namespaces and iproute2: {reason}")
        return SKIPPED
    except FileNotFoundError as reason:
        print(f"skipped: {reason}")
        return SKIPPED
    except Failed as reason:
        print(reason)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
