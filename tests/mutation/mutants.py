"""Breaks one formula or boundary at a time in a copy of the sources and requires the tests to notice.

    python tests/mutation/mutants.py [--list] [--only NAME ...] [--sample N]

The mutants are exact replacements of text, in mutant_list.py. A mutant whose text no longer occurs exactly once is an
error, so that the list stays up to date. For mutants of C++ one instruction set is built in the copy, for those of CUDA
kernels the plugin of tests/cuda/simt; mutants of Python run with the extension that was built last.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path("build", "simt")  # object files of tests/cuda/simt
ISA = "base"  # the instruction set that builds fastest; all are built from the same sources
KERNELS = (
    "test_one_step.py",
    "test_backends.py",
    "test_bitwise.py",
    "test_gradients.py",
    "test_hypothesis.py",
    "test_limits.py",
    "test_ids.py",
)
OPTIONS = ("test_options_backends.py", "test_options_bitwise.py")
SUITES = {  # the tests that must notice a mutant: those of the first key with which its file's path begins
    "csrc/bindings/head": ("test_head.py",),
    "seqcls_fast/toolkit/training/ridge.py": ("test_series_wide.py",),
    "seqcls_fast/toolkit/training/wide.py": ("test_series_wide.py", "test_search.py"),
    "seqcls_fast/toolkit/training/svm.py": ("test_svm.py",),
    "csrc/linear": ("test_svm.py",),
    "seqcls_fast/toolkit/data/vectors.py": ("test_vectors.py",),
    "seqcls_fast/toolkit/data/tokenizer_file.py": ("test_tokenizer_file.py",),
    "seqcls_fast/toolkit/data/channels.py": ("test_series_channels.py",),
    "csrc/cpu/host/head": ("test_head.py",),
    "csrc/cpu/kernels/head": ("test_head.py",),
    "csrc/cpu/kernels/tile": ("test_head.py", *KERNELS),
    "csrc/bindings/packed": ("test_packed.py",),
    "csrc/bindings/options": ("test_options_refused.py", *OPTIONS),
    "csrc/bindings": ("test_hostile_calls.py", "test_ops.py", *KERNELS, "test_func.py"),
    "csrc/eager": (
        "test_calls_both_ways.py",
        "test_calls_transforms.py",
        "test_calls_changes.py",
        "test_calls_derivatives.py",
        "test_calls_graph.py",
        "test_calls_modules.py",
        "test_frozen.py",
    ),
    "csrc/cpu/host": ("test_hostile_calls.py", *KERNELS, "test_func.py"),
    "csrc/cpu/kernels/amx": ("test_amx.py",),
    "csrc/cpu/kernels/grad_tiles": (*KERNELS, "test_func.py", *OPTIONS, "test_amx.py"),
    "csrc/cpu/kernels/weight_grad": (*KERNELS, "test_func.py", *OPTIONS, "test_amx.py"),
    "csrc/cpu/kernels/row_": OPTIONS,
    "csrc/cpu/kernels/one_step": ("test_runtime_bits.py",),
    "csrc/cpu/kernels": (*KERNELS, *OPTIONS, "test_amx.py"),
    "csrc/core": (*KERNELS, *OPTIONS),
    # (only tests that use the plugin alone, because the extension may still have another mutant)
    "csrc/cuda/kernels/ids": (
        "test_ids.py::test_kernels_on_cuda_read_nothing_for_an_id_without_a_column",
        "test_simt.py",
    ),
    "csrc/cuda": ("test_simt.py", "test_simt_options.py"),
    "csrc/runtime/convolution_scores": ("test_runtime_estimators.py",),
    "csrc/runtime/whole_series": ("test_runtime_estimators.py",),
    "csrc/runtime/words": ("test_runtime_texts.py",),
    "csrc/runtime/texts": ("test_runtime_texts.py",),
    "csrc/runtime/classify": ("test_runtime_texts.py",),
    "csrc/runtime/state": ("test_runtime_state.py",),
    "csrc/runtime": ("test_runtime_bits.py", "test_runtime_calls.py", "test_runtime_files.py"),
    "csrc/compile.py": ("test_compile_objects.py",),
    "csrc/older_glibc": ("test_build.py",),
    "csrc": KERNELS,
    "setup.py": ("test_setup.py",),
    "tools/": ("test_wheels.py",),
    "benchmarks/gpu/supervisor.py": ("test_gpu_command.py",),
    "benchmarks/harness.py": ("test_bench_harness.py",),
    "benchmarks/layer_cases.py": ("test_bench_cases.py",),
    "benchmarks/questions/policies.py": ("test_bench_cases.py",),
    "benchmarks/questions/resets.py": ("test_bench_options.py",),
    "benchmarks/option_loops.py": ("test_bench_options.py",),
    "benchmarks/goals.py": ("test_bench_options.py",),
    "benchmarks/rows.py": ("test_bench_report.py",),
    "benchmarks/questions/quality.py": ("test_quality.py",),
    "benchmarks/quality_": ("test_quality.py", "test_quality_sets.py"),
    "seqcls_fast/ops.py": (
        "test_ops.py",
        "test_torch_layer.py",
        "test_gradients.py",
        "test_bitwise.py",
        "test_autocast.py",
        "test_compile.py",
    ),
    "seqcls_fast/_autograd.py": (
        "test_ops.py",
        "test_gradients.py",
        "test_autocast.py",
        "test_training.py",
        "test_export.py",
        "test_func.py",
        "test_compile.py",
    ),
    "seqcls_fast/_spec.py": (
        "test_ops.py",
        "test_gradients.py",
        "test_autocast.py",
        "test_training.py",
        "test_export.py",
        "test_func.py",
        "test_compile.py",
    ),
    "seqcls_fast/_torch_layer.py": (
        "test_torch_layer.py",
        "test_nn_strides.py",
        "test_ops.py",
        "test_gradients.py",
        "test_backends.py",
        "test_autocast.py",
    ),
    "seqcls_fast/_inputs.py": ("test_autocast.py", "test_ops.py", "test_reference.py"),
    "seqcls_fast/_exported.py": ("test_ops.py", "test_export.py"),
    "seqcls_fast/_shapes.py": ("test_ops.py", "test_compile.py"),
    "seqcls_fast/_frozen.py": ("test_frozen.py",),
    "seqcls_fast/_flops.py": ("test_flops.py",),
    "seqcls_fast/conversion.py": (
        "test_convert.py",
        "test_convert_models.py",
        "test_convert_classes.py",
        "test_frozen.py",
    ),
    "seqcls_fast/_layer_classes.py": ("test_convert.py", "test_convert_classes.py"),
    "seqcls_fast/_other_libraries.py": ("test_convert_classes.py",),
    "seqcls_fast/export.py": ("test_export_onnx.py", "test_export_onnx_options.py"),
    "seqcls_fast/_nested.py": ("test_nested.py",),
    "seqcls_fast/_options.py": ("test_module_options.py",),
    "seqcls_fast/_after_import.py": ("test_import.py", "test_flops.py"),
    "seqcls_fast/_stand_ins.py": ("test_fx.py",),
    "seqcls_fast/_files.py": ("test_files.py",),
    "seqcls_fast/_runtime_": ("test_runtime_python.py",),
    "seqcls_fast/runtime.py": ("test_runtime_python.py", "test_runtime_estimators.py"),
    "seqcls_fast/classifier.py": ("test_classifier.py", "test_classifier_bits.py", "test_torch_layer.py"),
    "seqcls_fast/_head.py": ("test_head.py", "test_classifier_bits.py"),
    "seqcls_fast/toolkit/evaluation/intervals.py": ("test_intervals.py", "test_baseline.py"),
    "seqcls_fast/toolkit/data/features.py": ("test_baseline.py",),
    "seqcls_fast/toolkit/baseline.py": ("test_baseline.py",),
    "seqcls_fast/toolkit/evaluation/beside.py": ("test_baseline.py",),
    "seqcls_fast/toolkit/evaluation/mistakes.py": ("test_report_errors.py",),
    "seqcls_fast/toolkit/evaluation": ("test_evaluation.py", "test_calibration.py"),
    "seqcls_fast/toolkit/data/leakage.py": ("test_evaluation.py", "test_stream.py"),
    "seqcls_fast/toolkit/evaluation/plots.py": ("test_plots.py",),
    "seqcls_fast/toolkit/data/text.py": ("test_text.py", "test_stream.py"),
    "seqcls_fast/toolkit/data/errors.py": ("test_text.py", "test_series.py"),
    "seqcls_fast/toolkit/data/series.py": ("test_series.py", "test_stream.py"),
    "seqcls_fast/toolkit/data/readers.py": ("test_readers.py", "test_stream.py"),
    "seqcls_fast/toolkit/training/checkpoint.py": ("test_resume.py", "test_hostile_models.py"),
    "seqcls_fast/toolkit/training/resume.py": ("test_hostile_models.py",),
    "seqcls_fast/toolkit/store.py": ("test_estimators.py", "test_hostile_models.py"),
    "seqcls_fast/toolkit/schema.py": ("test_estimators.py", "test_hostile_models.py"),
    "seqcls_fast/toolkit/training/loop.py": ("test_resume.py", "test_ranks.py", "test_estimators.py"),
    "seqcls_fast/toolkit/training/threads.py": ("test_threads.py",),
    "seqcls_fast/toolkit/training/logits.py": ("test_resume.py", "test_estimators.py"),
    "seqcls_fast/toolkit/ranks.py": ("test_ranks.py",),
    "seqcls_fast/toolkit/data/datasets.py": ("test_baseline.py", "test_ranks.py", "test_fit_stream.py"),
    "seqcls_fast/toolkit/data/stream.py": ("test_stream.py", "test_fit_stream.py"),
    "seqcls_fast/toolkit/data/survey.py": ("test_stream.py", "test_fit_stream.py"),
    "seqcls_fast/toolkit/data/pools.py": ("test_stream.py", "test_fit_stream.py"),
    "seqcls_fast/toolkit/data/workers.py": ("test_stream.py", "test_fit_stream.py"),
    "seqcls_fast/toolkit/data/records.py": ("test_readers.py", "test_stream.py"),
    "seqcls_fast/toolkit/data/parquet.py": ("test_readers.py", "test_stream.py", "test_fuzz_files.py"),
    "seqcls_fast/toolkit/data/formats.py": ("test_readers.py", "test_stream.py"),
    "seqcls_fast/toolkit/evaluation/calibration.py": ("test_calibration.py",),
    "seqcls_fast/toolkit/evaluation/decision.py": ("test_calibration.py",),
    "seqcls_fast/cli/calibrate.py": ("test_calibration.py",),
    "seqcls_fast/cli/search.py": ("test_search.py",),
    "seqcls_fast/cli/reproduce.py": ("test_reproduce.py",),
    "seqcls_fast/toolkit/card.py": ("test_reproduce.py", "test_escapes.py"),
    "seqcls_fast/toolkit/_terminal.py": ("test_shown.py",),
    "seqcls_fast/toolkit/data/columns.py": ("test_columns.py",),
    "seqcls_fast/cli/predict.py": ("test_escapes.py", "test_cli_predict.py", "test_calibration.py"),
    "seqcls_fast/toolkit/trace.py": ("test_trace.py",),
    "seqcls_fast/toolkit/data/ragged.py": ("test_batches.py",),
    "seqcls_fast/toolkit/data/batches.py": ("test_batches.py",),
    "seqcls_fast/cli": ("test_cli_options.py", "test_cli_train.py", "test_calibration.py", "test_search.py"),
    "seqcls_fast/toolkit/parameter_checks.py": ("test_mistakes.py",),
    "seqcls_fast/toolkit/training/prepare.py": ("test_mistakes.py",),
    "seqcls_fast/cli/main.py": ("test_cli_out.py",),
    "seqcls_fast/toolkit/inputs.py": ("test_mistakes.py", "test_columns.py", "test_estimators.py"),
    "seqcls_fast/toolkit/fit.py": ("test_train_on.py", "test_resume.py", "test_estimators.py"),
    "seqcls_fast/toolkit/fitted.py": ("test_calibration.py", "test_estimators.py"),
    "seqcls_fast/toolkit": ("test_estimators.py",),
    "seqcls_fast/_noise.py": ("test_options_noise.py",),
    "seqcls_fast/_other_weights.py": ("test_from_keras.py",),
    "seqcls_fast/_from_": ("test_from_keras.py",),
    "seqcls_fast/reference.py": (
        "test_options_papers.py",
        "test_reference.py",
        "test_classifier.py",
        "test_oracle_onnx.py",
        "test_ops.py",
        "test_bitwise.py",
        "test_ids.py",
    ),
    "seqcls_fast": (
        "test_nested.py",
        "test_module_options.py",
        "test_nn_inputs.py",
        "test_nn_torch.py",
        "test_nn.py",
        "test_nn_cells.py",
        "test_torch_modules.py",
    ),
}


def _path_of(test: str) -> str:
    """`test_ids.py::test_x` as a path from the project's folder; every test file has a name of its own."""
    name, *rest = test.split("::")
    (file,) = (ROOT / "tests").rglob(name)
    return "::".join([str(file.relative_to(ROOT)), *rest])


