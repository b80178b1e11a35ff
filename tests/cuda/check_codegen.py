"""What nvcc makes of the library's kernels: no spills, wide accesses, no contraction, registers as recorded.

Compiles device/cuda_kernels.cu for each architecture and reads the PTX and what ptxas says. It needs no
GPU, and says nothing about speed.
"""

import argparse
import collections
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
ARCHITECTURES = ("80", "90", "100")

# Loads and stores of one thread in the main path of a fused step, {bytes: how many}, by gradient; "copy": with
# a copy in bf16. Parameter and two states are floats, 16 bytes of each; what has 16 bits goes with 8.
FUSED = {"float": ({16: 4}, {16: 3}), "bf16": ({16: 3, 8: 1}, {16: 3}), "f16": ({16: 3, 8: 1}, {16: 3}),
         "float copy": ({16: 4}, {16: 3, 8: 1}), "bf16 copy": ({16: 3, 8: 1}, {16: 3, 8: 1})}
STEP = r"Update<(?:AdamW|Adam), float, (\w+), float, float>"
FUSED_NAME = re.compile(rf"(?:elements|segments)<(?:{STEP}|UpdateAndCast<{STEP}, bf16>)>")
FUSED_STEPS = 20
CAST_NAME = re.compile(r"elements<Cast<(\w+), (\w+)>>")
SIZES = {"double": 8, "float": 4, "bf16": 2, "f16": 2}

# Newer nvcc may need a few registers more or fewer.
TOLERANCE_OF_OTHER_COMPILERS = 8

CONTRACTED = re.compile(r"\b(?:fma|mad)\.[\w.]*f(?:16|32|64)\b|\b(?:add|sub|mul)(?:\.ftz)?\.f(?:32|64)\b")
ACCESS = re.compile(r"^\s*(?:@%p\d+ )?(ld|st)\.(?:volatile\.)?global(?:\.nc)?(?:\.v(\d))?\.[bfsu](\d+)\s", re.MULTILINE)
LOCAL = re.compile(r"\b(?:ld|st)\.local\b")


def short_name(demangled):
    """elements<Cast<float, bf16>>, from what c++filt says."""
    name = re.sub(r"\(shardwise::v0_1::Quantized\)(\d)", lambda m: ("int8", "int4", "e4m3")[int(m[1])], demangled)
    name = re.sub(r"shardwise::v0_1::(detail::)?(cuda::)?", "", name)
    name = re.sub(r"^void ", "", name).replace(" >", ">").replace("unsigned char", "u8").replace("signed char", "i8")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:at]
            break
    return name.replace("_kernel<", "<", 1)


def functions_of(ptx):
    """{mangled name: body} of the kernels of a PTX text."""
    parts = re.split(r"^(?:\.visible |\.weak )?\.entry (\w+)\(", ptx, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def resources_of(report):
    """{mangled name: (spilled bytes, registers)} of what `ptxas -v` says."""
    found = {}
    for part in re.split(r"Compiling entry function '", report)[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if spills and registers:
            found[part[:part.index("'")]] = (int(spills[1]) + int(spills[2]), int(registers[1]))
    return found


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, map(short_name, done.stdout.splitlines())))


