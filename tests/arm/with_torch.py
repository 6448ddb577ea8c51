"""Runs tests of the layers with torch itself on an emulated 64-bit ARM. `make arm-full` does, and CI does not.

The packages of Debian's Python for arm64 and torch's own wheels are unpacked into build/arm; nothing is installed on
this machine. setup.py compiles the extension for them with the cross compiler, as for any torch that SEQCLS_TORCH
names. This takes 11 GB of disk, of which 5 GB stay, and the first call downloads 2.5 GB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from arm import COMPILER, EMULATOR, OUT, ROOT, missing

PYTHON = "{}.{}".format(*sys.version_info[:2])  # compiled and run with the same release
TARGET = "aarch64-linux-gnu"
PLACE, PACKAGES, LIBRARY = OUT / "root", OUT / "packages", OUT / "lib"
LEAST_FREE = 11 << 30
# Python, and the libraries that it and torch need
DEBIAN = (
    *(f"{name}{PYTHON}{more}" for name, more in (("python", "-minimal"), ("libpython", ""), ("libpython", "-minimal"),
                                                 ("libpython", "-stdlib"), ("libpython", "-dev"))),
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "libcrypt1", "libssl3", "libncursesw6", "libtinfo6",
)  # fmt: skip
NEEDS = ("numpy", "pytest", "hypothesis", "expecttest")
GLIBCS = range(17, 29)  # of the wheels that are taken: manylinux_2_17 to manylinux_2_28
# What torch asks the system about its CPU: an ARM Neoverse N1. The emulator would show it the files of this machine.
CPU = {"implementer": "0x41", "architecture": "8", "variant": "0x3", "part": "0xd0c", "revision": "1"}
FEATURES = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp bf16 i8mm"
MIDR = "0x00000000413fd0c1"
# That CPU has no SVE. It has no bfloat16 either, but the emulated one has, and FEATURES says so.
EMULATED = (EMULATOR, "-cpu", "max,sve=off", "-L", PLACE)
TESTS = ("tests/layers/test_nn.py",)


def run(*words: str | Path, **options: object) -> None:
    """Runs a command. If it fails, so does this program."""
    if status := subprocess.run(list(map(str, words)), check=False, **options).returncode:
        raise SystemExit(f"arm-full: {' '.join(map(str, words))[:400]} ended with {status}")


def once(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes a folder, unless an earlier call has made all of it."""
    if not (folder / ".made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        (folder / ".made").touch()


def unpack_debian(folder: Path) -> None:
    """Unpacks the packages of arm64. apt keeps what it knows about them beside the folder, apart from the system's."""
    state = OUT / "apt"
    for part in ("state/lists/partial", "cache/archives/partial", "packages"):
        (state / part).mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": state / "state",
        "Dir::State::status": os.devnull, "Dir::Cache": state / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    run(*apt, "update")
    run(*apt, "download", *DEBIAN, cwd=state / "packages")
    for package in sorted((state / "packages").glob("*.deb")):
        run("dpkg-deb", "-x", package, folder)
    shutil.rmtree(state)
    lines = [f"CPU {name}\t: {value}" for name, value in CPU.items()]
    about = "\n".join(["BogoMIPS\t: 243.75", f"Features\t: {FEATURES}", *lines, "\n"])
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text("".join(f"processor\t: {k}\n{about}" for k in range(os.cpu_count() or 1)))
    for k in range(os.cpu_count() or 1):
        registers = folder / f"sys/devices/system/cpu/cpu{k}/regs/identification"
        registers.mkdir(parents=True)
        (registers / "midr_el1").write_text(f"{MIDR}\n")


def unpack_wheels(folder: Path) -> None:
    """Has pip unpack torch's wheel for arm64, of the release that is here, and all that it requires."""
    import torch

    platforms = [f"manylinux_2_{minor}_aarch64" for minor in GLIBCS] + ["manylinux2014_aarch64"]
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", folder, "--upgrade",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON,
        *(word for platform in platforms for word in ("--platform", platform)),
        f"torch=={torch.__version__.split('+')[0]}", *NEEDS)  # fmt: skip


def build() -> None:
    """Compiles the package, for the vectors that the emulated CPU has, with Python's headers and settings of arm64."""
    settings = OUT / "settings"
    settings.mkdir(exist_ok=True)
    name = f"_sysconfigdata__{TARGET}"
    shutil.copy2(PLACE / f"usr/lib/python{PYTHON}/{name}.py", settings)
    headers = [f"-I{PLACE / 'usr/include' / folder}" for folder in (f"python{PYTHON}", ".")]
    torch = str(PACKAGES / "torch")
    changes = {
        "CXX": " ".join([COMPILER, *headers]), "LDSHARED": f"{COMPILER} -shared", "LDCXXSHARED": f"{COMPILER} -shared",
        "PYTHONPATH": str(settings), "_PYTHON_SYSCONFIGDATA_NAME": name, "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SEQCLS_CUDA": "0", "SEQCLS_TORCH": torch, "SEQCLS_EAGER_FOR": torch,
    }  # fmt: skip
    run(sys.executable, "setup.py", "--quiet", "build", "--build-lib", LIBRARY, "build_ext", "--build-temp",
        OUT / "temp", "--isas=neon_bf16", cwd=ROOT, env=os.environ | changes)  # fmt: skip


def main() -> int:
    if why := missing():
        raise SystemExit(f"arm-full: {why}")
    OUT.mkdir(parents=True, exist_ok=True)
    if not (PACKAGES / ".made").exists() and (free := shutil.disk_usage(OUT).free) < LEAST_FREE:
        raise SystemExit(f"arm-full: {OUT}: expected {LEAST_FREE >> 20} MiB of free disk but got {free >> 20}")
    took = {}
    for what, work in (
        ("Debian's packages", lambda: once(PLACE, unpack_debian)),
        ("torch's wheels", lambda: once(PACKAGES, unpack_wheels)),
        ("compiling", build),
        ("tests", emulated_tests),
    ):
        start = time.monotonic()
        work()
        took[what] = time.monotonic() - start
        print(f"arm-full: {what}: {took[what]:.0f} s", flush=True)
    return 0


def emulated_tests() -> None:
    options = ["-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "--impl", "neon_bf16"]
    changes = {"PYTHONPATH": f"{LIBRARY}{os.pathsep}{PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
    run(*EMULATED, PLACE / f"usr/bin/python{PYTHON}", "-m", "pytest", *options, *(ROOT / name for name in TESTS),
        cwd=LIBRARY, env=kept | changes)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
