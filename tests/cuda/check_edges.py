"""Takes one order of streams out of the library after the other: each program without it must be caught.

The program (edges_program.cpp) is built under ThreadSanitizer with a copy of the headers in which each order can be
left out at run time, and run on the emulation. With all orders it must pass, several times; without one of them it must
be reported as a race, give a wrong result, or end in an error. An order that is not where the table below says is an
error of the table.
"""

import argparse
import collections
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

# `lines` occur once in the header; `seam` stands in their place, where @ is whether the order is taken out.
Edge = collections.namedtuple("Edge", "name header lines seam")

PARAMETERS = "detail/parameter_store.hpp"
GATHERS = "detail/gather_queue.hpp"
GRADIENTS = "detail/gradient_store.hpp"
DEVICE = "device/cuda_device.hpp"
STREAM = "device/cuda_stream.hpp"


def statements(before, taken_out, after=""):
    """Statements between others, which only say where they are."""
    return before + taken_out + after, before + "if (!@) {\n" + taken_out + "}\n" + after


EDGES = [
    Edge("compute does not wait for a gather", PARAMETERS,
         """      engine_.wait(parameter->gathered, parameter->subject, Activity::all_gather);
      if (is_shared(*parameter)) shared_.opened(*parameter);
      // Others of its bucket may be on their way into the same slot.
      const Slot<Device>* const slot = parameter->unit->slot;
      if (slot != nullptr) engine_.wait(slot->filled, parameter->subject, Activity::all_gather);
""", """      if (!@) engine_.wait(parameter->gathered, parameter->subject, Activity::all_gather);
      if (is_shared(*parameter)) shared_.opened(*parameter);
      const Slot<Device>* const slot = parameter->unit->slot;
      if (slot != nullptr && !@) engine_.wait(slot->filled, parameter->subject, Activity::all_gather);
"""),
    Edge("a gather does not wait for the readers of the slot", PARAMETERS,
         *statements("", "        engine_.communication.wait(unit.slot->last_use);\n")),
    Edge("a release records nothing", PARAMETERS,
         *statements("    Slot<Device>& slot = *unit.slot;\n", "    slot.last_use = engine_.compute.record();\n",
                     "    if (engine_.options.debug) {\n      hide(unit);")),
    Edge("a gather into the host's buffer does not wait for the host's stream", PARAMETERS,
         *statements("", "    engine_.communication.wait(engine_.compute.record());\n", "    Parameter* const wanted")),
    Edge("a gather does not wait for the step", GATHERS, *statements("", "    stream.wait(parameter.written);\n")),
    Edge("a step records nothing", PARAMETERS,
         *statements("", "    parameter.written = engine_.compute.record();\n")),
    Edge("a new parameter's zeros are not recorded", "sharded_parameter.hpp",
         *statements("flat_->beside->buffer.size());\n    }\n",
                     "    flat_->written = context.engine().compute.record();\n")),
    Edge("a step does not wait for the gather that reads the shard", PARAMETERS,
         *statements("", "    engine_.wait(parameter.gathered, parameter.subject, Activity::all_gather);\n",
                     "    if (is_shared(parameter)) shared_.begin_write(parameter);\n")),
    Edge("a gather is not recorded", PARAMETERS,
         "    const auto done = engine_.communication.record();\n",
         "    const auto done = @ ? typename Device::Event() : engine_.communication.record();\n"),
    Edge("a reduction does not wait for the backward pass", GRADIENTS,
         *statements("", "    stream.wait(engine_.compute.record());\n",
                     "    for (Gradient* member : unit) {\n      if (!member->ready) continue;")),
    Edge("what was discarded is cleared below its writer", GRADIENTS,
         *statements("    try {\n", "      stream.wait(engine_.compute.record());\n")),
    Edge("a gradient lease does not wait for the slot's last reduction", GRADIENTS,
         *statements("", "    engine_.wait(slot.last_use, slot.user, slot.use);\n",
                     "    if (pool_of(unit).is_small(slot)) {")),
    Edge("a gradient lease does not wait for its own reduction while its bucket is open", GRADIENTS,
         "      if (unit.open + unit.ready > 0)\n", "      if (unit.open + unit.ready > 0 && !@)\n"),
    Edge("memory is unmapped below those who read it", PARAMETERS,
         *statements("      engine_.await(slot.filled, slot.user, slot.use);\n",
                     "      engine_.await(slot.last_use, slot.user, slot.use);\n")),
    Edge("memory is unmapped below a gather", PARAMETERS,
         *statements("", "      engine_.await(slot.filled, slot.user, slot.use);\n")),
    Edge("memory is unmapped below a reduction", GRADIENTS,
         *statements("(ranges)) return;\n", "      engine_.await(slot.last_use, slot.user, slot.use);\n")),
    Edge("a gradient's slot records nothing", GRADIENTS, *statements("", "    slot.last_use = stream.record();\n")),
    Edge("the step does not wait for the reduction", GRADIENTS,
         *statements("", "    engine_.wait(gradient.reduced, gradient.parameter.subject,\n"
                         "                 reduction_kind_of(gradient.parameter));\n")),
    Edge("a reduction is not recorded", GRADIENTS, *statements("", "      member->reduced = done;\n")),
    Edge("a lease of the stored gradient does not wait for its reduction", GRADIENTS,
         *statements("    if (registration.lends_stored_gradient()) {\n",
                     "      engine_.wait(gradient.reduced, registration.subject, reduction_kind_of(registration));\n")),
    Edge("the host's gradient buffer is not waited for", GRADIENTS,
         *statements("    reduce(gradient, weight);\n",
                     "    engine_.wait(gradient.reduced, registration.subject, reduction_kind_of(registration));\n")),
    Edge("a download is not waited for", DEVICE,
         *statements("    copy(stream, host_destination, source, bytes, cudaMemcpyDeviceToHost);\n",
                     "    stream.synchronize();\n")),
    Edge("an upload is not waited for", DEVICE,
         *statements("    copy(stream, destination, host_source, bytes, cudaMemcpyHostToDevice);\n",
                     "    stream.synchronize();\n")),
    Edge("a stream does not wait for events of others", STREAM,
         *statements("", "    cuda_check(cudaStreamWaitEvent(stream_, record->event, 0), "
                         "\"cudaStreamWaitEvent\");\n")),
]

