"""Each check of this directory refuses what it is there to refuse."""

import os
import pathlib
import tempfile
import types
import unittest

import check_compile_fail
import check_docs
import check_headers_alone
import check_includes
import check_programs
import check_statics
import compiling
import markdown

OPTIONS = types.SimpleNamespace(compiler=os.environ.get("CXX", "g++"), standard="c++20", include=[], system=[])
GOOD = "#pragma once\n"


class WithDirectory(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)

    def write(self, files):
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


class Includes(WithDirectory):
    def errors(self, files):
        self.write({f"shardwise/{name}": text for name, text in files.items()})
        return "\n".join(check_includes.check(self.root)[0])

    def test_allowed(self):
        self.assertEqual(self.errors({"core/a.hpp": GOOD + "#include <vector>\n",
                                      "layout.hpp": GOOD + '#include "core/a.hpp"\n'}), "")

    def test_nothing_there(self):
        self.assertIn("no headers", self.errors({}))

    def test_upwards(self):
        errors = self.errors({"core/a.hpp": GOOD + '#include "../context.hpp"\n', "context.hpp": GOOD})
        self.assertIn("core/a.hpp (core) must not include context.hpp (context)", errors)

    def test_upwards_in_angle_brackets(self):
        errors = self.errors({"kernels/a.hpp": GOOD + "#include <shardwise/layout.hpp>\n", "layout.hpp": GOOD})
        self.assertIn("kernels/a.hpp (kernels) must not include layout.hpp", errors)

    def test_optim_knows_no_context(self):
        errors = self.errors({"optim/a.hpp": GOOD + '# include "../context.hpp"\n', "context.hpp": GOOD})
        self.assertIn("must not include context.hpp", errors)

    def test_backend_inside_the_library(self):
        errors = self.errors({"context.hpp": GOOD + '#include "comm/thread_group.hpp"\n',
                              "comm/thread_group.hpp": GOOD})
        self.assertIn("context.hpp (context) must not include comm/thread_group.hpp (backend)", errors)

    def test_adapter_inside_the_library(self):
        errors = self.errors({"shardwise.hpp": GOOD + '#include "adapters/torch.hpp"\n', "adapters/torch.hpp": GOOD})
        self.assertIn("shardwise.hpp (umbrella) must not include adapters/torch.hpp (adapters)", errors)

    def test_umbrella_reaches_a_backend(self):
        errors = self.errors({"shardwise.hpp": GOOD + '#include "comm/comm.hpp"\n',
                              "comm/comm.hpp": GOOD + '#include "thread.hpp"\n', "comm/thread.hpp": GOOD})
        self.assertIn("shardwise.hpp reaches shardwise/comm/thread.hpp through comm/comm.hpp", errors)

    def test_umbrella_reaches_a_dependency(self):
        for name in ("mpi.h", "cuda_runtime.h", "nccl.h", "nlohmann/json.hpp", "torch/torch.h"):
            errors = self.errors({"shardwise.hpp": GOOD + '#include "layout.hpp"\n',
                                  "layout.hpp": GOOD + f"#include <{name}>\n"})
            self.assertIn(f"shardwise.hpp reaches {name} through layout.hpp", errors)
            self.assertIn(f"layout.hpp must not include <{name}>", errors)

    def test_kernels_reach_fmt(self):
        errors = self.errors({"kernels/a.hpp": GOOD + '#include "../core/error.hpp"\n',
                              "core/error.hpp": GOOD + '#include "format.hpp"\n',
                              "core/format.hpp": GOOD + "#include <fmt/core.h>\n",
                              "core/dtype.hpp": GOOD + "#include <fmt/format.h>\n"})
        self.assertIn("kernels/a.hpp reaches fmt/core.h through core/format.hpp", errors)
        self.assertIn("core/dtype.hpp reaches fmt/format.h", errors)
        self.assertNotIn("core/format.hpp must not", errors)

    def test_cycle(self):
        errors = self.errors({"core/a.hpp": GOOD + '#include "b.hpp"\n', "core/b.hpp": GOOD + '#include "a.hpp"\n'})
        self.assertIn("core/a.hpp includes itself", errors)

    def test_no_room_missing_file_no_guard(self):
        errors = self.errors({"odd/a.hpp": GOOD, "core/b.hpp": '#include "gone.hpp"\n'})
        self.assertIn("odd/a.hpp is in no room", errors)
        self.assertIn("core/gone.hpp, which does not exist", errors)
        self.assertIn("core/b.hpp has no #pragma once", errors)

    def test_long(self):
        self.write({"shardwise/core/a.hpp": GOOD + "\n" * 300})
        self.assertIn("core/a.hpp has 301 lines", check_includes.check(self.root)[1][0])


