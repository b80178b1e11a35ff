"""check_codegen.py refuses what it should."""

import pathlib
import tempfile
import unittest

import check_codegen

STEP = "elements<Update<AdamW, float, bf16, float, float>>"
WIDE = ("\tld.global.v2.u32 {%r1}, [%rd1];\n" + "\tld.global.v4.f32 {%f1}, [%rd2];\n" * 3
        + "\tmul.rn.f32 %f1, %f2, %f3;\n" + "\tst.global.v4.b32 [%rd3], {%r1};\n" * 3)
SINGLE = ("\tld.global.u16 %rs1, [%rd1];\n" + "\tld.global.f32 %f1, [%rd2];\n" * 3
          + "\tst.global.f32 [%rd3], %f1;\n" * 3)


def step(wide=WIDE, single=SINGLE):
    return f"\t.reg .b32 %r<9>;\n$L__BB0_1:\n{wide}\tbra $L__BB0_3;\n$L__BB0_2:\n{single}$L__BB0_3:\n\tret;\n"


def report(names, spills=0, registers=40):
    return "".join(f"ptxas info    : Compiling entry function '{name}' for 'sm_90'\n"
                   f"    0 bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads\n"
                   f"ptxas info    : Used {registers} registers, 400 bytes cmem[0]\n" for name in names)


def run(body, names=None, **resources):
    """As many steps as there are in the library, with one body."""
    mangled = [f"k{i}" for i in range(check_codegen.FUSED_STEPS)]
    ptx = "".join(f".visible .entry {name}(\n{body}" for name in mangled)
    wrong, _ = check_codegen.check("90", ptx, report(mangled, **resources),
                                   names or {name: STEP for name in mangled})
    return "\n".join(wrong)


class Check(unittest.TestCase):
    def test_good(self):
        self.assertEqual(run(step()), "")

    def test_spills(self):
        self.assertIn("8 bytes are spilled", run(step(), spills=4))

    def test_store_that_came_apart(self):
        apart = WIDE.replace("\tst.global.v4.b32 [%rd3], {%r1};\n", "\tst.global.f32 [%rd3], %f1;\n" * 4, 1)
        self.assertIn("the main path has", run(step(apart)))

    def test_narrow_vectors(self):
        self.assertIn("the main path has", run(step(WIDE.replace("v4.f32", "v2.f32"))))

    def test_missing_access(self):
        self.assertIn("the main path has", run(step(WIDE.replace("\tst.global.v4.b32 [%rd3], {%r1};\n", "", 1))))

    def test_single_path(self):
        self.assertIn("beside the main path", run(step(single=SINGLE + SINGLE)))

    def test_contraction(self):
        for text in ("fma.rn.f32", "mad.rn.f64", "mul.f32", "add.ftz.f32"):
            self.assertIn("rounds once", run(step(WIDE + f"\t{text} %f1, %f2, %f3;\n")))

    def test_integers_may_be_contracted(self):
        self.assertEqual(run(step(WIDE + "\tmad.lo.s32 %r1, %r2, %r3, %r4;\n")), "")

    def test_local_memory(self):
        self.assertIn("thread-local", run(step(WIDE + "\tld.local.f32 %f1, [%rd9];\n")))

    def test_steps_that_are_gone(self):
        self.assertIn("0 fused steps", run(step(), names={f"k{i}": "elements<Other>" for i in range(check_codegen.FUSED_STEPS)}))

    def test_kernels_that_ptxas_does_not_know(self):
        wrong, _ = check_codegen.check("90", ".visible .entry k0(\n" + step(), "", {"k0": STEP})
        self.assertIn("1 kernels in PTX, 0 in", wrong[0])

    def test_conversion_of_the_chip(self):
        names = {f"k{i}": STEP for i in range(check_codegen.FUSED_STEPS)}
        names["k0"] = "tiles<Quantize<float, e4m3>>"
        hardware = step(WIDE + "\tcvt.rn.satfinite.e4m3x2.f32 %rs1, %f1, %f2;\n")
        self.assertNotIn("e4m3", run(hardware, names=names))
        self.assertIn("conversion to e4m3", run(step(), names=names))

    def test_cast(self):
        def cast(wide):
            return check_codegen.check_cast("elements<Cast<bf16, float>>", step(
                wide, "\tld.global.u16 %rs1, [%rd1];\n\tst.global.f32 [%rd3], %f1;\n"))
        good = "\tld.global.v2.u32 {%r1}, [%rd1];\n\tst.global.v4.b32 [%rd3], {%r1};\n"
        self.assertEqual(cast(good), [])
        self.assertIn("expected", cast("")[0])
        self.assertIn("expected", cast(good.replace("v2.u32", "v4.u32"))[0])


class Names(unittest.TestCase):
    def test_short(self):
        self.assertEqual(
            check_codegen.short_name("void shardwise::v0_1::detail::cuda::elements_kernel<shardwise::v0_1::Cast<float, "
                                     "shardwise::v0_1::bf16> >(unsigned long, shardwise::v0_1::detail::ElementPlan)"),
            "elements<Cast<float, bf16>>")
        self.assertEqual(
            check_codegen.short_name("void shardwise::v0_1::detail::cuda::tiles_kernel<shardwise::v0_1::detail::"
                                     "Quantize<double, (shardwise::v0_1::Quantized)2> >(unsigned long)"),
            "tiles<Quantize<double, e4m3>>")


class Table(unittest.TestCase):
    ROW = {"80": 10, "90": 20, "100": 30}

    def test_written_and_read(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "table.txt"
            check_codegen.write_table(path, "13.0", {STEP: self.ROW})
            self.assertEqual(check_codegen.read_table(path), ("13.0", {STEP: self.ROW}))

    def test_differences(self):
        def compare(found, same=True):
            return "\n".join(check_codegen.compare({STEP: self.ROW}, found, same))
        self.assertEqual(compare({STEP: self.ROW}), "")
        self.assertIn("uses 21 registers, recorded are 20", compare({STEP: {**self.ROW, "90": 21}}))
        self.assertEqual(compare({STEP: {**self.ROW, "90": 28}}, same=False), "")
        self.assertIn("uses 29", compare({STEP: {**self.ROW, "90": 29}}, same=False))
        self.assertIn("not among the kernels", compare({}))
        self.assertIn("not in the table", compare({STEP: self.ROW, "other": self.ROW}))


if __name__ == "__main__":
    unittest.main()
