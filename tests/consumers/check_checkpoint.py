"""A consumer of the component `checkpoint`, installed and from a subdirectory. Skipped where nlohmann/json or
xxHash is no package."""

import sys

from consuming import HERE, SKIPPED, Workplace, in_order

NO_JSON = "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"
place = Workplace(__doc__)


def installed():
    place.component_installed("checkpoint", "step 7, seed 3, sum 105")
    where = (f"-DCMAKE_PREFIX_PATH={place.prefix}", "-DCOMPONENTS=core;checkpoint")
    place.configure(HERE / "find_package", "none", *where, NO_JSON,
                    fails_with="component 'checkpoint' needs nlohmann/json 3.11 and xxHash")


def subdirectory():
    place.component_of_subdirectory("checkpoint")


if __name__ == "__main__":
    if not place.finds("nlohmann_json"):
        print("skipped: find_package(nlohmann_json) finds none")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