# Before the includes of each header that is changed.
SEAM = """#ifndef SHARDWISE_EDGES
#define SHARDWISE_EDGES
#include <cstdlib>
namespace edges {
inline const long taken_out = std::getenv("SHARDWISE_EDGE") ? std::atol(std::getenv("SHARDWISE_EDGE")) : -1;
}
#endif
"""


def put_seams(headers):
    """Makes each order one that can be taken out; an error where a header is another one than the table's."""
    for number, edge in enumerate(EDGES):
        file = headers / "shardwise" / edge.header
        text = file.read_text()
        if text.count(edge.lines) != 1:
            sys.exit(f"'{edge.name}': the lines occur {text.count(edge.lines)} times in {edge.header}: "
                     "bring the table of this script up to date")
        text = text.replace(edge.lines, edge.seam.replace("@", f"(::edges::taken_out == {number})"))
        file.write_text(text if SEAM in text else text.replace("#pragma once\n", "#pragma once\n" + SEAM, 1))


def run(options, line, **more):
    return subprocess.run([*options.run_by.split(), *map(str, line)], capture_output=True, text=True, **more)


class Builder:
    """Compiles the program against some copy of the headers."""

    def __init__(self, options, scratch):
        self.scratch = scratch
        self.flags = ["-std=c++20", "-O1", "-g1", "-fsanitize=thread", "-DSHARDWISE_TEST_CUDA",
                      f"-I{options.tests}", f"-I{options.tests / 'cuda'}", *[word for path in options.system for word in ("-isystem", path)]]
        self.options = options
        self.objects = []

    def compile(self, headers, source, name):
        target = self.scratch / name
        done = run(self.options, [self.options.compiler, *self.flags, f"-I{headers}", "-c", source, "-o", target])
        if done.returncode != 0:
            sys.exit(f"{source} does not compile for '{name}':\n{done.stderr}")
        return target

    def program(self, headers, name):
        unit = self.compile(headers, self.options.tests / "cuda/edges_program.cpp", f"{name}.o")
        target = self.scratch / name
        done = run(self.options, [self.options.compiler, "-fsanitize=thread", unit, *self.objects,
                                  *self.options.library, "-ldl", "-o", target])
        if done.returncode != 0:
            sys.exit(f"'{name}' does not link:\n{done.stderr}")
        return target


