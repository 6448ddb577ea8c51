"""Builds ``seqcls_fast._C``: csrc/cpu/kernels once per instruction set, csrc/cuda where there is nvcc, the rest once.
The eager entry, csrc/eager, is a library for each release of torch that it shall work with. ``seqcls_fast._runtime`` is
csrc/runtime, which needs no torch to run.

``python setup.py build_ext --inplace --isas=avx2`` builds fewer instruction sets, as the mutation tests do; "base",
which runs on every CPU, is always built. SEQCLS_CUDA=0 or 1 decides whether the CUDA part is built. Without it, the
part is built if torch is built for CUDA and nvcc is there. Whether this machine has a GPU does not matter.

SEQCLS_EAGER_FOR names the installations of torch that get an eager entry, as folders ``.../site-packages/torch`` with
colons between them; 0 means none. Without it there is one for the torch that builds, if that works.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.errors import CompileError, LinkError
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
_flags = runpy.run_path(str(ROOT / "csrc/flags.py"))
FLAGS, COMPILER, HAVE_COMPILER = _flags["FLAGS"], _flags["COMPILER"], _flags["HAVE_COMPILER"]

COMPILED_ONCE = ("csrc/bindings", "csrc/cpu/host", "csrc/series", "csrc/text")
CUDA_SOURCES = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
CUDA_HEADERS = [path for glob in ("bindings/*.h", "core/*.h", "cuda/**/*.*h") for path in (ROOT / "csrc").glob(glob)]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",  # plan.h and core/ are host and device alike
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    f"-Xcompiler=-ffile-prefix-map={ROOT.resolve()}=.",
    "-diag-suppress=161,1675",  # pragmas of other compilers
    "-Xfatbin=-compress-all",  # the code for GPUs then takes a fifth of the space
]


@dataclass(frozen=True)
class Toolkit:
    """An nvcc, the CUDA release it belongs to, and where its libraries are."""

    nvcc: str
    release: str
    library_dirs: tuple[str, ...]


def find_toolkit() -> Toolkit | None:
    """The toolkit in CUDA_HOME, or else that of the nvcc on the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")
    if not nvcc:
        return None
    # nvcc itself tells where its libraries are: on the PATH it may be a script or a link far from its toolkit.
    dryrun = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    answers = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    answers += subprocess.run(dryrun, capture_output=True, text=True, check=True).stderr
    release = re.search(r"release ([\d.]+)", answers)
    libraries = re.search(r"^#\$ LIBRARIES=(.*)", answers, re.MULTILINE)
    if release is None or libraries is None:
        raise SystemExit(f"{nvcc}: expected a release and LIBRARIES= in what --version and --dryrun print")
    folders = (word.removeprefix("-L") for word in shlex.split(libraries[1]))
    return Toolkit(nvcc, release[1], tuple(os.path.normpath(folder) for folder in folders))


