"""What the checks share that use shardwise as strangers do."""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import time

SKIPPED = 4
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "meta"))

import markdown  # noqa: E402


class Failed(Exception):
    pass


def run(*line, fails_with=None, says=None, **how):
    """Runs a command and returns what it says; that must contain `says`, or `fails_with` where the command
    is to fail."""
    line = [str(part) for part in line]
    try:
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    except FileNotFoundError as error:
        raise Failed(f"{line[0]} is not installed ({error}); cmake/bootstrap.sh packages installs it") from error
    text = " ".join(done.stdout.split())  # CMake wraps its messages
    expected = fails_with or says or ""
    if (done.returncode != 0) != (fails_with is not None) or expected not in text:
        wanted = f"fail, saying '{fails_with}'" if fails_with else f"succeed, saying '{says or ''}'"
        raise Failed(f"{' '.join(line)}\nwas to {wanted}, ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def in_order(*cases):
    """Runs the cases, prints a line for each, returns how many failed."""
    failures = 0
    for case in cases:
        begin = time.monotonic()
        try:
            case()
            verdict = "passed"
        except Failed as reason:
            failures += 1
            verdict = f"FAILED\n{reason}"
        print(f"{case.__name__} ({time.monotonic() - begin:.1f} s): {verdict}", flush=True)
    return failures


def block_with(text, words, language=""):
    """The one block of a Markdown text that is in this language and has these words."""
    found = [block.text for block in markdown.blocks(text) if block.language == language and words in block.text]
    if len(found) != 1:
        raise Failed(f"README.md has {len(found)} blocks with '{words}', expected one")
    return found[0]


class Workplace:
    """A folder to work in, and the options that say with what."""

    def __init__(self, description):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--source", type=pathlib.Path, required=True, help="shardwise's repository")
        parser.add_argument("--build", type=pathlib.Path, required=True, help="a configured build of it")
        parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder to empty and fill")
        parser.add_argument("--cmake", default="cmake")
        parser.add_argument("--generator", default="Ninja")
        parser.add_argument("--compiler", default="g++")
        parser.add_argument("--other-compiler", default="", help="for half of the cases; as --compiler")
        parser.add_argument("--fmt", default="", help="where find_package finds fmt, if not by itself")
        parser.add_argument("--version", required=True)
        self.options = parser.parse_args()
        if not self.options.other_compiler:
            self.options.other_compiler = self.options.compiler
        self.folder = self.options.work
        self.prefix = self.folder / "prefix"
        self.readme = (self.options.source / "README.md").read_text(encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def install(self):
        run(self.options.cmake, "--install", self.options.build, "--prefix", self.prefix)

    def configure(self, project, folder, *variables, compiler=None, **expected):
        return run(self.options.cmake, "-S", project, "-B", self.folder / folder, "-G",
                   self.options.generator, f"-DCMAKE_CXX_COMPILER={compiler or self.options.compiler}",
                   f"-Dfmt_DIR={self.options.fmt}", *variables, **expected)

    def build_and_run(self, folder, says):
        run(self.options.cmake, "--build", self.folder / folder)
        run(self.folder / folder / "trainer", says=says)

    def project(self, name):
        """A folder with trainer.cpp, and shardwise where README.md has it."""
        project = self.folder / name
        shutil.copytree(HERE / "readme", project)
        shutil.copy(HERE / "trainer.cpp", project)
        (project / "shardwise").mkdir()
        for name in ("CMakeLists.txt", "LICENSE", "cmake", "include"):  # not build, where this lies: a loop
            (project / "shardwise" / name).symlink_to(self.options.source / name)
        return project

    def finds(self, package):
        """Whether find_package finds it."""
        probe = self.folder / "probe"
        probe.mkdir()
        (probe / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(probe LANGUAGES CXX)\n"
            f"find_package({package} QUIET)\nmessage(STATUS \"probe: '${{{package}_FOUND}}'\")\n")
        return "probe: '1'" in self.configure(probe, "probe-build")

    def component_installed(self, component, says):
        """Installs, finds the component, and runs its program."""
        self.install()
        self.configure(HERE / "find_package", "installed", f"-DCMAKE_PREFIX_PATH={self.prefix}",
                       f"-DCOMPONENTS=core;{component}", f"-DPROGRAM={component}.cpp",
                       f"-DTARGET=shardwise::{component}", says=f"component {component}: TRUE")
        self.build_and_run("installed", says)

    def component_of_subdirectory(self, component, module=None):
        """Made and linked from the sources; the program would be the same."""
        project = self.project("source")
        (project / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(consumer LANGUAGES CXX)\n"
            f"add_executable(trainer {component}.cpp)\nadd_subdirectory(shardwise)\n"
            f"include(shardwise/cmake/shardwise-{module or component}.cmake)\n"
            f"target_link_libraries(trainer PRIVATE shardwise::{component})\n")
        (project / f"{component}.cpp").symlink_to(HERE / f"{component}.cpp")
        self.configure(project, "subdirectory")

    def cmake_of_readme(self, words):
        """Such a folder that is a project, with the one block of CMake in README.md that has these words."""
        project = self.project("project-" + re.sub(r"\W+", "-", words))
        (project / "readme.cmake").write_text(block_with(self.readme, words, "cmake"))
        return project

    def shell_of_readme(self, words, compiler, standard, **how):
        """Runs the one line of shell in README.md that has these words, with another compiler and standard and
        without the time for optimization; then the program that it builds."""
        lines = [line for line in block_with(self.readme, words).splitlines() if words in line]
        start = "g++ -std=c++20 "
        if len(lines) != 1 or not lines[0].startswith(start):
            raise Failed(f"README.md has not one line '{start}... {words}', but {lines}")
        project = self.project("shell-" + re.sub(r"\W+", "-", words))
        line = lines[0].removeprefix(start).replace("-O2 ", "")
        run("sh", "-c", f"{compiler} -std=c++{standard} {line}", cwd=project, **how)
        run(project / "trainer", says="sum 105")
