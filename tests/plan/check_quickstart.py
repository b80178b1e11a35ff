"""What quickstart says that each rank holds, and would hold with ddp, is what its tensors come to."""

import re
import subprocess
import sys

RANKS, STATE, LINE = 4, 2, 32  # AdamW's moments; elements that tensors and shards are padded to
TENSORS = (64 * 2, 64, 64)  # in.weight, in.bias, out.weight


def padded(elements, step):
    return -(-elements // step) * step


def main():
    said = subprocess.run([sys.argv[1]], stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout
    found = re.search(r"(\d+) bytes a rank, ddp (\d+)", said)
    whole = padded(sum(padded(tensor, LINE) for tensor in TENSORS), LINE * RANKS)
    scalars = 4 * (RANKS + 1) * 8
    # A whole parameter and a whole gradient in slots; ddp needs the gradient's alone.
    zero3 = 4 * (whole // RANKS * (2 + STATE) + 2 * whole) + scalars
    ddp = 4 * (whole * (2 + STATE) + whole) + scalars
    if not found or [int(number) for number in found.groups()] != [zero3, ddp]:
        print(f"expected {zero3} and {ddp} bytes, found:\n{said}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