def cuda_toolkit() -> Toolkit | None:
    """The toolkit to build the CUDA part with, or None. A message says why not, if torch is built for CUDA."""
    choice = os.environ.get("SEQCLS_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"SEQCLS_CUDA: expected 0 or 1 but got {choice}")
    if choice == "0" or not CUDA_SOURCES:
        return None
    built_for = torch.version.cuda
    toolkit = find_toolkit() if built_for else None
    if built_for is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif toolkit is None:
        reason = "no nvcc in CUDA_HOME or on the PATH"
    elif toolkit.release.split(".")[0] != built_for.split(".")[0]:
        reason = f"nvcc is of CUDA {toolkit.release} but torch {torch.__version__} is built for CUDA {built_for}"
    elif tuple(map(int, toolkit.release.split("."))) < (12, 8):
        reason = f"nvcc is of CUDA {toolkit.release} but the kernels need 12.8"
    else:
        return toolkit
    if choice == "1":
        raise SystemExit(f"SEQCLS_CUDA=1: {reason}")
    if built_for:
        print(f"seqcls_fast: building without the CUDA part: {reason}", file=sys.stderr)
    return None


def architectures(wanted: str | None = None) -> list[str]:
    """The GPUs to build for, in nvcc's names: those of TORCH_CUDA_ARCH_LIST, or else sm_80 and sm_90a.

    There is no PTX for later GPUs, because the kernels use instructions that only sm_90a has.
    """
    if wanted is None:
        wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    names = re.split(r"[;,\s]+", wanted.strip()) if wanted.strip() else ["8.0", "9.0a"]
    found: list[str] = []
    for name in names:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0;9.0 but got {name}")
        major, minor, suffix = int(parts[1]), parts[2], parts[3]
        if major < 8:
            print(f"seqcls_fast: TORCH_CUDA_ARCH_LIST: {name} is left out, the kernels need 8.0", file=sys.stderr)
            continue
        found.append(f"{major}{minor}{'a' if (major, minor) == (9, '0') else suffix}")
    if not found:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected one of 8.0 or above but got {wanted}")
    return list(dict.fromkeys(found))


def nvcc_flags(archs: list[str]) -> list[str]:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*NVCC_FLAGS, *targets, f'-DSF_CUDA_ARCHS="{",".join(archs)}"']


