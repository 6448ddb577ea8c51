"""GitHub's workflows run what continuous integration runs here, by the same targets of the Makefile."""

from __future__ import annotations

import re
from pathlib import Path

import seqcls_fast

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
# test is a job of its own, docs a workflow of its own, sdist a job of release.yml; cuda needs nvcc
IN_CI_ALONE = {"setup", "test", "docs", "sdist", "cuda-setup", "cuda-check", "cuda-build"}
# What .ci/run cannot run: containers or other systems, and torch's nightly build. docs/installing.md lists it.
NEVER_RUN = {"make cibuildwheel PYTHON=python", 'make test TORCH="--pre torch --index-url $TORCH_NIGHTLY"'}


def stages_of_check() -> set[str]:
    found = re.search(r"^check:.*\n\t@for stage in ((?:.*\\\n)*.*?); do", MAKEFILE, re.MULTILINE)
    assert found
    return set(found[1].replace("\\\n", " ").split())


def test_every_stage_is_a_job() -> None:
    text = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    listed = re.search(r"stage:\n((?: +- [a-z-]+\n)+)", text)
    assert listed
    assert set(re.findall(r"- ([a-z-]+)", listed[1])) == stages_of_check() - IN_CI_ALONE
    assert "- run: make test\n" in text
    assert "- run: make docs\n" in (ROOT / ".github" / "workflows" / "docs.yml").read_text()


def test_what_workflows_run_are_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert len(WORKFLOWS) > 1
    for file in WORKFLOWS:
        commands = re.findall(r"run: (.*)", file.read_text())
        assert commands, file
        for command in commands:
            program, target = command.split()[:2]
            assert program == "make"
            assert target in targets | {'"$STAGE"'}, command


def test_what_workflows_run_is_run_here_or_listed() -> None:
    commands = {command for file in WORKFLOWS for command in re.findall(r"run: (.*)", file.read_text())}
    here = {f"make {stage}" for stage in stages_of_check()} | {'make "$STAGE"'}  # its stages: test_every_stage_is_a_job
    assert commands - here == NEVER_RUN
    text = (ROOT / "docs/installing.md").read_text()
    never = text[text.index("never run") :]
    assert all(f"`{word}`" in never for word in ("make cibuildwheel", *(f"{f.name}" for f in WORKFLOWS)))


def test_actions_are_pinned_to_commits() -> None:
    for file in WORKFLOWS:
        for action in re.findall(r"uses: (.*)", file.read_text()):
            if action.startswith("$/"):  # a workflow of this repository
                assert (ROOT / action[2:]).exists()
                continue
            assert re.fullmatch(r"\S+@[0-9a-f]{40} # v[0-9.]+", action), action


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {seqcls_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
