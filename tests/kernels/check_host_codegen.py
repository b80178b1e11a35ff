"""What a consumer's plain -O2 makes of the optimizers' steps, of sums and of casts: packed work alone, by machine.

Compiles host_codegen.cpp with no other option than each machine's own and reads the assembly. Functions named
step_* take roots and quotients; plain_* products alone; cast_* none. On x86 loops for wider vectors than the options
promise are there, and round products before they add them, as the others do. Where there is no compiler for the
architecture, neither --compiler nor a cross compiler of Debian's names, it ends with 77.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys

X86_PACKED = {"root": r"\bv?sqrtp[sd]\b", "quotient": r"\bv?divp[sd]\b",
              "product": r"\bv?(?:mul|fn?m(?:add|sub)\d+)p[sd]\b"}
X86_SCALAR = r"\bv?(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)s[sd]\b|\bcall\b"
ARM_PACKED = {"root": r"\bfsqrt\s+v\d+\.[24][sd]", "quotient": r"\bfdiv\s+v\d+\.[24][sd]",
              "product": r"\bf(?:mul|mla|mls)\s+v\d+\.[24][sd]"}
# Lanes that are taken one by one, and values that are rounded one by one, are scalar work, too.
ARM_SCALAR = (r"\bf(?:add|sub|mul|div|sqrt|madd|msub|nmadd|nmsub)\s+[hsd]\d+|\bfcvt\s+[hs]\d+|\bbl\b"
              r"|\b[su]mov\s|\bins\s|\b(?:ldr|str)h\s")

MACHINES = {  # of each architecture: {name: (options, packed, scalar)}
    "x86_64": {"x86-64": ([], X86_PACKED, X86_SCALAR),
               "AVX2": (["-mavx2"], X86_PACKED, X86_SCALAR),
               "AVX-512": (["-mavx512f"], X86_PACKED, X86_SCALAR)},
    "aarch64": {"NEON": ([], ARM_PACKED, ARM_SCALAR)},
}
FUNCTIONS = 19


CALL = r"^\s*(?:call|jmp|bl?)\s+(_Z[\w.]+).*\n"


def functions_of(assembly):
    """{name: its instructions, with those of what it calls here in place of the calls}"""
    found = re.findall(r"^([\w.]+):\n(.*?)^\s*\.size\s+\1,", assembly, re.MULTILINE | re.DOTALL)
    bodies = {name: re.sub(r"^\s*\..*\n|^\S+:.*\n", "", body, flags=re.MULTILINE) for name, body in found}

    def whole(name):
        def called(match):
            return whole(match[1]) if match[1] in bodies else match[0]

        return re.sub(CALL, called, bodies[name], flags=re.MULTILINE)

    return {name: whole(name) for name in bodies if name.startswith(("step_", "plain_", "cast_"))}


def faults_of(name, body, packed, scalar):
    faults = [f"no packed {what}" for what, pattern in packed.items()
              if not re.search(pattern, body) and name.startswith(("step_", "plain_")[:1 + (what == "product")])]
    single = sorted(set(re.findall(scalar, body)))
    if single:
        faults.append(f"scalar arithmetic or calls: {', '.join(single)}")
    return faults


def faults_of_wide(assembly):
    faults = [f"no loop for {what}" for what, register in (("AVX2", "%ymm"), ("AVX-512", "%zmm"))
              if register not in assembly]
    fused = sorted(set(re.findall(r"\bvfn?m(?:add|sub)\w+", assembly)))
    return faults + ([f"products that are not rounded: {', '.join(fused)}"] if fused else [])


def compiler_for(architecture, given):
    """The given one, or a cross compiler; None where there is none."""
    target = subprocess.run([given, "-dumpmachine"], capture_output=True, text=True).stdout
    return given if target.startswith(architecture) else shutil.which(f"{architecture.replace('_', '-')}-linux-gnu-g++")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--architecture", choices=MACHINES, required=True)
    parser.add_argument("--include", required=True, type=pathlib.Path)
    options = parser.parse_args()
    source = pathlib.Path(__file__).with_name("host_codegen.cpp")
    compiler = compiler_for(options.architecture, options.compiler)
    if compiler is None:
        print(f"skipped: there is no compiler for {options.architecture}")
        sys.exit(77)
    failed = False
    for machine, (flags, packed, scalar) in MACHINES[options.architecture].items():
        line = [compiler, "-std=c++20", "-O2", *flags, f"-I{options.include}", "-S", "-o", "-", str(source)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode != 0 or done.stderr:
            sys.exit(f"{' '.join(line)} failed, or warned:\n{done.stderr}")
        functions = functions_of(done.stdout)
        if len(functions) != FUNCTIONS:
            sys.exit(f"{machine}: {len(functions)} functions in the assembly, not {FUNCTIONS}: {sorted(functions)}")
        faults = {name: faults_of(name, body, packed, scalar) for name, body in functions.items()}
        if machine == "x86-64":
            faults["wide loops"] = faults_of_wide(done.stdout)
        for name, found in faults.items():
            for fault in found:
                print(f"{machine}: {name}: {fault}")
                failed = True
        print(f"{machine}: {sum(not found for found in faults.values())} of {len(faults)} are as they should be")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