def outcome(program, options, jitter_us, edge=None):
    """What became of a run: None where it passed, else how it was caught, and its output."""
    environment = dict(os.environ, LD_LIBRARY_PATH=str(options.emulation),
                       TSAN_OPTIONS="halt_on_error=1:atexit_sleep_ms=0:exitcode=67",
                       SHARDWISE_EDGES_JITTER_US=str(jitter_us), SHARDWISE_EMULATION_GRANULE_KB="16")
    environment.pop("SHARDWISE_EDGE", None)
    if edge is not None:
        environment["SHARDWISE_EDGE"] = str(EDGES.index(edge))
    try:
        done = run(options, [program], env=environment, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        return "hangs", ""
    text = done.stdout + done.stderr
    if done.returncode == 0:
        return None
    if done.returncode == 67:
        return "race", text
    return f"status {done.returncode}: {text.strip()[:90].splitlines()[0] if text.strip() else ''}", text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--include", type=pathlib.Path, required=True, help="the library's headers")
    parser.add_argument("--tests", type=pathlib.Path, required=True)
    parser.add_argument("--system", nargs="*", default=[], help="directories of others' headers")
    parser.add_argument("--library", nargs=argparse.REMAINDER, default=[],
                        help="all that follows: what the program is linked with")
    parser.add_argument("--emulation", type=pathlib.Path, required=True, help="where the emulation's libraries lie")
    parser.add_argument("--only", default="", help="edges whose name contains this")
    parser.add_argument("--list", action="store_true", help="only see whether the table fits the headers")
    parser.add_argument("--run-by", default="", help="words before each command, as nice")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the program as it is")
    parser.add_argument("--timeout", type=float, default=300)
    options = parser.parse_args()
    options.system = [path for entry in options.system for path in entry.split(";") if path]
    with tempfile.TemporaryDirectory() as folder:
        return check(options, pathlib.Path(folder))


def check(options, scratch):
    headers = scratch / "include"
    shutil.copytree(options.include, headers)
    put_seams(headers)
    edges = [edge for edge in EDGES if options.only in edge.name]
    if options.list:
        print(f"emulated: {len(edges)} orders of streams can be taken out")
        return 0
    builder = Builder(options, scratch)
    builder.objects = [
        builder.compile(options.include, options.tests / "emulation/kernels.cpp", "kernels.o"),
        builder.compile(options.include, options.tests / "cuda/test_kernels_host.cpp", "launches.o"),
        builder.compile(options.include, options.tests / "cuda/edges_reference.cpp", "reference.o")]
    program = builder.program(headers, "program")
    for repeat in range(options.repeats):
        found = outcome(program, options, 50 * repeat)
        print(f"emulated: as it is, run {repeat + 1}: {found[0] if found else 'passes'}", flush=True)
        if found:
            print(found[1])
            return 1
    missed = 0
    for edge in edges:
        begin = time.monotonic()
        found = next((how for jitter in (0, 100, 400) if (how := outcome(program, options, jitter, edge))), None)
        print(f"emulated: {edge.name}: {found[0] if found else 'NOT CAUGHT'} ({time.monotonic() - begin:.0f} s)",
              flush=True)
        missed += not found
    print(f"{len(edges) - missed} of {len(edges)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
