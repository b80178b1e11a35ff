"""Who may include whom, as a table; what the umbrella must not reach; how long a header may be."""

import argparse
import pathlib
import re
import sys

# Room of the house -> its headers, as patterns on the path below include/shardwise. The first match
# counts; a header without a room is an error.
ROOMS = [
    ("umbrella", r"shardwise\.hpp"),
    ("declarations", r"(fwd|version)\.hpp"),
    ("core", r"core/.*"),
    ("layout", r"(layout|host_tensor)\.hpp"),
    ("strategy", r"strategy\.hpp"),
    ("memory", r"(memory|statistics)\.hpp"),
    ("kernels", r"kernels/.*"),
    ("optim", r"optim/.*"),
    ("cuda", r"device/cuda(_\w+)?\.(hpp|cuh|cu|inc)"),  # only the host's own sources, and comm/nccl
    ("device", r"device/.*"),
    # Backends: only the host's own sources include these.
    ("backend", r"comm/(self|run_ranks|simulated|thread|thread_\w+|host_communicator|nccl|nccl_\w+|run_cuda_ranks|mpi|mpi_\w+)\.hpp"),
    ("comm", r"comm/.*"),
    ("context", r"(context|memory_plan)\.hpp|detail/.*"),
    ("lease", r"(lease|arena|overlap)\.hpp"),
    ("monitor", r"monitor/.*"),
    # Adapters: only the host's own sources include these, too.
    ("adapters", r"adapters/.*"),
    ("plan", r"plan/.*"),
    ("checkpoint", r"checkpoint(/.*)?\.hpp"),
    ("config", r"config(/.*)?\.hpp"),
    ("sharded", r"(sharded_\w+|gradient_\w+|full_parameters|loss_scaler)\.hpp"),
]

# Room -> the rooms that its headers may include, besides itself.
BELOW_CONTEXT = {"declarations", "core", "layout", "strategy", "memory", "kernels", "device", "comm"}
ALLOWED = {
    "declarations": set(),
    "core": set(),
    "layout": {"core"},
    "strategy": {"core"},
    "memory": {"core"},
    "kernels": {"core"},
    "optim": {"core", "kernels"},
    "device": {"core", "kernels"},
    "cuda": {"core", "kernels", "optim"},
    "comm": {"core", "kernels", "device"},
    "backend": {"core", "memory", "kernels", "device", "cuda", "comm"},
    "context": BELOW_CONTEXT,
    "lease": BELOW_CONTEXT | {"context"},
    "sharded": BELOW_CONTEXT | {"context", "lease", "optim"},
    "umbrella": BELOW_CONTEXT | {"context", "lease", "sharded", "optim"},
    "config": {"core", "strategy", "comm"},
    "adapters": BELOW_CONTEXT | {"context", "lease", "sharded", "optim"},
    "checkpoint": BELOW_CONTEXT | {"context", "lease", "sharded", "optim"},
    "monitor": {"core", "memory", "comm"},  # it is told through core/observer.hpp alone
    "plan": BELOW_CONTEXT | {"backend", "context", "lease", "sharded", "optim"},
}

# Headers of others than the standard library. Whoever is not named here includes none.
FOREIGN = {
    "adapters/torch.hpp": {"torch/nn/module.h", "torch/nn/pimpl.h", "torch/types.h"},
    "adapters/torch/graph.hpp": {"torch/csrc/autograd/custom_function.h",
                                 "torch/csrc/autograd/function_hook.h", "torch/types.h"},
    "adapters/torch/model.hpp": {"torch/nn/module.h", "torch/types.h"},
    "adapters/torch/pass.hpp": {"torch/csrc/autograd/engine.h", "torch/types.h"},
    "checkpoint/checksum.hpp": {"xxhash.h"},
    "checkpoint/hugging_face_files.hpp": {"sys/stat.h"},
    "checkpoint/hugging_face_output.hpp": {"fcntl.h", "sys/stat.h", "unistd.h"},
    **{f"checkpoint/{header}.hpp": {"nlohmann/json.hpp"} for header in ("manifest_json", "manifest_reader", "save")},
    "checkpoint/posix_file_system.hpp": {"dirent.h", "fcntl.h", "sys/stat.h", "unistd.h"},
    "checkpoint/regular_file.hpp": {"fcntl.h", "sys/stat.h", "unistd.h"},
    "core/format.hpp": {"fmt/core.h", "fmt/format.h"},
    "config/yaml_reader.hpp": {f"yaml-cpp/{name}.h"
                               for name in ("emitterstyle", "eventhandler", "exceptions", "mark", "parser")},
    "comm/failure_channel.hpp": {"unistd.h"},
    "comm/failure_channel_meeting.hpp": {"poll.h", "sys/socket.h", "unistd.h"},
    "comm/failure_channel_options.hpp": {"unistd.h"},
    "comm/failure_channel_socket.hpp": {"arpa/inet.h", "ifaddrs.h", "net/if.h", "netinet/in.h", "netinet/tcp.h",
                                        "sys/socket.h", "sys/syscall.h", "sys/un.h", "unistd.h"},
    "comm/failure_channel_links.hpp": {"poll.h", "sys/socket.h"},
    "comm/failure_channel_state.hpp": {"poll.h", "sys/eventfd.h", "unistd.h"},
    "comm/file_rendezvous.hpp": {"unistd.h"},
    "comm/launch.hpp": {"unistd.h"},
    "comm/private_directory.hpp": {"dirent.h", "fcntl.h", "sys/stat.h", "unistd.h"},
    **{f"comm/{header}.hpp": {"cuda_runtime_api.h", "nccl.h"}
       for header in ("nccl_api", "nccl_arena", "nccl_communicator", "nccl_connect", "nccl_endpoint", "nccl_handle",
                      "nccl_movement", "nccl_staging", "nccl_tracker", "nccl_transfer", "nccl_watchdog",
                      "run_cuda_ranks")},
    **{f"comm/mpi_{part}.hpp": {"mpi.h"}
       for part in ("batch", "communicator", "error", "handle", "rendezvous", "session", "transfer")},
    "comm/mpi_memory_file.hpp": {"fcntl.h", "sys/mman.h", "sys/stat.h", "unistd.h"},
    **{f"comm/mpi_shared_{part}.hpp": {"sys/mman.h"} for part in ("block", "memory")},
    "comm/nccl_range.hpp": {"nvtx3/nvToolsExt.h"},
    **{f"device/cuda_{part}.hpp": {"cuda_runtime_api.h"}
       for part in ("device", "error", "event", "guard", "memory", "seam", "stream", "timeline")},
    "device/simulated.hpp": {"sys/mman.h"},
    "device/cuda_virtual_memory.hpp": {"cuda.h", "cudaTypedefs.h", "cuda_runtime_api.h"},
    "detail/pages.hpp": {"sys/mman.h", "unistd.h"},
    "detail/fault_watch.hpp": {"signal.h", "ucontext.h"},
    "kernels/copy.hpp": {"emmintrin.h"},
    "monitor/folder.hpp": {"sys/stat.h"},
    "monitor/json.hpp": {"nlohmann/json.hpp"},
    "kernels/lanes.hpp": {"arm_neon.h", "emmintrin.h"},
    "kernels/octet.hpp": {"arm_neon.h", "emmintrin.h"},
}

