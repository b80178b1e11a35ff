"""What we export is read by the safetensors package of PyPI, element for element, and what it writes is imported.
Skipped where the package, or numpy, is missing."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

SKIPPED = 4
try:
    import numpy
    import safetensors
    import safetensors.numpy
except ImportError as missing:
    print(f"skipped: {missing}; pip install safetensors numpy, and say where with SHARDWISE_SAFETENSORS_PYTHON")
    sys.exit(SKIPPED)

SHAPES = {"wte.weight": (37, 12), 'odd "name" \\ \u00e9': (3,), "h.0.weight": (12, 5, 2), "h.0.bias": (12,),
          "h.0.none": (0, 4), "h.0.scale": (), "wide": (9, 9), "head": (19,)}
STORED = {name: "F32" for name in SHAPES} | {"wide": "F64", "head": "BF16"}
NUMPY = {"F64": numpy.float64, "F32": numpy.float32, "F16": numpy.float16}


def values(name, dtype=numpy.float64):
    """As exchange.cpp makes them: exact in every floating type."""
    elements = numpy.arange(int(numpy.prod(SHAPES[name], dtype=int)))
    total = sum(name.encode())
    return (((total * 31 + elements * 7) % 251 - 125) / 8).reshape(SHAPES[name]).astype(dtype)


def bf16_bytes(array):
    """Values that are exact in bf16: the upper halves of their floats."""
    bits = numpy.ascontiguousarray(array, numpy.float32).view(numpy.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype("<u2").tobytes()


def from_bytes(dtype, shape, data):
    if dtype == "BF16":
        return (numpy.frombuffer(data, "<u2").astype(numpy.uint32) << 16).view(numpy.float32).reshape(shape)
    return numpy.frombuffer(data, numpy.dtype(NUMPY[dtype]).newbyteorder("<")).reshape(shape)


def check_tensor(where, name, dtype, found_dtype, found):
    expected = values(name)
    if found_dtype != dtype:
        sys.exit(f"{where}: '{name}' is of type {found_dtype}, expected {dtype}")
    if found.shape != expected.shape or not (found.astype(numpy.float64) == expected).all():
        sys.exit(f"{where}: '{name}' has other elements")


def read_file(path, types):
    """The names of its tensors, which are as they should be."""
    names = set()
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        found = from_bytes(tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        check_tensor(path, name, types[name], tensor["dtype"], found)
        names.add(name)
    with safetensors.safe_open(path, framework="np") as file:
        if file.metadata() != {"format": "pt"}:
            sys.exit(f"{path}: the metadata are {file.metadata()}")
        if set(file.keys()) != names:
            sys.exit(f"{path}: the names are {file.keys()}")
        for name in names:
            if types[name] in NUMPY:  # numpy has no bf16 of its own
                check_tensor(path, name, types[name], types[name], file.get_tensor(name))
    return names


def check_exports(folder):
    for part, dtype in [("single", None), ("f64", "F64"), ("f32", "F32"), ("bf16", "BF16"), ("f16", "F16")]:
        types = {name: dtype or STORED[name] for name in SHAPES}
        if read_file(folder / part / "model.safetensors", types) != set(SHAPES):
            sys.exit(f"{part}: tensors are missing")
    index = json.loads((folder / "sharded/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    size = 0
    for file in files:
        names = read_file(folder / "sharded" / file, STORED)
        if names != {name for name, place in index["weight_map"].items() if place == file}:
            sys.exit(f"sharded: the index has other tensors in {file}")
        size += sum(len(bytes(tensor["data"]))
                    for _, tensor in safetensors.deserialize((folder / "sharded" / file).read_bytes()))
    if len(files) < 3 or set(index["weight_map"]) != set(SHAPES) or index["metadata"]["total_size"] != size:
        sys.exit(f"sharded: the index is {index}")
    flat = json.loads((folder / "flat/weights.json").read_text())
    data = (folder / "flat" / flat["file"]).read_bytes()
    if flat["bytes"] != len(data) or [tensor["name"] for tensor in flat["tensors"]] != list(SHAPES):
        sys.exit(f"flat: the description is {flat}")
    for tensor in flat["tensors"]:
        count = int(numpy.prod(tensor["shape"], dtype=int))
        found = numpy.frombuffer(data, "<f4", count, tensor["offset"]).reshape(tensor["shape"])
        check_tensor("flat", tensor["name"], "F32", tensor["dtype"], found)


def write_imports(folder):
    def place(part):
        (folder / part).mkdir(parents=True)
        return folder / part

    safetensors.numpy.save_file({name: values(name, numpy.float32) for name in SHAPES},
                                place("f32") / "model.safetensors", metadata={"written": "by the package"})
    kinds = [("BF16", "bfloat16"), ("F64", "float64"), ("F16", "float16"), ("F32", "float32")]
    mixed, alive = {}, []
    for i, name in enumerate(SHAPES):
        kind, written = kinds[i % 4]
        data = bf16_bytes(values(name)) if kind == "BF16" else values(name, NUMPY[kind]).tobytes()
        if hasattr(safetensors, "TensorSpec"):  # since 0.8
            alive.append(numpy.frombuffer(data + b" ", numpy.uint8))
            mixed[name] = safetensors.TensorSpec(dtype=written, shape=SHAPES[name],
                                                 data_ptr=alive[-1].ctypes.data, data_len=len(data))
        else:
            mixed[name] = {"dtype": written, "shape": list(SHAPES[name]), "data": data}
    (place("mixed") / "model.safetensors").write_bytes(safetensors.serialize(mixed, {"format": "pt"}))
    sharded = place("sharded")
    weight_map, total = {}, 0
    for i, name in enumerate(SHAPES):
        file = f"part-{i % 3}.safetensors"
        weight_map[name] = file
        total += values(name, numpy.float32).nbytes
    for file in set(weight_map.values()):
        safetensors.numpy.save_file({name: values(name, numpy.float32) for name in SHAPES
                                     if weight_map[name] == file}, sharded / file)
    index = {"metadata": {"total_size": total, "total_parameters": total / 4}, "weight_map": weight_map}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    for ranks in ("1", "3"):
        exported = options.work / f"exported-{ranks}"
        exported.mkdir(parents=True)
        subprocess.run([options.program, "export", exported, ranks], check=True)
        check_exports(exported)
    imported = options.work / "imported"
    write_imports(imported)
    for ranks in ("1", "4"):
        subprocess.run([options.program, "import", imported, ranks], check=True)
    print(f"safetensors {safetensors.__version__}, numpy {numpy.__version__}: both ways, element for element")
    return 0


if __name__ == "__main__":
    sys.exit(main())
