"""The vcpkg port and the Conan recipe, without vcpkg and Conan: what they say agrees with the library's own
files, the port's script runs through against a stand-in, and so does the part of the recipe that is ours."""

import fnmatch
import importlib.util
import json
import pathlib
import re
import shutil
import sys
import types

from consuming import HERE, Failed, Workplace, in_order, run

place = Workplace(__doc__)
options = place.options
PACKAGING = options.source / "cmake/packaging"
PORT = PACKAGING / "vcpkg/shardwise"


def expect(holds, *words):
    if not holds:
        raise Failed(" ".join(map(str, words)))


def text_of(name):
    return (options.source / name).read_text(encoding="utf-8")


def needed():
    """What the installed package looks for: {name: least version}."""
    found = re.findall(r"find_dependency\((\w+) ?([\d.]*)\)", text_of("cmake/shardwise-config.cmake.in"))
    expect(found, "shardwise-config.cmake.in needs nothing at all")
    return dict(found)


def components():
    return set(re.findall(r'component STREQUAL "(\w+)"', text_of("cmake/shardwise-config.cmake.in")))


def least_versions():
    """fmt's least version is the same wherever it is named."""
    least = needed()["fmt"]
    expect(f"find_package(fmt {least} " in text_of("cmake/ShardwiseDependencies.cmake"), "CMake: fmt", least)
    expect(f"Requires: fmt >= {least}\n" in text_of("cmake/shardwise.pc.in"), "pkg-config: fmt", least)
    expect(f"fmt/[>={least} " in text_of("cmake/packaging/conan/conanfile.py"), "Conan: fmt", least)
    expect(f"[fmt](https://fmt.dev) {least} or later" in text_of("README.md"), "README.md: fmt", least)


# Of vcpkg's published schema of manifests, what a port of ours may use.
IDENTIFIER = re.compile(r"(?!(prn|aux|nul|con|lpt[1-9]|com[1-9]|core|default)$)[a-z0-9]+(-[a-z0-9]+)*")
VERSIONS = {"version": r"\d+(\.\d+)*", "version-semver": r"\d+\.\d+\.\d+", "version-date": r"\d{4}-\d\d-\d\d"}
MANIFEST = {"$schema", "name", "port-version", "description", "homepage", "license", "supports", "dependencies",
            "features", "default-features", *VERSIONS}
DEPENDENCY = {"name", "features", "host", "default-features", "platform", "version>="}
FEATURE = {"description", "dependencies", "supports", "license"}


def dependencies_of(where, entry):
    """Returns {name: whether it is for the machine that builds}."""
    found = {}
    for dependency in entry.get("dependencies", []):
        if isinstance(dependency, str):
            dependency = {"name": dependency}
        expect(set(dependency) <= DEPENDENCY, where, "has unknown fields:", set(dependency) - DEPENDENCY)
        name = dependency["name"]
        expect(IDENTIFIER.fullmatch(name), where, "names", name, "which is no port's name")
        expect(name not in found, where, "names", name, "twice")
        found[name] = dependency.get("host", False)
    return found


def vcpkg_manifest():
    manifest = json.loads((PORT / "vcpkg.json").read_text(encoding="utf-8"))
    expect(set(manifest) <= MANIFEST, "unknown fields:", set(manifest) - MANIFEST)
    expect(manifest["name"] == PORT.name, "the port", PORT.name, "calls itself", manifest["name"])
    expect(IDENTIFIER.fullmatch(manifest["name"]), manifest["name"], "is no port's name")
    kinds = set(manifest) & set(VERSIONS)
    expect(len(kinds) == 1, "one version is to be given, not", kinds)
    kind = kinds.pop()
    expect(re.fullmatch(VERSIONS[kind], manifest[kind]), manifest[kind], "is no", kind)
    expect(manifest[kind] == options.version, "version.hpp says", options.version, "and vcpkg.json", manifest[kind])
    expect(manifest["license"] == text_of("LICENSE").split()[0] == "MIT", "the license is", manifest["license"])
    expect(manifest["description"] == description(), "CMakeLists.txt describes the project otherwise")

    found = dependencies_of("vcpkg.json", manifest)
    own = {name for name, host in found.items() if not host}
    expect(own == set(needed()) - {"Threads"}, "dependencies are", own, "but the package needs", set(needed()))
    features = manifest["features"]
    expect(set(features) == components() - {"core"}, "features are", set(features), "components", components())
    for name, feature in features.items():
        expect(IDENTIFIER.fullmatch(name), name, "is no feature's name")
        expect(set(feature) <= FEATURE and feature.get("description"), "feature", name, "has fields", set(feature))
        expect(dependencies_of(f"feature {name}", feature), "feature", name, "needs nothing")


def description():
    return re.search(r'DESCRIPTION "(.*)"', text_of("CMakeLists.txt")).group(1)


