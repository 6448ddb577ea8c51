"""Builds ``seqcls_fast._C``: csrc/cpu/kernels once per instruction set, csrc/cuda where there is nvcc, the rest once.
The eager entry, csrc/eager, is a library for each release of torch that it shall work with. ``seqcls_fast._runtime`` is
csrc/runtime, which needs no torch to run.

``python setup.py build_ext --inplace --isas=avx2`` builds fewer instruction sets, as the mutation tests do; "base",
which runs on every CPU, is always built. SEQCLS_CUDA=0 or 1 decides whether the CUDA part is built. Without it, the
part is built if torch is built for CUDA and nvcc is there. Whether this machine has a GPU does not matter.

torch is not imported: its folder, ``.../site-packages/torch``, has all that is needed, its headers and libraries. It is
that of this Python, or the one that SEQCLS_TORCH names, which may be of another Python. SEQCLS_EAGER_FOR names the
folders that get an eager entry, with colons between them; 0 means none. Without it there is one for the torch that
builds, if that works.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
_flags = runpy.run_path(str(ROOT / "csrc/flags.py"))
_compile = runpy.run_path(str(ROOT / "csrc/compile.py"))
FLAGS, COMPILER, HAVE_COMPILER = _flags["FLAGS"], _flags["COMPILER"], _flags["HAVE_COMPILER"]

CFLAGS = shlex.split(os.environ.get("CFLAGS", ""))
COMPILED_ONCE = ("csrc/bindings", "csrc/cpu/host", "csrc/linear", "csrc/series", "csrc/text")
WITH_PYTHON = "csrc/bindings/introspection.cpp"  # the one of these files that includes headers of Python
CUDA_SOURCES = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
# C++20 for the headers of torch; the others as CPython's own build gives them to extensions.
CXX_FLAGS = ["-std=c++20", "-DNDEBUG", "-fwrapv"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",  # plan.h and core/ are host and device alike
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    f"-Xcompiler=-ffile-prefix-map={ROOT.resolve()}=.",
    "-diag-suppress=161,1675",  # pragmas of other compilers
    "-Xfatbin=-compress-all",  # the code for GPUs then takes a fifth of the space
]


Part = tuple[Path, Path, list[str]]  # an object file, its source, and the compiler with its flags


def torch_folder() -> Path:
    """The torch to build with."""
    named = os.environ.get("SEQCLS_TORCH")
    spec = None if named else find_spec("torch")
    folder = Path(named) if named else Path(spec.origin or "").parent if spec else None
    if folder is None:
        raise SystemExit("expected torch in this Python, or its folder in SEQCLS_TORCH, but there is neither")
    if said_by(folder, "__version__") is None:
        raise SystemExit(f"SEQCLS_TORCH: expected the folder of an installed torch package but got {folder}")
    return folder.resolve()


def said_by(torch: Path, name: str) -> str | None:
    """The string that a variable of torch/version.py holds, or None."""
    file = torch / "version.py"
    found = re.search(rf"^{name}\b[^=\n]*= '([^']*)'", file.read_text() if file.exists() else "", re.MULTILINE)
    return found and found[1]


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


def cuda_toolkit(torch: Path) -> Toolkit | None:
    """The toolkit to build the CUDA part with, or None. A message says why not, if torch is built for CUDA."""
    choice = os.environ.get("SEQCLS_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"SEQCLS_CUDA: expected 0 or 1 but got {choice}")
    if choice == "0" or not CUDA_SOURCES:
        return None
    built_for, version = said_by(torch, "cuda"), said_by(torch, "__version__")
    toolkit = find_toolkit() if built_for else None
    if built_for is None:
        reason = f"torch {version} is built without CUDA"
    elif toolkit is None:
        reason = "no nvcc in CUDA_HOME or on the PATH"
    elif toolkit.release.split(".")[0] != built_for.split(".")[0]:
        reason = f"nvcc is of CUDA {toolkit.release} but torch {version} is built for CUDA {built_for}"
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


class Build(build_ext):
    """Compiles all objects side by side, the kernels once per instruction set, and then links the libraries."""

    user_options = [
        *build_ext.user_options,
        ("isas=", None, "comma-separated instruction sets to build besides base"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.isas: str | None = None
        self.build_temp = "build/temp"  # kept for the next build; pip's own folder would be empty each time

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True  # a library whose objects are current may have been linked from fewer of them
        self.shared = Path(self.build_temp).resolve()
        self.of_python = self.shared / str(sys.implementation.cache_tag)  # what includes headers of this Python

    def build_extensions(self) -> None:
        isas = _flags["chosen_isas"](self.isas, "--isas")
        pool = ThreadPoolExecutor(_compile["jobs"]())
        tasks: dict[Path, Future[Path]] = {}

        def compiled(part: Part) -> Future[Path]:
            built, source, command = part
            if built not in tasks:
                tasks[built] = pool.submit(_compile["compile_object"], built, source, *command)
            return tasks[built]

        try:
            self.compiled = {ext.name: [compiled(part) for part in self.parts(ext, isas)] for ext in self.extensions}
            super().build_extensions()
        finally:
            pool.shutdown(cancel_futures=True)

    def parts(self, ext: Extension, isas: list[str]) -> list[Part]:
        """The objects of one of the extensions."""
        common = [(self.shared / "older_glibc.o", ROOT / "csrc/older_glibc.cpp", cxx(*FLAGS))]
        if ext.name == "seqcls_fast._C":
            return common + self.core_parts(ext, isas)
        if ext.name == "seqcls_fast._runtime":
            return common + self.runtime_parts(isas)
        return common + self.eager_parts(ext)

    def core_parts(self, ext: Extension, isas: list[str]) -> list[Part]:
        torch = torch_folder()
        toolkit = cuda_toolkit(torch)
        archs = architectures() if toolkit else []
        macros = [f"-DSF_WITH_{name.upper()}" for name in isas]
        parts: list[Part] = []
        if toolkit:  # first, because it takes longest
            # USE_CUDA declares the stable ABI's functions for streams and cuBLAS. They are in libtorch_cuda, which
            # libtorch loads. No other symbol of ours needs libtorch, so the linker must be told to keep it. CUDA's own
            # runtime is linked statically, because the one that torch loads may be of another release.
            macros += ["-DSF_WITH_CUDA", "-DUSE_CUDA", f'-DSF_CUDA_ARCHS="{",".join(archs)}"']
            ext.library_dirs += toolkit.library_dirs
            ext.libraries += ["cudart_static", "dl", "rt", "pthread"]
            ext.extra_link_args += ["-Wl,--no-as-needed", "-ltorch"]
            parts += cuda_parts(toolkit, archs, self.shared)
        for name in isas:
            command = cxx(*CXX_FLAGS, *_flags["kernel_flags"](name))
            parts.append((self.shared / f"kernels_{name}.o", _flags["kernel_source"](name), command))
        flags = [*CXX_FLAGS, *FLAGS, *macros, *torch_headers(torch)]
        for source in (path for folder in COMPILED_ONCE for path in sorted((ROOT / folder).glob("*.cpp"))):
            name = source.relative_to(ROOT).as_posix()
            more = hash_macro() if name.startswith("csrc/bindings/") else []
            folder = self.shared
            if name == WITH_PYTHON:
                folder, more = self.of_python, [*more, *python_headers()]
            parts.append(((folder / name).with_suffix(".o"), source, cxx(*flags, *more)))
        return parts

    def runtime_parts(self, isas: list[str]) -> list[Part]:
        runtime = runpy.run_path(str(ROOT / "csrc/runtime/build.py"))
        command = cxx("-std=c++17", "-DNDEBUG", *FLAGS, *python_headers())
        module = (self.of_python / "runtime.o", runtime["PYTHON_MODULE"], command)
        return [*runtime["objects"](self.shared / "runtime", isas, CFLAGS), module]

    def eager_parts(self, ext: Extension) -> list[Part]:
        name = ext.name.rpartition(".")[2]
        macros = [f"-DSF_EAGER_INIT=PyInit_{name}", *hash_macro()]
        headers = [*torch_headers(Path(ext.library_dirs[0]).parent), *python_headers()]
        command = cxx(*CXX_FLAGS, *FLAGS, "-Wno-unused-parameter", *macros, *headers)  # for the headers of torch
        sources = sorted((ROOT / "csrc/eager").glob("*.cpp"))
        return [(self.of_python / name / f"{source.stem}.o", source, command) for source in sources]

    def build_extension(self, ext: Extension) -> None:
        """Links an extension. Without an eager entry all works too, so that one nobody asked for may fail."""
        try:
            ext.extra_objects = [str(task.result()) for task in self.compiled[ext.name]]
            super().build_extension(ext)
        except (subprocess.CalledProcessError, CompileError, LinkError, OSError) as error:
            if ext.optional:
                print(f"seqcls_fast: building without {ext.name}, small calls take longer: {error}", file=sys.stderr)
            else:
                raise CompileError(f"{ext.name}: {error}") from None


def cxx(*flags: str) -> list[str]:
    return [*COMPILER, "-fPIC", *flags, *CFLAGS]


def torch_headers(torch: Path) -> list[str]:
    """Their messages hold their paths, which then are the same on every machine."""
    folder = torch / "include"
    return [f"-I{folder}", f"-I{folder / 'torch/csrc/api/include'}", f"-ffile-prefix-map={folder}=torch"]


def python_headers() -> list[str]:
    """Those of pybind11 are among torch's."""
    return [f"-I{path}" for path in dict.fromkeys(map(sysconfig.get_path, ("include", "platinclude")))]


