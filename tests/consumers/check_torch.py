"""A consumer of the component `torch`, installed and from a subdirectory. Skipped where libtorch is not."""

import sys

from consuming import SKIPPED, Workplace, in_order

place = Workplace(__doc__)


def installed():
    place.component_installed("torch", "sum 105")


def subdirectory():
    place.component_of_subdirectory("torch")


if __name__ == "__main__":
    if not place.finds("Torch"):
        print("skipped: find_package(Torch) finds no libtorch")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
