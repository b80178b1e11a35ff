"""Compiles a libFuzzer target of the checkpoint's readers with clang, and runs it for a while from files that are
made here. Skipped where clang cannot build one."""

import json
import os
import pathlib
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "support"))
import fuzzing  # noqa: E402

TYPES = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
         "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
         "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}


def header(tensors, metadata=None, padding=0):
    """Headers of tensors (name, type, shape), for fuzz_header: the number of data bytes stands first."""
    entries, end = {}, 0
    if metadata is not None:
        entries["__metadata__"] = metadata
    for name, kind, shape in tensors:
        count = 1
        for extent in shape:
            count *= extent
        size = count * TYPES[kind] // 8
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode() + b" " * padding
    return struct.pack("<HQ", end, len(text)) + text


def headers():
    yield header([])
    yield header([("w", "F32", [2, 3]), ("b", "BF16", []), ("none", "F64", [0, 4])], {"format": "pt"}, 5)
    yield header([(kind, kind, [8]) for kind in TYPES])
    yield header([(f"h.{i}.w", "F16", [i]) for i in range(30)], {str(i): "\u00e9\U0001f600\n" for i in range(9)})
    escaped = b'{"\\ud83d\\ude00\\"":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}'
    yield struct.pack("<HQ", 4, len(escaped)) + escaped


def indices():
    yield b'{"weight_map":{}}'
    yield json.dumps({"metadata": {"total_size": 123, "by": [None, True, -1.5e-3, {"a": "\u00e9"}]},
                      "weight_map": {f"h.{i}.w": f"model-0000{i % 3}-of-00003.safetensors" for i in range(9)}}).encode()
    yield json.dumps({"weight_map": {"\"\\\n": "a/b"}, "more": [[[[]]]]}, indent=2).encode()


def manifest(**members):
    """Up to the checksum, which fuzz_manifest adds."""
    whole = {"format": "shardwise checkpoint", "version": 1, "save": "0" * 32, "step": 1, "world": 2,
             "chunk_bytes": 4194304, "values": {}, "optimizers": [], "files": [], "tensors": [], **members}
    return b"\1" + json.dumps(whole).encode()[:-1]


def manifests():
    yield manifest()
    yield manifest(values={"a": 1, "b": -1, "c": 1.5, "d": True, "e": "text", "f": {"bytes": "00ff"},
                           "g": {"bits": "7ff0000000000000"}},
                   loss_scaler={"scale": 65536.0, "good": 1, "skipped": 2},
                   optimizers=[{"kind": "adamw", "steps": 3, "hyperparameters": {"learning_rate": 0.1}}])
    yield manifest(files=[{"name": "rank-0.safetensors", "bytes": 128, "chunks": ["0123456789abcdef"]},
                          {"name": "rank-1.safetensors", "bytes": 4194305, "chunks": ["0" * 16, "f" * 16]}],
                   optimizers=[{"kind": "sgd", "steps": 0, "hyperparameters": {}}],
                   tensors=[{"name": "a", "dtype": "f32", "shape": [2, 3], "optimizer": 0,
                             "parts": [[0, 4, 0, 64], [4, 2, 1, 64]]},
                            {"name": "b", "dtype": "bf16", "shape": [0], "parts": []},
                            {"name": "c", "dtype": "u8", "shape": [], "parts": [[0, 1, 1, 0]]}])


SEEDS = {"header": headers, "index": indices, "manifest": manifests}
WORDS = {"header": [*TYPES, "dtype", "shape", "data_offsets", "__metadata__"],
         "index": ["weight_map", "metadata", "total_size", "model.safetensors"],
         "manifest": ["format", "shardwise checkpoint", "version", "save", "step", "world", "chunk_bytes", "values",
                      "optimizers", "files", "tensors", "loss_scaler", "scale", "good", "skipped", "kind", "steps",
                      "hyperparameters", "name", "bytes", "chunks", "dtype", "shape", "parts", "optimizer", "bits",
                      "f32", "bf16", "f16", "f64", "i64", "i32", "i8", "u8", "checksum"]}


def main():
    parser = fuzzing.parser(__doc__)
    parser.add_argument("target", choices=SEEDS)
    options = parser.parse_args()
    target = fuzzing.Target(options, HERE / f"fuzz_{options.target}.cpp")
    for number, content in enumerate(SEEDS[options.target]()):
        (target.seeds / str(number)).write_bytes(content)
    # What is good must be seen to be: a target that refuses all of it would find nothing.
    good = subprocess.run([target.program, *sorted(target.seeds.iterdir())], capture_output=True, text=True,
                          env={**os.environ, "SHARDWISE_FUZZ_GOOD": "1"})
    if good.returncode != 0:
        sys.exit(good.stderr)
    return target.run(WORDS[options.target], "-malloc_limit_mb=16")


if __name__ == "__main__":
    sys.exit(main())
