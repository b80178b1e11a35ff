"""What including costs a compiler: our public headers, each alone, beside the umbrella headers of fmt,
nlohmann/json and Eigen, those that are installed.

For each header: processor seconds of a unit that includes it and does nothing else, checked alone
(-fsyntax-only) and made an object file (-O2 -c), and the size of that object; "in use": with a small function
of what the header is for. The limit is an empty unit, measured in the same run. Fails where shardwise/shardwise.hpp, checked, costs as much as nlohmann/json.hpp or
more: these two take turns, and the median of their quotients counts.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile

OURS = "shardwise/shardwise.hpp"
THEIRS = "nlohmann/json.hpp"
PEERS = ["fmt/core.h", "fmt/format.h", THEIRS, "Eigen/Core", "Eigen/Dense"]
# What a small use adds to a unit: templates that are made real, and the code of an object file.
USES = {
    OURS: """
void train(shardwise::Communicator& communicator) {
  shardwise::Context<> context(communicator, shardwise::Strategy::zero3());
  shardwise::ShardedParameter<float> parameter(context, {{"weight", {1024}}});
  shardwise::ShardedGradient<float> gradient(parameter);
  shardwise::ShardedOptimizerState<shardwise::AdamW> state(parameter);
  {
    auto weights = parameter.gather();
    auto lease = gradient.lease();
    for (std::size_t i = 0; i < 1024; ++i) lease.data()[i] = weights.data()[i];
    std::move(lease).reduce();
  }
  state.step(parameter, gradient);
}
""",
    "fmt/core.h": 'std::string text(int x, double y) { return fmt::format("{} {:.3f}", x, y); }\n',
    THEIRS: """
std::string text(const std::string& x) {
  auto value = nlohmann::json::parse(x);
  value["a"] = 1;
  return value.dump(2);
}
""",
    "Eigen/Dense": """
Eigen::VectorXd solve(const Eigen::MatrixXd& a, const Eigen::VectorXd& b) {
  return a.colPivHouseholderQr().solve(b);
}
""",
}


def seconds(line, text):
    """Processor seconds of a compiler call: other work on the machine disturbs these less than the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(line, input=text, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def public_headers(root):
    """Names of all headers below root/shardwise that hosts may include."""
    names = (path.relative_to(root).as_posix() for path in (root / "shardwise").rglob("*.hpp"))
    return sorted(name for name in names if not name.startswith("shardwise/detail/"))


def missing_header(line, text):
    """What a unit includes that is not installed, as backends and adapters may; else None."""
    done = subprocess.run([*line, "-M", "-x", "c++", "-"], input=text, text=True, capture_output=True)
    if done.returncode == 0:
        return None
    found = re.search(r"fatal error: '?([^\s':]+)'?(: No such file| file not found)", done.stderr)
    if not found or found.group(1).startswith("shardwise/"):
        sys.exit(done.stderr)
    return found.group(1)


class Compiler:
    def __init__(self, options):
        self.base = [options.compiler, "-std=c++20", f"-I{options.include.resolve()}"]
        for directory in options.system.split(";"):
            if directory and directory not in ("/usr/include", "/usr/local/include"):
                self.base += ["-isystem", directory]

    def check(self, text):
        return seconds([*self.base, "-fsyntax-only", "-x", "c++", "-"], text)

    def compile(self, text, target):
        return seconds([*self.base, "-O2", "-c", "-o", target, "-x", "c++", "-"], text)

    def row(self, header, samples, text, use=""):
        """A row of the table: medians, and the spread of the time of a check."""
        with tempfile.TemporaryDirectory() as folder:
            target = os.path.join(folder, "unit.o")
            text += use
            checks = [self.check(text) for _ in range(samples)]
            objects = [self.compile(text, target) for _ in range(samples)]
            size = os.path.getsize(target)
        return {"header": header, "in_use": bool(use), "check_s": statistics.median(checks), "check_s_min": min(checks),
                "check_s_max": max(checks), "object_s": statistics.median(objects), "object_bytes": size}

    def ratio(self, samples):
        """Of the two headers that are compared, in turns: a machine whose speed drifts changes both sides of a
        turn alike."""
        return statistics.median(self.check(f"#include <{OURS}>\n") / self.check(f"#include <{THEIRS}>\n")
                                 for _ in range(samples))


def machine(compiler):
    version = subprocess.run([compiler, "--version"], text=True, capture_output=True, check=True).stdout
    found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {"processor": found.group(1) if found else "unknown", "cores": os.cpu_count(),
            "compiler": version.splitlines()[0]}


def show(row):
    print(f"{row['header'] + (', in use' if row['in_use'] else ''):44}{row['check_s']:9.3f}{row['check_s_min']:9.3f}{row['check_s_max']:9.3f}"
          f"{row['object_s']:10.3f}{row['object_bytes']:14}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--include", type=pathlib.Path, required=True, help="directory of our headers")
    parser.add_argument("--system", default="", help="further include directories, separated by ;")
    parser.add_argument("--samples", type=int, default=7, help="calls for each number; the median counts")
    parser.add_argument("--headers", nargs="*", help="of ours; default: all public ones")
    parser.add_argument("--peers", nargs="*", default=PEERS, help="others' headers")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    compiler = Compiler(options)
    ours = public_headers(options.include) if options.headers is None else options.headers

    print(f"# {options.compiler}, processor seconds, median of {options.samples}\n")
    print(f"{'header':44}{'check_s':>9}{'min':>9}{'max':>9}{'object_s':>10}{'object_bytes':>14}")
    rows, skipped = [compiler.row("(an empty unit)", options.samples, "\n")], []
    show(rows[0])
    for header in [*options.peers, *ours]:
        text = f"#include <{header}>\n"
        missing = missing_header(compiler.base, text)
        if missing:
            skipped.append({"header": header, "needs": missing})
            continue
        rows.append(compiler.row(header, options.samples, text))
        show(rows[-1])
        if header in USES:
            rows.append(compiler.row(header, options.samples, text, USES[header]))
            show(rows[-1])
    for entry in skipped:
        print(f"{entry['header']:44} needs {entry['needs']}")

    result = {"machine": machine(options.compiler), "run": {"samples": options.samples}, "rows": rows,
              "skipped": skipped}
    if OURS in ours and THEIRS in options.peers and not any(entry["header"] == THEIRS for entry in skipped):
        result["ratio"] = compiler.ratio(options.samples)
        print(f"\n{OURS} costs {result['ratio']:.3f} times {THEIRS}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2) + "\n")
    if result.get("ratio", 0) >= 1:
        print("error: it must cost less")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
