"""Compiles the libFuzzer target of the configuration's readers with clang, and runs it for a while from the
files of the tests and the examples. Skipped where clang cannot build one."""

import argparse
import pathlib
import subprocess
import sys

SKIPPED = 77
HERE = pathlib.Path(__file__).parent
FLAGS = ["-std=c++20", "-O1", "-g1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all",
         "-fno-omit-frame-pointer"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", required=True, help="clang++; empty: none")
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--library", action="append", default=[], help="linked with")
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if not options.compiler:
        print("skipped: clang++-14 is not installed")
        return SKIPPED
    work = options.work
    seeds, corpus = work / "seeds", work / "corpus"
    for folder in (work, seeds, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    program = work / "fuzz_config"
    line = [options.compiler, *FLAGS, *(f"-I{path}" for path in options.include), HERE / "fuzz.cpp", "-o", program,
            *options.library]
    built = subprocess.run(line, capture_output=True, text=True)
    if "libclang_rt.fuzzer" in built.stderr:
        print("skipped: this clang has no libFuzzer")
        return SKIPPED
    if built.returncode != 0:
        sys.exit(built.stderr)
    files = [*(HERE / "fixtures").iterdir(), *(HERE.parents[1] / "examples/configs").iterdir()]
    for file in files:
        for choice in (0, 15):
            (seeds / f"{file.name}.{choice}").write_bytes(bytes([choice]) + file.read_bytes())
    words = sorted({word for header in (HERE.parents[1] / "include/shardwise/config").glob("*keys.hpp")
                    for text in header.read_text().split('"')[1::2] for word in text.split(".")
                    if word.replace("_", "").isalnum()})
    (work / "words.dict").write_text("".join(f'"{word}"\n' for word in words))
    run = subprocess.run([program, f"-max_total_time={options.seconds}", "-timeout=10", "-rss_limit_mb=2048",
                          "-max_len=4096", f"-dict={work / 'words.dict'}", f"-artifact_prefix={work}/",
                          "-print_final_stats=1", corpus, seeds], capture_output=True, text=True)
    print("\n".join(run.stderr.splitlines()[-40:]))
    return 1 if run.returncode else 0  # libFuzzer ends with 77, too


if __name__ == "__main__":
    sys.exit(main())