def cuda_parts(toolkit: Toolkit, archs: list[str], folder: Path) -> list[Part]:
    command = [toolkit.nvcc, *nvcc_flags(archs)]
    return [(folder / "-".join(["cuda", *archs]) / f"{cu.stem}.o", cu, command) for cu in CUDA_SOURCES]


def hash_macro() -> list[str]:
    return [f'-DSF_CSRC_HASH="{runpy.run_path(str(ROOT / "csrc/hash.py"))["csrc_hash"](ROOT)}"']


def eager_entries() -> list[Extension]:
    """An extension for each torch in SEQCLS_EAGER_FOR."""
    choice = os.environ.get("SEQCLS_EAGER_FOR")
    folders = [torch_folder()] if choice is None else map(Path, choice.split(os.pathsep) if choice.strip("0") else [])
    found = {}
    for folder in folders:
        version = re.match(r"\d+\.\d+\.\d+", said_by(folder, "__version__") or "")
        if version is None:
            raise SystemExit(f"SEQCLS_EAGER_FOR: expected folders of installed torch packages but got {folder}")
        name = f"seqcls_fast._eager_{version[0].replace('.', '_')}"  # seqcls_fast/_eager.py looks for it
        found[name] = extension(name, folder.resolve(), ["c10", "torch", "torch_cpu", "torch_python"], choice is None)
    return list(found.values())


def extension(name: str, torch: Path | None, libraries: list[str], optional: bool = False) -> Extension:
    """An extension for setuptools, which only links it: Build compiles its objects."""
    folders = [str(torch / "lib")] if torch else []
    return Extension(name, [], libraries=libraries, library_dirs=folders, language="c++", optional=optional)


def extensions() -> list[Extension]:
    if not HAVE_COMPILER:
        print(
            "seqcls_fast: no C++ compiler here: installing without the extension, torch's own layers will run",
            file=sys.stderr,
        )
        return []
    return [
        extension("seqcls_fast._C", torch_folder(), ["c10", "torch", "torch_cpu"]),
        extension("seqcls_fast._runtime", None, []),
        *eager_entries(),
    ]


class Platform(Distribution):
    """On Windows nothing is compiled yet. A wheel from there must not be taken for one of every platform."""

    def has_ext_modules(self) -> bool:
        return super().has_ext_modules() or sys.platform == "win32"


if __name__ == "__main__":  # so that tools/cuda_check.py compiles with the same flags
    setup(ext_modules=extensions(), cmdclass={"build_ext": Build}, distclass=Platform)