def compile_cuda(toolkit: Toolkit, archs: list[str], source: Path, folder: Path) -> str:
    """Compiles one .cu file, unless its object is newer than it, than all headers and than this file."""
    built = folder / f"{source.stem}.o"
    inputs = [source, *CUDA_HEADERS, Path(__file__)]
    if built.exists() and built.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return str(built)
    folder.mkdir(parents=True, exist_ok=True)
    partial = built.with_suffix(".partial.o")  # so that a file half written is never taken for an object
    command = [toolkit.nvcc, *nvcc_flags(archs), "-c", str(source.relative_to(ROOT)), "-o", str(partial.resolve())]
    print(shlex.join(command), flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise CompileError(f"nvcc could not compile {source.relative_to(ROOT)}")
    partial.replace(built)
    return str(built)


class BuildPerIsa(BuildExtension):
    """Compiles kernels.cpp once per instruction set, each time into a folder of its own, and links all objects."""

    user_options = [
        *BuildExtension.user_options,
        ("isas=", None, "comma-separated instruction sets to build besides base"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.isas: str | None = None
        self.build_temp = "build/temp"  # kept for the next build; pip's own folder would be empty each time

    def build_extension(self, ext: CppExtension) -> None:
        names = _flags["chosen_isas"](self.isas, "--isas")

        def compile_isa(name: str) -> list[str]:
            return self.compiler.compile(
                [str(ROOT / "csrc/cpu/kernels/kernels.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                depends=ext.depends,
                extra_postargs=_flags["kernel_flags"](name),
            )

        if ext.name == "seqcls_fast._runtime":
            runtime = runpy.run_path(str(ROOT / "csrc/runtime/build.py"))
            parts = runtime["objects"](
                Path(self.build_temp) / "runtime", names, shlex.split(os.environ.get("CFLAGS", ""))
            )
            ext.extra_objects = list(map(str, parts))
            return super().build_extension(ext)
        if ext.name != "seqcls_fast._C":
            return self.build_eager(ext)
        toolkit = cuda_toolkit()
        archs = architectures() if toolkit else []
        folder = Path(self.build_temp) / "-".join(["cuda", *archs])
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            # CUDA first, because it takes longest
            cuda = [pool.submit(compile_cuda, toolkit, archs, cu, folder) for cu in CUDA_SOURCES if toolkit]
            ext.extra_objects = [obj for objects in pool.map(compile_isa, names) for obj in objects]
            ext.extra_objects += [task.result() for task in cuda]
        ext.define_macros += [(f"SF_WITH_{name.upper()}", None) for name in names]
        ext.define_macros += hash_macro()
        if toolkit:
            # USE_CUDA declares the stable ABI's functions for streams and cuBLAS. They are in libtorch_cuda, which
            # libtorch loads. No other symbol of ours needs libtorch, so the linker must be told to keep it. CUDA's own
            # runtime is linked statically, because the one that torch loads may be of another release.
            ext.define_macros += [("SF_WITH_CUDA", None), ("USE_CUDA", None), ("SF_CUDA_ARCHS", f'"{",".join(archs)}"')]
            ext.library_dirs += toolkit.library_dirs
            ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
            ext.extra_link_args += ["-Wl,--no-as-needed", "-ltorch"]
        self.force = True  # without ninja, a change of the macros alone would compile nothing anew
        super().build_extension(ext)

    def build_eager(self, ext: Extension) -> None:
        """Builds an eager entry. Without it all works too, so that one nobody asked for may fail."""
        ext.define_macros += hash_macro()
        try:
            super().build_extension(ext)
        except (CompileError, LinkError, RuntimeError, OSError) as error:
            if "SEQCLS_EAGER_FOR" in os.environ:
                raise
            print(f"seqcls_fast: building without the eager entry, small calls take longer: {error}", file=sys.stderr)


def hash_macro() -> list[tuple[str, str]]:
    return [("SF_CSRC_HASH", f'"{runpy.run_path(str(ROOT / "csrc/hash.py"))["csrc_hash"](ROOT)}"')]


def eager_entries(headers: list[str]) -> list[Extension]:
    """An extension for each torch in SEQCLS_EAGER_FOR."""
    choice = os.environ.get("SEQCLS_EAGER_FOR", str(Path(torch.__file__).parent))
    found = {}
    for folder in map(Path, choice.split(os.pathsep) if choice not in ("", "0") else []):
        text = (folder / "version.py").read_text() if (folder / "version.py").exists() else ""
        version = re.search(r"^__version__ = '(\d+\.\d+\.\d+)", text, re.MULTILINE)
        if version is None:
            raise SystemExit(f"SEQCLS_EAGER_FOR: expected folders of installed torch packages but got {folder}")
        name = f"_eager_{version[1].replace('.', '_')}"  # seqcls_fast/_eager.py looks for it
        found[name] = Extension(
            f"seqcls_fast.{name}",
            [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc/eager").glob("*.cpp"))],
            include_dirs=[str(folder / "include"), str(folder / "include/torch/csrc/api/include")],
            library_dirs=[str(folder / "lib")],
            libraries=["c10", "torch", "torch_cpu", "torch_python"],
            define_macros=[("SF_EAGER_INIT", f"PyInit_{name}")],
            extra_compile_args=[*FLAGS, "-std=c++20", "-Wno-unused-parameter"],  # for the headers of torch
            depends=headers,
            language="c++",
            optional=True,
        )
    return list(found.values())


def extensions() -> list[Extension]:
    if not HAVE_COMPILER:
        print(
            "seqcls_fast: no C++ compiler here: installing without the extension, torch's own layers will run",
            file=sys.stderr,
        )
        return []
    headers = [path for pattern in ("*.h", "*.cuh", "*.cu") for path in (ROOT / "csrc").rglob(pattern)]
    depends = sorted(map(str, headers))
    return [
        CppExtension(
            "seqcls_fast._C",
            [str(path.relative_to(ROOT)) for folder in COMPILED_ONCE for path in sorted((ROOT / folder).glob("*.cpp"))],
            extra_compile_args=FLAGS,
            depends=depends,
        ),
        Extension(
            "seqcls_fast._runtime",
            ["csrc/runtime/python.cpp"],
            extra_compile_args=[*FLAGS, "-std=c++17"],
            depends=depends,
            language="c++",
        ),
        *eager_entries(depends),
    ]


if __name__ == "__main__":  # so that tools/cuda_check.py compiles with the same flags
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildPerIsa})
