"""What setup.py decides before it compiles: about CUDA, with an nvcc that is a shell script, and about torch."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parents[2]
# Says what the real one says.
NVCC = """\
#!/bin/sh
case "$1" in
  --version) echo 'Cuda compilation tools, release {release}, V{release}.88'; exit ;;
  --dryrun) echo '#$ LIBRARIES=  "-L{here}/stubs" "-L{here}/bin/../lib"' >&2; exit ;;
esac
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


def installed_torch(folder: Path, version: str, cuda: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["from typing import Optional", f"__version__ = '{version}'", f"cuda: Optional[str] = {cuda!r}"]
    (folder / "version.py").write_text("\n".join([*lines, "hip: Optional[str] = None", ""]))
    return folder


@pytest.fixture
def project(setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py with a CUDA source of its own, no nvcc, and a torch for CUDA 13 in tmp_path."""
    installed_torch(tmp_path, "2.14.1+cu130", "13.0")
    monkeypatch.setattr(setup_module, "CUDA_SOURCES", [tmp_path / "one.cu"])
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
    assert project.cuda_toolkit(tmp_path).release == "13.1"
    monkeypatch.setenv("SEQCLS_CUDA", "1")
    assert project.cuda_toolkit(tmp_path).release == "13.1"
    monkeypatch.setenv("SEQCLS_CUDA", "0")
    assert project.cuda_toolkit(tmp_path) is None
    monkeypatch.setenv("SEQCLS_CUDA", "1")
    monkeypatch.setattr(project, "CUDA_SOURCES", [])
    assert project.cuda_toolkit(tmp_path) is None
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
    installed_torch(tmp_path, "2.14.1", built_for)
    assert project.cuda_toolkit(tmp_path) is None
    said = capsys.readouterr().err
    assert (said == "") == (built_for is None)  # nobody expects CUDA of a CPU build of torch
    assert said.count("\n") <= 1
    monkeypatch.setenv("SEQCLS_CUDA", "1")
    with pytest.raises(SystemExit, match=f"SEQCLS_CUDA=1: .*{reason}"):
        project.cuda_toolkit(tmp_path)


def test_without_a_compiler_torch_s_layers_run(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_module, "HAVE_COMPILER", False)
    assert setup_module.extensions() == []
    assert "no C++ compiler here: installing without the extension, torch's own layers" in capsys.readouterr().err


def test_other_choices_are_refused(project: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQCLS_CUDA", "yes")
    with pytest.raises(SystemExit, match="SEQCLS_CUDA: expected 0 or 1 but got yes"):
        project.cuda_toolkit(tmp_path)


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


def command(module: ModuleType, folder: Path) -> build_ext:
    """setup.py's command that builds, with objects in a folder."""
    made = module.Build(Distribution())
    made.build_temp = str(folder)
    made.ensure_finalized()
    return made


def test_an_eager_entry_for_each_torch_that_is_named(
    setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [installed_torch(tmp_path / name, version) for name, version in (("a", "2.11.0+cpu"), ("b", "2.14.1"))]
    monkeypatch.setenv("SEQCLS_EAGER_FOR", os.pathsep.join(map(str, folders)))
    found = setup_module.eager_entries()
    assert [entry.name for entry in found] == ["seqcls_fast._eager_2_11_0", "seqcls_fast._eager_2_14_1"]
    for entry, folder in zip(found, folders, strict=True):
        assert entry.library_dirs == [str(folder / "lib")]
        assert not entry.optional
        for _, _, words in command(setup_module, tmp_path).eager_parts(entry):
            assert f"-I{folder / 'include'}" in words
            assert f"-DSF_EAGER_INIT=PyInit_{entry.name.split('.')[1]}" in words


def test_an_eager_entry_for_the_torch_at_hand_or_for_none(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEQCLS_EAGER_FOR", raising=False)
    release = torch.__version__.split("+")[0].replace(".", "_")
    (entry,) = setup_module.eager_entries()
    assert (entry.name, entry.optional) == (f"seqcls_fast._eager_{release}", True)
    for none in ("0", ""):
        monkeypatch.setenv("SEQCLS_EAGER_FOR", none)
        assert setup_module.eager_entries() == []


@pytest.mark.parametrize("text", [None, "", "__version__ = 'unknown'"])
def test_a_folder_without_torch(
    text: str | None, setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "version.py").write_text(text)
    monkeypatch.setenv("SEQCLS_EAGER_FOR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^SEQCLS_EAGER_FOR: expected folders of installed torch packages but got "):
        setup_module.eager_entries()


def test_the_torch_to_build_with(setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEQCLS_TORCH", raising=False)
    assert setup_module.torch_folder() == Path(torch.__file__).resolve().parent
    assert setup_module.said_by(setup_module.torch_folder(), "cuda") == torch.version.cuda
    monkeypatch.setenv("SEQCLS_TORCH", str(installed_torch(tmp_path / "torch", "2.12.0", "13.0")))
    assert setup_module.torch_folder() == tmp_path / "torch"
    assert setup_module.said_by(tmp_path / "torch", "cuda") == "13.0"
    monkeypatch.setenv("SEQCLS_TORCH", str(tmp_path))
    with pytest.raises(SystemExit, match="SEQCLS_TORCH: expected the folder of an installed torch package but got /"):
        setup_module.torch_folder()
    monkeypatch.delenv("SEQCLS_TORCH")
    monkeypatch.setattr(setup_module, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="expected torch in this Python, or its folder in SEQCLS_TORCH"):
        setup_module.torch_folder()


def test_other_pythons_share_all_objects_but_those_that_include_its_headers(
    setup_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQCLS_TORCH", str(installed_torch(tmp_path / "torch", "2.12.0")))
    monkeypatch.setenv("SEQCLS_EAGER_FOR", str(tmp_path / "torch"))

    def parts(tag: str) -> dict[Path, tuple[Path, list[str]]]:
        monkeypatch.setattr(sys.implementation, "cache_tag", tag)
        monkeypatch.setattr(setup_module.sysconfig, "get_path", lambda name: f"/opt/{tag}")
        builder, isas = command(setup_module, tmp_path / "objects"), ["base", "avx2"]
        found = [part for entry in setup_module.extensions() for part in builder.parts(entry, isas)]
        return {built: (source, words) for built, source, words in found}

    one, two = parts("cpython-310"), parts("cpython-313")
    shared = {built for built in one if "cpython-310" not in str(built)}
    assert {built: one[built] for built in shared} == {built: two[built] for built in two if built in shared}
    assert [words for built in shared for words in one[built][1] if "/opt/cpython" in words] == []
    own = {str(one[built][0].relative_to(ROOT)): one[built][1] for built in set(one) - shared}
    eager = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc/eager").glob("*.cpp")}
    assert set(own) == {"csrc/bindings/introspection.cpp", "csrc/runtime/python.cpp"} | eager
    assert all("-I/opt/cpython-310" in words for words in own.values())
    assert {built.stem for built in shared} >= {"kernels_base", "kernels_avx2", "run", "ops", "older_glibc", "model"}
