"""Compiles a libFuzzer target with clang and runs it for a while. Skipped where clang cannot build one."""

import argparse
import pathlib
import subprocess
import sys

SKIPPED = 77
FLAGS = ["-std=c++20", "-O1", "-g1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
         "-fno-omit-frame-pointer"]


def parser(description):
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--compiler", required=True, help="clang++; empty: none")
    result.add_argument("--include", action="append", default=[])
    result.add_argument("--library", action="append", default=[], help="linked with")
    result.add_argument("--work", type=pathlib.Path, required=True)
    result.add_argument("--seconds", type=int, default=60)
    return result


class Target:
    """A program in `options.work`, with a folder `seeds` for whoever fills it."""

    def __init__(self, options, source):
        if not options.compiler:
            print("skipped: clang++-14 is not installed")
            sys.exit(SKIPPED)
        self.work, self.seconds = options.work, options.seconds
        self.seeds, self.corpus = self.work / "seeds", self.work / "corpus"
        for folder in (self.work, self.seeds, self.corpus):
            folder.mkdir(parents=True, exist_ok=True)
        self.program = self.work / source.stem
        line = [options.compiler, *FLAGS, *(f"-I{path}" for path in options.include), source, "-o", self.program,
                *options.library]
        built = subprocess.run(line, capture_output=True, text=True)
        if "libclang_rt.fuzzer" in built.stderr:
            print("skipped: this clang has no libFuzzer")
            sys.exit(SKIPPED)
        if built.returncode != 0:
            sys.exit(built.stderr)

    def run(self, words, *flags):
        """The exit status, for sys.exit: libFuzzer ends with 77, too."""
        dictionary = self.work / "words.dict"
        dictionary.write_text("".join(f'"{word}"\n' for word in words))
        run = subprocess.run([self.program, f"-max_total_time={self.seconds}", "-timeout=10", "-rss_limit_mb=2048",
                              "-max_len=4096", *flags, f"-dict={dictionary}", f"-artifact_prefix={self.work}/",
                              "-print_final_stats=1", self.corpus, self.seeds], capture_output=True, text=True)
        print("\n".join(run.stderr.splitlines()[-40:]))
        return 1 if run.returncode else 0