class HeadersAlone(WithDirectory):
    def test_refuses(self):
        self.write({"shardwise/core/good.hpp": GOOD + "#include <vector>\ninline std::vector<int> f() { return {}; }\n",
                    "shardwise/core/needs.hpp": GOOD + "inline std::vector<int> g() { return {}; }\n",
                    "shardwise/core/warns.hpp": GOOD + "inline int h(long x) { return x; }\n"})
        stamps = self.root / "stamps"
        for _ in range(2):  # a failure is never remembered as a success
            count, bad = check_headers_alone.check(OPTIONS, self.root, stamps)
            self.assertEqual(count, 3)
            self.assertEqual([header for header, _ in bad], ["core/needs.hpp", "core/warns.hpp"])
        self.assertIn("conversion", bad[1][1])

    def test_leaves_out(self):
        self.write({"shardwise/core/good.hpp": GOOD, "shardwise/adapters/a.hpp": "#include <not/there.h>\n"})
        self.assertEqual(check_headers_alone.check(OPTIONS, self.root, without=r"adapters/.*"), (1, []))
        self.assertEqual(check_headers_alone.check(OPTIONS, self.root)[0], 2)

    def test_notices_what_changes_below(self):
        self.write({"shardwise/core/a.hpp": GOOD + "using A = int;\n",
                    "shardwise/core/b.hpp": GOOD + '#include "a.hpp"\nusing B = A;\n'})
        stamps = self.root / "stamps"
        self.assertEqual(check_headers_alone.check(OPTIONS, self.root, stamps)[1], [])
        self.write({"shardwise/core/a.hpp": GOOD})
        self.assertEqual([header for header, _ in check_headers_alone.check(OPTIONS, self.root, stamps)[1]],
                         ["core/b.hpp"])


class Statics(WithDirectory):
    def found(self, text):
        self.write({"a.cpp": text})
        target = str(self.root / "a.o")
        good, said = compiling.run([OPTIONS.compiler, "-std=c++20", "-c", str(self.root / "a.cpp"), "-o", target])
        self.assertTrue(good, said)
        return [symbol for symbol, _ in check_statics.check([target])[1]]

    def test_constants_are_fine(self):
        self.assertEqual(self.found("""
            namespace shardwise::inline v0_1 {
            inline constexpr int table[] = {1, 2};
            struct Base { virtual ~Base() = default; virtual int f() { return 1; } };
            template <class T> inline constexpr int number = 3;
            inline const char* word() { static constexpr const char* const words[] = {"a", "b"}; return words[0]; }
            int all() { Base base; return table[1] + *&number<int> + word()[0] + base.f(); }
            }"""), [])

    def test_refuses(self):
        for text, name in (
                ("inline int counter = 0; int f() { return ++counter; }", "counter"),
                ("int f() { static int calls = 1; return ++calls; }", "calls"),
                ("int f() { thread_local int calls; return ++calls; }", "calls"),
                ("template <class T> struct S { static inline int n = 4; }; int f() { return ++S<int>::n; }", "n"),
                ("struct A { A(); int x; }; const A& f() { static const A a; return a; }", "guard variable")):
            symbols = self.found(f"namespace shardwise::inline v0_1 {{ {text} }}")
            self.assertTrue(any(name in symbol for symbol in symbols), (text, symbols))

    def test_others_are_not_ours(self):
        self.assertEqual(self.found("namespace other { inline int n = 1; int f() { return ++n; } }"), [])