def suite_of(mutant: Mutant) -> tuple[str, ...]:
    return next(tests for start, tests in SUITES.items() if mutant.file.startswith(start))


# Most calls of the tests are plain, and reach this code only without the eager entry.
BEYOND_EAGER = tuple(f"seqcls_fast/{name}.py" for name in ("ops", "_autograd", "_recurrent", "_checks", "nn"))


def way_of(mutant: Mutant) -> tuple[str, ...]:
    """Options of pytest, with which the tests reach what was changed."""
    if mutant.file.startswith("csrc"):
        return "--impl", ISA
    return ("--entry", "python") if mutant.file.startswith(BEYOND_EAGER) else ()


def of_plugin(mutant: Mutant) -> bool:
    """Whether the mutant is in the plugin and not in the extension."""
    return mutant.file.startswith("csrc/cuda")


def misfits(mutants: list[Mutant]) -> list[str]:
    """A message for each mutant whose text does not occur exactly once."""
    found = []
    for mutant in mutants:
        path = ROOT / mutant.file
        count = path.read_text().count(mutant.old) if path.exists() else 0
        if count != 1 or mutant.old == mutant.new:
            found.append(f"{mutant.name}: its text occurs {count} times in {mutant.file}")
    return found


class Copy:
    """A copy of the project, in which mutants are built and tested."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("csrc", "seqcls_fast", "tests", "benchmarks", "tools"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        for name in ("setup.py", "pyproject.toml", "README.md", "Makefile"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, root)
        if (ROOT / KEPT).exists():
            shutil.copytree(ROOT / KEPT, root / KEPT)
        # Python takes a .pyc for current when the size of the source and its time in seconds agree, so none is written
        path = os.pathsep.join([str(root), str(root / "tests"), str(root / "tests" / "cuda")])
        self.environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": path}
        # named, so that an eager entry that does not build is a failure
        self.environment["SEQCLS_EAGER_FOR"] = str(Path(torch.__file__).parent)

    def run(self, *command: str, timeout: float = 1200) -> tuple[int, str]:
        """The exit status and the end of the output; -1 for a hang."""
        try:
            done = subprocess.run(
                [sys.executable, *command], cwd=self.root, env=self.environment, timeout=timeout, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return -1, "hangs"
        return done.returncode, done.stdout[-2000:]

    def build(self, plugin: bool = False) -> tuple[int, str]:
        if plugin:
            return self.run("-c", "from simt.build import build_plugin; build_plugin()")
        return self.run("setup.py", "build_ext", "--inplace", f"--isas={ISA}")

    def test(self, tests: tuple[str, ...], way: tuple[str, ...]) -> tuple[int, str]:
        """Runs tests; the status is 0 when all pass. A crash or a hang counts as a failure."""
        files = [_path_of(name) for name in tests]
        return self.run("-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *way, *files)

    def try_out(self, mutant: Mutant) -> str:
        """Tests one mutant: `noticed: TEST`, or what is wrong with the mutant or the tests."""
        path = self.root / mutant.file
        sound = path.read_text()
        path.write_text(sound.replace(mutant.old, mutant.new))
        # -O0 halves the time to compile the plugin. Its tests then take three times as long, but most stop early.
        if of_plugin(mutant):
            self.environment["CXXFLAGS"] = "-O0"
        try:
            if mutant.file.startswith("csrc") and (failure := self.build(of_plugin(mutant)))[0]:
                return f"DOES NOT BUILD\n{failure[1]}"
            status, text = self.test(suite_of(mutant), way_of(mutant))
        finally:
            path.write_text(sound)  # with a new modification time, so that the next build compiles it
            self.environment.pop("CXXFLAGS", None)
        failed = [line for line in text.splitlines() if line.startswith("FAILED") and "::" in line]
        if status == 0:
            return "NOT NOTICED"
        if status in (2, 3, 4, 5):  # pytest: interrupted, internal error, usage, nothing collected
            return f"TESTS DID NOT RUN\n{text}"
        return "noticed: " + (failed[0].split(" - ")[0].split("::", 1)[1] if failed else f"exit status {status}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the sources one place at a time; the tests must notice.")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants or files whose name contains one of these")
    parser.add_argument("--sample", type=int, metavar="N", help="a random choice of N mutants")
    options = parser.parse_args()

    chosen = [m for m in MUTANTS if not options.only or any(o in m.name or o in m.file for o in options.only)]
    if options.sample is not None:
        chosen = random.sample(chosen, min(options.sample, len(chosen)))
    if options.list:
        for mutant in chosen:
            print(f"{mutant.file:28} {mutant.name}")
    if wrong := misfits(MUTANTS):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    if options.list:
        return 0

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(Path(folder))
        any_compiled = any(m.file.startswith("csrc") for m in chosen)
        for plugin in [False] * any_compiled + [True] * any(map(of_plugin, chosen)):
            if (failure := copy.build(plugin))[0]:
                print(f"the unchanged sources do not build\n{failure[1]}", file=sys.stderr)
                return 1
        place = copy.run("-c", "import seqcls_fast; print(seqcls_fast.__file__)")[1]
        assert str(copy.root) in place, f"tests would run on {place}, not on the copy"
        for tests, way in sorted({(suite_of(m), way_of(m)) for m in chosen}):
            if (failure := copy.test(tests, way))[0]:
                print(f"the tests fail on unchanged sources\n{failure[1]}", file=sys.stderr)
                return 1
        bad = 0
        for mutant in chosen:
            start = time.monotonic()
            outcome = copy.try_out(mutant)
            bad += not outcome.startswith("noticed")
            print(f"{mutant.file:28} {mutant.name:34} {time.monotonic() - start:4.0f} s  {outcome}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants noticed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
