"""A consumer of the component `monitor`, installed and from a subdirectory."""

import sys

from consuming import HERE, Workplace, in_order

NO_JSON = "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"
place = Workplace(__doc__)


def installed():
    place.component_installed("monitor", "sum 105")
    where = (f"-DCMAKE_PREFIX_PATH={place.prefix}", "-DCOMPONENTS=core;monitor")
    place.configure(HERE / "find_package", "none", *where, NO_JSON,
                    fails_with="component 'monitor' needs nlohmann/json")
    place.configure(HERE / "find_package", "optional", where[0], "-DCOMPONENTS=core", "-DOPTIONAL=monitor", NO_JSON,
                    says="component monitor: FALSE")


def subdirectory():
    place.component_of_subdirectory("monitor")


if __name__ == "__main__":
    sys.exit(1 if in_order(subdirectory, installed) else 0)
