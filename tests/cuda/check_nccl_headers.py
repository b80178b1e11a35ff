"""The backend compiles against the headers of other versions of NCCL, with the features that each has.

    check_nccl_headers.py --compiler g++ --cuda DIR --work DIR [FOLDER...]

FOLDER: each with an nccl.h. Without any, Debian's packages of other versions are unpacked, not
installed, into the folder --work, through a view of apt that is its own. Skipped (77) where no other
version can be had.
"""

import argparse
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.append(str(ROOT / "tests/meta"))

import compiling  # noqa: E402

SUITES = ["trixie", "sid"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

UNIT = """#include <shardwise/comm/collectives.hpp>
#include <shardwise/comm/nccl.hpp>
#include <shardwise/device/cuda.hpp>
namespace nccl = shardwise::detail::nccl;
static_assert(NCCL_VERSION_CODE == {code});
static_assert(nccl::has_windows == {windows});
static_assert(nccl::has_all_to_all == {all_to_all});
static_assert(nccl::has_revoke == {revoke});
void use(ncclComm_t comm) {{
  shardwise::run_cuda_ranks(2, [&](shardwise::Communicator& made) {{
    auto& ranks = dynamic_cast<shardwise::NcclCommunicator&>(made);
    const shardwise::NcclArena arena(ranks, 64);
    shardwise::barrier(*ranks.split(0, 0, {{}}));
    const shardwise::NcclCommunicator adopted(shardwise::LocalRendezvous::make(1).front(), comm);
  }}, {{.copy_engine = true}});
}}
"""


def version_of(folder):
    """(major, minor, patch) of the folder's nccl.h, or None."""
    header = pathlib.Path(folder) / "nccl.h"
    if not header.exists():
        return None
    text = header.read_text()
    parts = [re.search(rf"#define NCCL_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return tuple(int(part[1]) for part in parts) if all(parts) else None


def unit_for(version):
    major, minor, patch = version
    return UNIT.format(code=major * 10000 + minor * 100 + patch,
                       windows=str(version >= (2, 27, 0)).lower(),
                       all_to_all=str(version >= (2, 28, 3)).lower(),
                       revoke=str(version >= (2, 28, 7)).lower())


def call(line, **more):
    done = subprocess.run(line, capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line[:1] + line[-2:])}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def mirror(view):
    """Where this machine's own suites come from."""
    release = pathlib.Path("/etc/os-release").read_text()
    codename = re.search(r"^VERSION_CODENAME=(\S+)", release, re.MULTILINE)
    for options in ([], view):
        if options:
            call(["apt-get", *options, "-qq", "update"])
        listing = call(["apt-get", *options, "indextargets", "--format", "$(REPO_URI) $(RELEASE)",
                        "Created-By: Packages"])
        for line in listing.splitlines():
            address, _, suite = line.partition(" ")
            if codename and suite == codename[1]:
                return address
    raise RuntimeError("apt names no mirror of Debian")


def unpack(suite, work):
    """The folder of nccl.h of the suite's libnccl-dev, unpacked before or now."""
    folder = work / suite / "root/usr/include"
    if (folder / "nccl.h").exists():
        return folder
    apt = work / suite
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    (apt / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::Lists={apt}/lists", "-o", f"Dir::Cache={apt}/cache", "-o", "APT::Sandbox::User=root",
           "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]
    source = apt / "sources.list"
    source.write_text(f"deb [signed-by={KEYRING}] {mirror(own)} {suite} contrib\n")
    view = ["-o", f"Dir::Etc::SourceList={source}", "-o", "Dir::Etc::SourceParts=/dev/null", *own]
    call(["apt-get", *view, "-qq", "update"])
    call(["apt-get", *view, "-qq", "download", f"libnccl-dev/{suite}"], cwd=apt)
    packages = sorted(apt.glob("libnccl-dev_*.deb"))
    if not packages:
        raise RuntimeError("the package was not downloaded")
    call(["dpkg-deb", "-x", str(packages[-1]), str(apt / "root")])
    return folder


def folders_to_check(options):
    if options.folders:
        return [folder for entry in options.folders for folder in entry.split(";") if folder]
    if not pathlib.Path(KEYRING).exists():
        print("skipped: no folder was given, and this is no Debian whose packages could be unpacked")
        return []
    found = []
    for suite in SUITES:
        try:
            found.append(str(unpack(suite, pathlib.Path(options.work).resolve())))
        except (OSError, RuntimeError) as error:
            print(f"skipped: the headers of {suite} cannot be had: {error}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    compiling.add_arguments(parser)
    parser.add_argument("--cuda", required=True, help="folders of the CUDA runtime's headers, separated by ;")
    parser.add_argument("--work", required=True, help="where packages are unpacked")
    parser.add_argument("folders", nargs="*")
    options = parser.parse_args()
    cuda = [folder for folder in options.cuda.split(";") if folder]
    system = options.system
    failed = 0
    checked = 0
    for folder in folders_to_check(options):
        version = version_of(folder)
        if version is None:
            print(f"error: there is no nccl.h with a version in {folder}")
            failed += 1
            continue
        # The one to check goes before the one that lies beside the toolkit.
        options.system = [folder, *cuda, *system]
        line = compiling.command(options) + ["-fsyntax-only", "-x", "c++", "-"]
        good, text = compiling.run(line, unit_for(version))
        name = ".".join(str(part) for part in version)
        print(f"NCCL {name}: {'compiles' if good else 'does not compile'}\n{text}", end="")
        failed += not good
        checked += 1
    if failed:
        return 1
    return 0 if checked else 77


if __name__ == "__main__":
    sys.exit(main())
