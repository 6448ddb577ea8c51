"""What setup.py decides about CUDA before it compiles anything, with an nvcc that is a shell script."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
# Says what the real one says, compiles by writing its arguments into the object, and fails where the source says so.
NVCC = """\
#!/bin/sh
case "$1" in
  --version) echo 'Cuda compilation tools, release {release}, V{release}.88'; exit ;;
  --dryrun) echo '#$ LIBRARIES=  "-L{here}/stubs" "-L{here}/bin/../lib"' >&2; exit ;;
esac
for word; do
  case "$before" in -o) output=$word ;; -c) source=$word ;; esac
  before=$word
done
grep -q broken "$source" && echo half > "$output" && exit 2
echo "$@" > "$output"
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the script that stands for nvcc needs a shell")


@pytest.fixture(scope="module")
def setup_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seqcls_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py over two sources of its own, no nvcc, and a torch for CUDA 13."""
    for name in ("one.cu", "two.cu", "shared.cuh"):
        file = tmp_path / "csrc/cuda" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    monkeypatch.setattr(setup_module, "ROOT", tmp_path)
    monkeypatch.setattr(setup_module, "CUDA_SOURCES", sorted(tmp_path.rglob("*.cu")))
    monkeypatch.setattr(setup_module, "CUDA_HEADERS", [tmp_path / "csrc/cuda/shared.cuh"])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("CUDA_HOME", "CUDA_PATH", "SEQCLS_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if setup_module.find_toolkit():
        pytest.skip("an nvcc lies in /usr/bin")
    return setup_module


def install(folder: Path, release: str = "13.1") -> Path:
    nvcc = folder / "bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(release=release, here=folder))
    nvcc.chmod(0o755)
    return folder


def test_toolkit_of_cuda_home_comes_first(project: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'path', '13.4')}/bin:/usr/bin:/bin")
    found = project.find_toolkit()
    assert (found.nvcc, found.release) == (f"{tmp_path}/path/bin/nvcc", "13.4")
    assert found.library_dirs == (f"{tmp_path}/path/stubs", f"{tmp_path}/path/lib")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))
    assert project.find_toolkit() == found
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "home")))
    assert project.find_toolkit().release == "13.1"


def test_cuda_is_built_where_nvcc_and_torch_are_for_it(
    project: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "home")))
    assert project.cuda_toolkit().release == "13.1"
    monkeypatch.setenv("SEQCLS_CUDA", "1")
    assert project.cuda_toolkit().release == "13.1"
    monkeypatch.setenv("SEQCLS_CUDA", "0")
    assert project.cuda_toolkit() is None
    monkeypatch.setenv("SEQCLS_CUDA", "1")
    monkeypatch.setattr(project, "CUDA_SOURCES", [])
    assert project.cuda_toolkit() is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("nvcc", "built_for", "reason"),
    [
        (None, "13.0", "no nvcc in CUDA_HOME or on the PATH"),
        ("12.9", "13.0", r"nvcc is of CUDA 12.9 but torch .* is built for CUDA 13.0"),
        ("12.6", "12.8", "nvcc is of CUDA 12.6 but the kernels need 12.8"),
        ("13.1", None, "is built without CUDA"),
    ],
)
def test_what_is_missing_is_said(
    project: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nvcc: str | None,
    built_for: str | None,
    reason: str,
) -> None:
    if nvcc:
        monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "home", nvcc)))
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert project.cuda_toolkit() is None
    said = capsys.readouterr().err
    assert (said == "") == (built_for is None)  # nobody expects CUDA of a CPU build of torch
    assert said.count("\n") <= 1
    monkeypatch.setenv("SEQCLS_CUDA", "1")
    with pytest.raises(SystemExit, match=f"SEQCLS_CUDA=1: .*{reason}"):
        project.cuda_toolkit()


def test_without_a_compiler_torch_s_layers_run(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_module, "HAVE_COMPILER", False)
    assert setup_module.extensions() == []
    assert "no C++ compiler here: installing without the extension, torch's own layers" in capsys.readouterr().err


def test_other_choices_are_refused(project: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQCLS_CUDA", "yes")
    with pytest.raises(SystemExit, match="SEQCLS_CUDA: expected 0 or 1 but got yes"):
        project.cuda_toolkit()


@pytest.mark.parametrize(
    ("wanted", "archs"),
    [
        ("", ["80", "90a"]),
        ("9.0", ["90a"]),
        ("9.0a", ["90a"]),
        ("8.0;8.6 9.0+PTX, 8.6", ["80", "86", "90a"]),
        ("10.0a;12.0", ["100a", "120"]),
        ("7.5 8.9", ["89"]),
    ],
)
def test_architectures(
    project: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wanted: str,
    archs: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert project.architectures() == archs
    assert ("7.5 is left out" in capsys.readouterr().err) == ("7.5" in wanted)
    assert f'-DSF_CUDA_ARCHS="{",".join(archs)}"' in project.nvcc_flags(archs)
    targets = [flag for flag in project.nvcc_flags(archs) if flag.startswith("-gencode")]
    assert targets == [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]


@pytest.mark.parametrize(
    ("wanted", "message"), [("Hopper", "numbers such as 8.0;9.0 but got Hopper"), ("7.5", "8.0 or above but got 7.5")]
)
def test_other_architectures_are_refused(project: ModuleType, wanted: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        project.architectures(wanted)


def test_objects_are_kept_until_something_is_newer(
    project: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "home")))
    toolkit = project.find_toolkit()
    one, two = project.CUDA_SOURCES
    script = tmp_path / "setup.py"
    script.write_text("")
    monkeypatch.setattr(project, "__file__", str(script))

    def set_age(path: Path, seconds: int) -> None:
        os.utime(path, (time.time() - seconds,) * 2)

    def compiled_anew(touched: Path | None) -> bool:
        for path in (one, two, *project.CUDA_HEADERS, script):
            set_age(path, 100)
        built = Path(project.compile_cuda(toolkit, ["80"], one, tmp_path / "objects"))
        assert built == tmp_path / "objects/one.o"
        set_age(built, 50)
        if touched:
            set_age(touched, 0)
        before = built.stat().st_mtime
        assert project.compile_cuda(toolkit, ["80"], one, tmp_path / "objects") == str(built)
        return built.stat().st_mtime != before

    assert not compiled_anew(None)
    assert compiled_anew(one)
    assert not compiled_anew(two)
    assert compiled_anew(project.CUDA_HEADERS[0])
    assert compiled_anew(script)
    words = (tmp_path / "objects/one.o").read_text().split()
    assert words[-4:-1] == ["-c", "csrc/cuda/one.cu", "-o"]
    assert "-gencode=arch=compute_80,code=sm_80" in words


def test_a_failed_compilation_leaves_no_object(
    project: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(install(tmp_path / "home")))
    project.CUDA_SOURCES[0].write_text("broken")
    with pytest.raises(project.CompileError, match=r"could not compile csrc/cuda/one\.cu"):
        project.compile_cuda(project.find_toolkit(), ["80"], project.CUDA_SOURCES[0], tmp_path / "objects")
    assert not (tmp_path / "objects/one.o").exists()


def installed_torch(folder: Path, version: str) -> str:
    folder.mkdir(parents=True)
    (folder / "version.py").write_text(f"__all__ = []\n__version__ = '{version}'\ndebug = False\n")
    return str(folder)


def test_an_eager_entry_for_each_torch_that_is_named(
    setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [installed_torch(tmp_path / name, version) for name, version in (("a", "2.11.0+cpu"), ("b", "2.14.1"))]
    monkeypatch.setenv("SEQCLS_EAGER_FOR", os.pathsep.join(folders))
    found = setup_module.eager_entries([])
    assert [entry.name for entry in found] == ["seqcls_fast._eager_2_11_0", "seqcls_fast._eager_2_14_1"]
    for entry, folder in zip(found, folders, strict=True):
        assert entry.include_dirs[0] == os.path.join(folder, "include")
        assert entry.library_dirs == [os.path.join(folder, "lib")]
        assert entry.define_macros == [("SF_EAGER_INIT", f"PyInit_{entry.name.split('.')[1]}")]


def test_an_eager_entry_for_the_torch_at_hand_or_for_none(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEQCLS_EAGER_FOR", raising=False)
    release = torch.__version__.split("+")[0].replace(".", "_")
    assert [entry.name for entry in setup_module.eager_entries([])] == [f"seqcls_fast._eager_{release}"]
    monkeypatch.setenv("SEQCLS_EAGER_FOR", "0")
    assert setup_module.eager_entries([]) == []


@pytest.mark.parametrize("text", [None, "", "__version__ = 'unknown'"])
def test_a_folder_without_torch(
    text: str | None, setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "version.py").write_text(text)
    monkeypatch.setenv("SEQCLS_EAGER_FOR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^SEQCLS_EAGER_FOR: expected folders of installed torch packages but got "):
        setup_module.eager_entries([])
