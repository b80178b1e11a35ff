"""The adapter of libtorch, its cases and its example compile against the headers of libtorch 2.

Debian has 1.13. The headers of a 2.x are in the wheel that PyPI has (900 MB, of which 60 are headers):

    pip download --no-deps --dest wheel torch  # or torch==2.8.0, or another
    unzip -q wheel/torch-*.whl 'torch/include/*' -d DIR
    cmake --preset release -DSHARDWISE_TORCH2_INCLUDE=DIR/torch/include

or give DIR/torch/include in the environment variable SHARDWISE_TORCH2_INCLUDE. Skipped (77) without it.
"""

import argparse
import os
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.append(str(ROOT / "tests/meta"))

import compiling  # noqa: E402

UNITS = ["tests/adapters/torch_cases.cpp", "examples/libtorch/model.cpp", "examples/libtorch/plain.cpp",
         "examples/libtorch/sharded.cpp", "examples/libtorch/text.cpp"]


def version_of(include):
    """Of the headers, as text; empty where there are none."""
    for name in ("torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"):
        if (include / name).exists():
            text = (include / name).read_text()
            found = re.search(r'#define TORCH_VERSION\s*(?:\\\n)?\s*"([^"]+)"', text)
            if found:
                return found[1]
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    compiling.add_arguments(parser)
    parser.add_argument("--torch", default="", help="the include folder of a libtorch 2")
    options = parser.parse_args()
    folder = options.torch or os.environ.get("SHARDWISE_TORCH2_INCLUDE", "")
    if not folder:
        print(f"skipped: SHARDWISE_TORCH2_INCLUDE is not set; see {pathlib.Path(__file__).name}")
        return 77
    include = pathlib.Path(folder)
    version = version_of(include)
    if not version.startswith("2."):
        print(f"error: there are no headers of libtorch 2 in {folder} (found version '{version}')")
        return 1
    options.system += [str(include / "torch/csrc/api/include"), str(include)]
    failed = 0
    for unit in UNITS:
        good, text = compiling.run(compiling.command(options) + ["-fsyntax-only", str(ROOT / unit)])
        print(f"{unit}: {'compiles' if good else 'does not compile'} against libtorch {version}\n{text}")
        failed += not good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