# (from, what it must not reach by any way, why)
UNREACHABLE = [
    (r"shardwise\.hpp", r"mpi\.h|cuda.*|nccl.*|nlohmann/.*|yaml-cpp/.*|torch/.*", "the umbrella is for every host"),
    (r"shardwise\.hpp", r"shardwise/comm/(self|thread)\.hpp", "the host includes the backend it wants"),
    (r"shardwise\.hpp", r"shardwise/(config|checkpoint).*|xxhash\.h", "it is a component"),
    (r"config/write\.hpp", r"yaml-cpp/.*", "writing needs no parser"),
    (r"monitor/monitor\.hpp", r"nlohmann/.*|shardwise/comm/.*", "a trainer includes it"),
    (r"kernels/.*|core/(dtype|host_device|reduce_spec|tensor_options)\.hpp", r"fmt/.*",
     "device code is compiled with it"),
]

LONG = 300
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]', re.MULTILINE)
STANDARD = re.compile(r"[a-z_]+")


def room_of(header):
    return next((room for room, pattern in ROOMS if re.fullmatch(pattern, header)), None)


def read(root):
    """{header: (text, [own headers], [headers of others])}, by path below root/shardwise."""
    base = (pathlib.Path(root) / "shardwise").resolve()
    found = {}
    for path in sorted(base.rglob("*.hpp")):
        text = path.read_text(encoding="utf-8")
        own, others = [], []
        for kind, name in INCLUDE.findall(text):
            if name.endswith(".inc"):
                continue  # a part of the header's own text
            if kind == '"':
                target = (path.parent / name).resolve()
                if target.is_relative_to(base):
                    own.append(target.relative_to(base).as_posix())
                else:
                    others.append(name)
            elif name.startswith("shardwise/"):
                own.append(name.removeprefix("shardwise/"))
            else:
                others.append(name)
        found[path.relative_to(base).as_posix()] = (text, own, others)
    return found


def reach(headers, start):
    """{what start includes, however far: the header that includes it}; ours as shardwise/..."""
    reached, waiting = {}, [start]
    while waiting:
        header = waiting.pop()
        _, own, others = headers.get(header, ("", [], []))
        for name in others:
            reached.setdefault(name, header)
        for name in own:
            if f"shardwise/{name}" not in reached:
                reached[f"shardwise/{name}"] = header
                waiting.append(name)
    return reached


def check(root):
    """Returns (errors, warnings)."""
    headers = read(root)
    errors, warnings = [], []
    if not headers:
        errors.append(f"no headers below {root}/shardwise")
    for header, (text, own, others) in headers.items():
        room = room_of(header)
        if room is None:
            errors.append(f"{header} is in no room: add it to ROOMS")
            continue
        for target in own:
            if target not in headers:
                errors.append(f"{header} includes {target}, which does not exist")
            elif room_of(target) not in ALLOWED[room] | {room}:
                errors.append(f"{header} ({room}) must not include {target} ({room_of(target)})")
        for name in others:
            if not STANDARD.fullmatch(name) and name not in FOREIGN.get(header, set()):
                errors.append(f"{header} must not include <{name}>")
        if f"shardwise/{header}" in reach(headers, header):
            errors.append(f"{header} includes itself in the end")
        if "#pragma once" not in text:
            errors.append(f"{header} has no #pragma once")
        lines = text.count("\n")
        if lines > LONG:
            warnings.append(f"{header} has {lines} lines; one class, one header, as a rule under {LONG}")
        for origin, forbidden, why in UNREACHABLE:
            if not re.fullmatch(origin, header):
                continue
            for name, via in reach(headers, header).items():
                if re.fullmatch(forbidden, name):
                    errors.append(f"{header} reaches {name} through {via}: {why}")
    return errors, warnings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="the directory that holds shardwise/")
    options = parser.parse_args()
    errors, warnings = check(options.root)
    for text in warnings:
        print(f"warning: {text}")
    for text in errors:
        print(f"error: {text}")
    print(f"{len(errors)} errors, {len(warnings)} warnings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
