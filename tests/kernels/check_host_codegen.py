"""What a consumer's plain -O2 makes of the optimizers' steps: packed arithmetic alone, by machine.

Compiles host_codegen.cpp with no other option than each machine's own and reads the assembly. Functions named
step_* take roots and quotients; plain_* do not. Loops for wider vectors than the options promise are there, and round
products before they add them, as the others do. A cross compiler that is missing is said, and skipped.
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
ARM_SCALAR = r"\bf(?:add|sub|mul|div|sqrt|madd|msub|nmadd|nmsub)\s+[sd]\d+|\bbl\b"

MACHINES = {  # name: (a compiler of its own, options, packed, scalar)
    "x86-64": (None, [], X86_PACKED, X86_SCALAR),
    "AVX2": (None, ["-mavx2"], X86_PACKED, X86_SCALAR),
    "AVX-512": (None, ["-mavx512f"], X86_PACKED, X86_SCALAR),
    "NEON": ("aarch64-linux-gnu-g++", [], ARM_PACKED, ARM_SCALAR),
}
FUNCTIONS = 11


CALL = r"^\s*(?:call|jmp|bl?)\s+(_Z[\w.]+).*\n"


def functions_of(assembly):
    """{name: its instructions, with those of what it calls here in place of the calls}"""
    found = re.findall(r"^([\w.]+):\n(.*?)^\s*\.size\s+\1,", assembly, re.MULTILINE | re.DOTALL)
    bodies = {name: re.sub(r"^\s*\..*\n|^\S+:.*\n", "", body, flags=re.MULTILINE) for name, body in found}

    def whole(name):
        def called(match):
            return whole(match[1]) if match[1] in bodies else match[0]

        return re.sub(CALL, called, bodies[name], flags=re.MULTILINE)

    return {name: whole(name) for name in bodies if name.startswith(("step_", "plain_"))}


def faults_of(name, body, packed, scalar):
    faults = [f"no packed {what}" for what, pattern in packed.items()
              if not re.search(pattern, body) and (what == "product" or name.startswith("step_"))]
    single = sorted(set(re.findall(scalar, body)))
    if single:
        faults.append(f"scalar arithmetic or calls: {', '.join(single)}")
    return faults


def faults_of_wide(assembly):
    faults = [f"no loop for {what}" for what, register in (("AVX2", "%ymm"), ("AVX-512", "%zmm"))
              if register not in assembly]
    fused = sorted(set(re.findall(r"\bvfn?m(?:add|sub)\w+", assembly)))
    return faults + ([f"products that are not rounded: {', '.join(fused)}"] if fused else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--include", required=True, type=pathlib.Path)
    options = parser.parse_args()
    source = pathlib.Path(__file__).with_name("host_codegen.cpp")
    is_x86 = "x86_64" in subprocess.run([options.compiler, "-dumpmachine"], capture_output=True, text=True).stdout
    failed = False
    for machine, (own, flags, packed, scalar) in MACHINES.items():
        compiler = own or options.compiler
        if shutil.which(compiler) is None or (own is None and not is_x86):
            print(f"{machine}: not checked, there is no {own or 'compiler for it'}")
            continue
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
