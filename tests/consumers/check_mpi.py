"""A consumer of the component `mpi`, installed and from a subdirectory. Skipped where there is no MPI."""

import shutil
import sys

from consuming import HERE, SKIPPED, Workplace, in_order

NO_MPI = "-DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON"
place = Workplace(__doc__)


def installed():
    place.component_installed("mpi", "rank 0 of 1: sum 105")
    where = (f"-DCMAKE_PREFIX_PATH={place.prefix}", "-DCOMPONENTS=core;mpi")
    place.configure(HERE / "find_package", "none", *where, NO_MPI, fails_with="component 'mpi' needs an MPI")
    place.configure(HERE / "find_package", "optional", where[0], "-DCOMPONENTS=core", "-DOPTIONAL=mpi", NO_MPI,
                    says="component mpi: FALSE")


def subdirectory():
    place.component_of_subdirectory("mpi")


if __name__ == "__main__":
    if not shutil.which("mpicxx"):
        print("skipped: no MPI is installed")
        sys.exit(SKIPPED)
    sys.exit(1 if in_order(subdirectory, installed) else 0)
