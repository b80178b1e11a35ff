"""The C++ of a Markdown text compiles with our warnings, and its programs print what the text says.

Each block ```cpp is either a program, with a main: it runs, and must print what the prose after it says,
"It prints `...`"; or a fragment, some statements of a rank: it must compile after the includes below and
the preamble that the comment before it states, <!-- preamble: ... -->, whose lines #include come first. A block ```cuda is such a fragment, too,
with the CUDA backend included; it is compiled where --cuda says where the headers of CUDA and NCCL are.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

import compiling
import markdown

FRAGMENT = """#include <shardwise/comm/thread.hpp>
#include <shardwise/shardwise.hpp>

void fragment(shardwise::Communicator& comm) {{
{preamble}
#line {line} "{name}"
{text}}}
"""
CUDA = "#include <shardwise/comm/file_rendezvous.hpp>\n#include <shardwise/comm/launch.hpp>\n" \
       "#include <shardwise/comm/nccl.hpp>\n#include <shardwise/device/cuda.hpp>\n"
MISNAMED = {"c++", "C++", "cc", "cxx", "CPP", "c"}


def stated_output(block):
    return re.findall(r"\bprints\s+`([^`]+)`", block.after)


def check_program(line, libraries, name, block):
    """Returns what is wrong, or None."""
    stated = stated_output(block)
    if not stated:
        return 'the prose after the program says no "prints `...`"'
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "program.cpp"), pathlib.Path(folder, "program")
        source.write_text(f'#line {block.line} "{name}"\n{block.text}')
        good, text = compiling.run([*line, str(source), "-o", str(program), *libraries])
        if not good:
            return f"the program does not compile:\n{text}"
        done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        return f"the program ends with {done.returncode}:\n{done.stdout}{done.stderr}"
    for words in stated:
        if words not in done.stdout:
            return f"the program does not print '{words}' but:\n{done.stdout}"
    return None


def check_fragment(line, name, block, includes=""):
    preamble = re.search(r"<!-- preamble:\n(.*?)-->\s*\Z", block.before, re.DOTALL)
    stated = preamble.group(1).splitlines(keepends=True) if preamble else []
    first = "".join(line for line in stated if line.startswith("#include"))
    rest = "".join(line for line in stated if not line.startswith("#include"))
    unit = includes + first + FRAGMENT.format(preamble=rest, line=block.line, name=name, text=block.text)
    good, text = compiling.run([*line, "-Wno-unused", "-fsyntax-only", "-x", "c++", "-"], unit)
    return None if good else f"the fragment does not compile:\n{text}"


def check(options, document):
    """Returns (number of programs, number of fragments, what is wrong)."""
    line = [*compiling.command(options), "-ffp-contract=off", "-pthread"]
    name = pathlib.Path(document).name
    programs = fragments = 0
    wrong = []
    for block in markdown.blocks(pathlib.Path(document).read_text(encoding="utf-8")):
        found = None
        if block.language in MISNAMED:
            found = f"the language is '{block.language}': write cpp"
        elif block.language == "cpp" and re.search(r"\bint main\(", block.text):
            programs += 1
            found = check_program(line, options.library, name, block)
        elif block.language == "cpp":
            fragments += 1
            found = check_fragment(line, name, block)
        elif block.language == "cuda" and options.cuda:
            fragments += 1
            systems = [word for path in options.cuda.split(";") for word in ("-isystem", path)]
            found = check_fragment([*line, *systems], name, block, CUDA)
        if found:
            wrong.append(f"{document}:{block.line}: {found}")
    if programs + fragments == 0:
        wrong.append(f"{document} has no C++")
    return programs, fragments, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    compiling.add_arguments(parser)
    parser.add_argument("--library", action="append", default=[], help="to link with")
    parser.add_argument("--cuda", help="directories of the headers of CUDA and NCCL, split by semicolons")
    parser.add_argument("document")
    options = parser.parse_args()
    programs, fragments, wrong = check(options, options.document)
    for text in wrong:
        print(f"error: {text}")
    print(f"{programs} programs, {fragments} fragments, {len(wrong)} errors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
