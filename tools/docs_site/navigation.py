"""What the site adds to the pages while Sphinx reads them: the navigation, docstrings, and the help of the commands.

A page marks the place of docstrings with a comment, which a code host does not show:
<!-- docstrings: seqcls_fast.GRU seqcls_fast.LSTM -->
The output of `seqcls-fast COMMAND --help` takes the place of <!-- help: COMMAND -->.
"""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "README.md"
DOCSTRINGS = re.compile(r"<!-- docstrings: (.*?) -->", re.DOTALL)
HELP = re.compile(r"<!-- help: (\S+) -->")
# A picture of GitHub that says whether a workflow passes, with its link: both are beside the code there, and nowhere
# else. It has a line of its own.
BADGE = re.compile(
    r"^\[!\[\w+\]\(\.\./\.\./actions/workflows/([\w.]+)/badge\.svg\)\]\(\.\./\.\./actions/workflows/\1\)\n", re.M
)
LINK = re.compile(r"\]\(([^)#\s:]+)\.md\)")
# Pages that a section of the index has without a row of their own: those of generated or growing folders.
WHOLE_FOLDERS = {"Tutorials": "docs/tutorials/*.md", "Performance and quality": "docs/machines/*.md"}
ABOUT = ["docs/README", "CONTRIBUTING", "SECURITY", "CHANGELOG", "CODE_OF_CONDUCT"]


def sections(index: str) -> dict[str, list[str]]:
    """For each heading of docs/README.md the documents that the first cells of its table link to."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
        found[heading.strip()] = [f"docs/{name}" for row in rows for name in LINK.findall(row)]
    return found


def toctrees(index: str) -> str:
    trees = []
    for caption, pages in sections(index).items():
        further = sorted(ROOT.glob(WHOLE_FOLDERS[caption])) if caption in WHOLE_FOLDERS else []
        names = [page.relative_to(ROOT).with_suffix("").as_posix() for page in further]
        trees.append(toctree(caption, pages + [name for name in names if name not in pages]))
    return "\n\n".join([*trees, toctree("About", ABOUT)])


def toctree(caption: str, pages: list[str]) -> str:
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```"


def docstrings(names: str) -> str:
    lines = []
    for name in names.split():
        short = name.rpartition(".")[2]
        if short[0].isupper():
            members = members_of(name)
            lines += [f".. autoclass:: {name}", *([f"   :members: {', '.join(members)}"] if members else []), ""]
        else:
            lines += [f".. autofunction:: {name}", ""]
    return "```{eval-rst}\n" + "\n".join(lines) + "```"


def members_of(name: str) -> list[str]:
    """The public names of a class that our classes define and torch's do not, those of base classes first."""
    module, _, short = name.rpartition(".")
    bases = getattr(importlib.import_module(module), short).__mro__
    ours = [base for base in reversed(bases) if base.__module__.startswith("seqcls_fast.")]
    of_torch = {member for base in bases if base.__module__.startswith("torch.") for member in dir(base)}
    members = dict.fromkeys(member for base in ours for member in vars(base) if not member.startswith("_"))
    return [member for member in members if member not in of_torch and not member.endswith("_request")]


def help_of(command: str) -> str:
    call = [sys.executable, "-m", "seqcls_fast", command, "--help"]
    shown = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return f"```text\n{shown}```"


def on_source_read(app: object, name: str, source: list[str]) -> None:
    text = DOCSTRINGS.sub(lambda found: docstrings(found[1]), source[0])
    text = HELP.sub(lambda found: help_of(found[1]), text)
    if name == "README":
        text = BADGE.sub("", text) + "\n\n" + toctrees(INDEX.read_text(encoding="utf-8"))
    source[0] = text


def say_dead_links(record: logging.LogRecord) -> bool:
    """Puts MyST's warning about a link into a sentence. Several handlers show it, and each calls this."""
    if getattr(record, "subtype", "") == "xref_missing" and not record.getMessage().startswith("expected"):
        names = [name for name in re.findall("'(.*?)'", record.getMessage()) if name != "myst"]
        record.msg, record.args = f"expected a link to a page or a heading of one, but got {'#'.join(names)}", ()
    return True