def vcpkg_port():
    packages = place.folder / "packages"
    run(options.cmake, "-DPORT=shardwise", f"-DCURRENT_PORT_DIR={PORT}", f"-DCURRENT_PACKAGES_DIR={packages}",
        f"-DCURRENT_BUILDTREES_DIR={place.folder / 'buildtrees'}", f"-DGENERATOR={options.generator}",
        f"-DCOMPILER={options.compiler}", f"-DFMT={options.fmt}", "-P", HERE / "vcpkg_stand_in.cmake")
    share = packages / "share/shardwise"
    for name in ("shardwise-config.cmake", "shardwise-config-version.cmake", "shardwise-targets.cmake",
                 "shardwise-configuration.cmake", "shardwise-torch.cmake", "usage", "copyright"):
        expect((share / name).is_file(), "share/shardwise has no", name)
    expect((packages / "include/shardwise/shardwise.hpp").is_file(), "the headers are not installed")
    # vcpkg warns of any other folder of a port that has headers alone.
    found = {path.relative_to(packages).as_posix() for path in packages.glob("*")}
    expect(found == {"include", "share"}, "the port installs", found)
    empty = [path for path in packages.rglob("*") if path.is_dir() and not any(path.iterdir())]
    expect(not empty, "empty folders:", empty)
    for target in re.findall(r"shardwise::\w+", (PORT / "usage").read_text()):
        expect(target in ("shardwise::shardwise", *(f"shardwise::{name}" for name in components())),
               "usage speaks of", target)


class StandIn:
    """Conan's base class and helper of CMake in one, as far as the recipe knows them."""

    def __init__(self, folder):
        self.recipe_folder = str(folder)
        self.export_sources_folder = self.source_folder = str(place.folder / "exported")
        self.package_folder = str(place.folder / "package")
        self.settings = types.SimpleNamespace(os="Linux")
        self.required = []
        self.properties = {}
        self.cpp_info = types.SimpleNamespace(set_property=self.properties.__setitem__)

    def requires(self, reference):
        self.required.append(reference)


class CMake:
    def __init__(self, recipe):
        self.recipe = recipe

    def configure(self, variables):
        said = place.configure(self.recipe.source_folder, "recipe",
                               *(f"-D{name}={value}" for name, value in variables.items()))
        expect("not used by the project" not in said, said)

    def install(self):
        run(options.cmake, "--install", place.folder / "recipe", "--prefix", self.recipe.package_folder)


def copy(_, pattern, source, target, excludes=""):
    source, target = pathlib.Path(source), pathlib.Path(target)
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        if path.is_file() and fnmatch.fnmatch(name, pattern) and not fnmatch.fnmatch(name, excludes):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / name)


def module(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


def recipe_of(path, name):
    """An object of the recipe's class, with stand-ins for what it imports."""
    module("conan", ConanFile=StandIn)
    module("conan.tools")
    module("conan.tools.build", check_min_cppstd=lambda recipe, standard: None, can_run=lambda recipe: True)
    module("conan.tools.cmake", CMake=CMake, cmake_layout=lambda recipe: None)
    module("conan.tools.files", copy=copy, load=lambda recipe, name: pathlib.Path(name).read_text())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)(path.parent)


def conan_recipe():
    sys.dont_write_bytecode = True
    recipe = recipe_of(PACKAGING / "conan/conanfile.py", "ShardwiseConan")
    recipe_of(PACKAGING / "conan/test_package/conanfile.py", "ShardwiseTest")
    expect(recipe.name == "shardwise" and recipe.license == "MIT", recipe.name, recipe.license)
    expect(recipe.description == description(), "CMakeLists.txt describes the project otherwise")
    recipe.set_version()
    expect(recipe.version == options.version, "version.hpp says", options.version, "the recipe", recipe.version)
    recipe.requirements()
    own = {reference.split("/")[0] for reference in recipe.required}
    expect(own == set(needed()) - {"Threads"}, "it requires", own, "but the package needs", set(needed()))

    # What it exports is enough to build from.
    recipe.export_sources()
    recipe.build()
    recipe.package()
    recipe.package_info()
    package = pathlib.Path(recipe.package_folder)
    expect((package / "licenses/LICENSE").is_file(), "the package has no license")
    expect(recipe.properties.get("cmake_find_mode") == "none", "Conan would write package files of its own")
    expect(any((package / folder / "shardwise-config.cmake").is_file() for folder in recipe.cpp_info.builddirs),
           "CMake finds no package in", recipe.cpp_info.builddirs)
    place.configure(HERE / "find_package", "packaged", f"-DCMAKE_PREFIX_PATH={package}", "-DCOMPONENTS=core",
                    says="component core: TRUE")


if __name__ == "__main__":
    sys.exit(1 if in_order(least_versions, vcpkg_manifest, vcpkg_port, conan_recipe) else 0)