class Docs(unittest.TestCase):
    FORWARD = "struct Options;\nclass Context;\ntemplate <class T>\nclass Lease;\n"
    GOOD = {("page", "index"), ("class", "shardwise::Context"), ("struct", "shardwise::Options"),
            ("class", "shardwise::Lease"), ("variable", "shardwise::Options::detail")}

    def test_good(self):
        self.assertEqual(check_docs.check(self.GOOD, self.FORWARD), [])

    def test_refuses(self):
        for missing in self.GOOD - {("variable", "shardwise::Options::detail")}:
            self.assertEqual(len(check_docs.check(self.GOOD - {missing}, self.FORWARD)), 1, missing)
        for kind, name in (("namespace", "shardwise::detail"), ("class", "shardwise::detail::Store"),
                           ("class", "v0_1::Context"), ("namespace", "shardwise::v0_1")):
            self.assertEqual(check_docs.check(self.GOOD | {(kind, name)}, self.FORWARD),
                             [f"{name} is in the reference"])
        self.assertIn("fwd.hpp declares nothing", check_docs.check(self.GOOD, ""))


class Programs(WithDirectory):
    PROGRAM = '#include <cstdio>\nint main() {\n  std::puts("it is 3.");\n}\n'

    def wrong(self, text):
        self.write({"a.md": text, "shardwise/shardwise.hpp": GOOD, "shardwise/comm/thread.hpp":
                    GOOD + "namespace shardwise { struct Communicator { int size; }; }\n"})
        options = types.SimpleNamespace(**{**vars(OPTIONS), "include": [self.root], "library": []})
        programs, fragments, wrong = check_programs.check(options, self.root / "a.md")
        return programs, fragments, "\n".join(wrong)

    def test_good(self):
        text = (f"# A\n```cpp\n{self.PROGRAM}```\nIt prints `it is 3`.\n"
                "<!-- preamble:\nint n = 0;\n-->\n```cpp\nn += comm.size;\n```\n"
                "```\nint main() { no C++\n```\n")
        self.assertEqual(self.wrong(text), (1, 1, ""))

    def test_refuses(self):
        for text, words in (
                (f"```cpp\n{self.PROGRAM}```\nIt prints `it is 4`.\n", "does not print 'it is 4'"),
                (f"```cpp\n{self.PROGRAM}```\n\n```\n```\nIt prints `it is 3`.\n", "the program says no"),
                ("text\n```cpp\nint main() { return misspelt; }\n```\nIt prints `x`.\n", "a.md:3:"),
                ("```cpp\nint main() { return 3; }\n```\nIt prints `x`.\n", "ends with 3"),
                ("```cpp\nlong n = 1;\nint m = n;\n```\n", "a.md:3:"),
                ("<!-- preamble:\nint n;\n-->\nText.\n```cpp\nn = 1;\n```\n", "the fragment does not compile"),
                ("```c++\nint n;\n```\n", "write cpp"),
                ("```\nint n;\n```\n", "has no C++")):
            self.assertIn(words, self.wrong(text)[2], text)
        with self.assertRaisesRegex(ValueError, "line 2 has no end"):
            markdown.blocks("```cpp\nint n;\n")


class CompileFail(WithDirectory):
    def wrong(self, text, expected):
        self.write({"a.cpp": text})
        return check_compile_fail.check(OPTIONS, str(self.root / "a.cpp"), expected)

    def test_right(self):
        self.assertIsNone(self.wrong(
            '#ifndef POSITIVE_CONTROL\nstatic_assert(false, "choose a float");\n#endif\n', "choose a float"))

    def test_refuses(self):
        self.assertIn("but must not", self.wrong("int main() {}\n", "x"))
        self.assertIn("POSITIVE_CONTROL either", self.wrong("int main() { misspelt(); }\n", "misspelt"))
        self.assertIn("without saying",
                      self.wrong("#ifndef POSITIVE_CONTROL\n#error one\n#endif\n", "another"))


if __name__ == "__main__":
    unittest.main()