def accesses(text):
    """Counter of (ld or st, bytes) of accesses to global memory."""
    return collections.Counter((kind, int(count or 1) * int(bits) // 8) for kind, count, bits in ACCESS.findall(text))


def split_paths(body):
    """Accesses of the basic blocks that have wide ones, the main path, and those of the others."""
    wide, single = collections.Counter(), collections.Counter()
    for block in re.split(r"^\$\w+:", body, flags=re.MULTILINE):
        found = accesses(block)
        (wide if any(size >= 16 for _, size in found) else single).update(found)
    return wide, single


def check_cast(name, body):
    """Errors of a conversion: one whole access each way, and a single one for what is left beside whole blocks."""
    sizes = [SIZES[element] for element in CAST_NAME.fullmatch(name).groups()]
    count = 16 // max(sizes)
    expected = collections.Counter(
        {("ld", count * sizes[0]): 1, ("st", count * sizes[1]): 1, ("ld", sizes[0]): 1, ("st", sizes[1]): 1})
    found = accesses(body)
    return [] if found == expected else [f"{name}: {dict(found)}, expected {dict(expected)} (kind, bytes)"]


def check_fused(name, body):
    """Errors of a fused step: its main path has whole accesses and none else."""
    plain, copied = FUSED_NAME.fullmatch(name).groups()
    loads, stores = FUSED[plain or f"{copied} copy"]
    # One scalar access of each array beside the main path: what is left before and after whole blocks.
    of_singles = (4, 4 if copied else 3)
    expected = collections.Counter({**{("ld", size): n for size, n in loads.items()},
                                    **{("st", size): n for size, n in stores.items()}})
    wide, single = split_paths(body)
    errors = []
    if wide != expected:
        errors.append(f"{name}: the main path has {dict(wide)}, expected {dict(expected)} (kind, bytes)")
    counts = tuple(sum(n for (kind, _), n in single.items() if kind == which) for which in ("ld", "st"))
    if counts != of_singles:
        errors.append(f"{name}: beside the main path {counts} loads and stores, expected {of_singles}")
    if LOCAL.search(body):
        errors.append(f"{name}: thread-local memory is used")
    return errors


def check(architecture, ptx, report, names):
    """Returns (errors, {short name: registers})."""
    errors, registers, fused = [], {}, 0
    bodies, resources = functions_of(ptx), resources_of(report)
    if not bodies or set(bodies) != set(resources):
        return [f"sm_{architecture}: {len(bodies)} kernels in PTX, {len(resources)} in what ptxas says"], {}
    for mangled, body in bodies.items():
        name = names[mangled]
        spilled, registers[name] = resources[mangled]
        found = []
        if spilled:
            found.append(f"{name}: {spilled} bytes are spilled")
        if contracted := CONTRACTED.search(body):
            found.append(f"{name}: '{contracted[0]}' rounds once where the host rounds twice")
        if FUSED_NAME.fullmatch(name):
            fused += 1
            found += check_fused(name, body)
        if name.startswith("elements<Cast<"):
            found += check_cast(name, body)
        if "e4m3" in name and name.startswith("tiles<Quantize"):
            if ("cvt.rn.satfinite.e4m3x2.f32" in body) != (int(architecture) >= 89):
                found.append(f"{name}: the chip's own conversion to e4m3 is used where it should not, or not")
        errors += [f"sm_{architecture}: {text}" for text in found]
    if fused != FUSED_STEPS:
        errors.append(f"sm_{architecture}: {fused} fused steps of Adam and AdamW, expected {FUSED_STEPS}")
    return errors, registers


def read_table(path):
    """(version of nvcc, {name: {architecture: registers}})."""
    lines = path.read_text(encoding="utf-8").splitlines()
    version = next((line.split()[-1] for line in lines if line.startswith("# nvcc ")), "")
    table = {}
    for line in lines:
        if line and not line.startswith("#"):
            *counts, name = line.split(None, len(ARCHITECTURES))
            table[name] = dict(zip(ARCHITECTURES, map(int, counts)))
    return version, table


def write_table(path, version, table):
    rows = [f"{'  '.join(f'{table[name][a]:3}' for a in ARCHITECTURES)}  {name}" for name in sorted(table)]
    head = ["# Registers of each kernel on " + ", ".join(f"sm_{a}" for a in ARCHITECTURES)
            + ", as check_codegen.py --write found them.", f"# nvcc {version}"]
    path.write_text("\n".join(head + rows) + "\n", encoding="utf-8")


def compare(recorded, found, same_compiler):
    """Errors where kernels come, go, or use other numbers of registers."""
    errors = []
    for name in sorted(set(recorded) | set(found)):
        if name not in found:
            errors.append(f"{name} is in the table, but not among the kernels: run with --write")
        elif name not in recorded:
            errors.append(f"{name} is not in the table: run with --write")
        else:
            for architecture, registers in found[name].items():
                before = recorded[name][architecture]
                differs = registers != before if same_compiler else registers > before + TOLERANCE_OF_OTHER_COMPILERS
                if differs:
                    errors.append(f"sm_{architecture}: {name} uses {registers} registers, recorded are {before}: "
                                  "if that is meant, run with --write")
    return errors


def compile_for(architecture, options, directory):
    """(PTX, what ptxas says)."""
    source = pathlib.Path(options.include) / "shardwise" / "device" / "cuda_kernels.cu"
    line = [options.nvcc, "-std=c++20", "-O2", "-fmad=false", f"-arch=sm_{architecture}", "-Xptxas", "-v",
            f"-I{options.include}", "-cubin", "--keep", "--keep-dir", directory, str(source),
            "-o", f"{directory}/kernels.cubin"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"nvcc failed:\n{done.stdout}{done.stderr}")
    return next(pathlib.Path(directory).glob("*.ptx")).read_text(encoding="utf-8"), done.stderr + done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--include", required=True, help="the directory that holds shardwise/")
    parser.add_argument("--table", required=True, type=pathlib.Path)
    parser.add_argument("--write", action="store_true", help="record the registers instead of comparing them")
    options = parser.parse_args()
    if shutil.which(options.nvcc) is None:
        print(f"skipped: there is no {options.nvcc}")
        return SKIPPED
    said = subprocess.run([options.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V(\d+(?:\.\d+)*)", said)[1]
    errors, table = [], collections.defaultdict(dict)
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as directory:
            ptx, report = compile_for(architecture, options, directory)
        wrong, registers = check(architecture, ptx, report, demangle(list(functions_of(ptx))))
        errors += wrong
        for name, count in registers.items():
            table[name][architecture] = count
    if options.write:
        write_table(options.table, version, table)
    else:
        recorded_by, recorded = read_table(options.table)
        errors += compare(recorded, table, recorded_by == version)
    for text in errors:
        print(f"error: {text}")
    print(f"{len(table)} kernels for {len(ARCHITECTURES)} architectures by nvcc {version}: {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
