"""A consumer of the component `config`, installed and from a subdirectory. Skipped where yaml-cpp is no
package."""

import sys

from consuming import SKIPPED, Workplace, in_order

place = Workplace(__doc__)


def installed():
    place.component_installed("config", "zero2, as it was")


def subdirectory():
    place.component_of_subdirectory("config", "configuration")


if __name__ == "__main__":
    if not place.finds("yaml-cpp"):
        print("skipped: find_package(yaml-cpp) finds none")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
