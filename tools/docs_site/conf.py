"""Sphinx's settings: the site is made of the pages as they are in the repository, which a code host shows too.

So no page holds Sphinx's own syntax. The navigation is read from docs/README.md, and a comment in a page of
docs/reference says where its docstrings go. `make docs` builds, with every warning as an error. Sphinx was chosen since
it is maintained, unlike MkDocs 1 and its theme Material, and since the docstrings have the form that it reads.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import navigation  # noqa: E402
from docutils.nodes import SkipNode  # noqa: E402
from latex2mathml.converter import convert as to_mathml  # noqa: E402

import seqcls_fast  # noqa: E402

project = "seqcls_fast"
author = project_copyright = "The seqcls_fast authors"
release = version = seqcls_fast.__version__

FRONT = ["README", "CONTRIBUTING", "CODE_OF_CONDUCT", "SECURITY", "CHANGELOG"]
root_doc = "README"
include_patterns = [*(f"{name}.md" for name in FRONT), "docs/**.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
nitpicky = False  # torch's names are no links here: that would take a network while building
suppress_warnings = ["myst.header"]  # a heading that skips a level

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
napoleon_use_param = False  # arguments that share a line of the docstring stay together
napoleon_custom_sections = [("Inputs", "params_style"), ("Outputs", "params_style")]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
copybutton_prompt_text = ">>> "

html_theme = "furo"
html_title = "seqcls_fast"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"  # browsers show it without a script; MathJax would be fetched from elsewhere


def show_formula(translator: Any, node: Any) -> None:
    display = "block" if node.tagname == "math_block" else "inline"
    text = re.sub(r"\\text\{.*?\}", lambda found: found[0].replace(r"\_", "_"), node.astext())
    formula = to_mathml(text, display=display)
    translator.body.append(f"<div>{formula}</div>" if display == "block" else formula)
    raise SkipNode


def copy_front_page(app: Any, failure: Exception | None) -> None:
    """README.html is the front page of the repository and of the site, where browsers ask for index.html."""
    if failure is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Any) -> None:
    for handler in logging.getLogger("sphinx").handlers:
        handler.filters.insert(0, navigation.say_dead_links)  # type: ignore[arg-type]
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
    app.connect("source-read", navigation.on_source_read)
    app.connect("build-finished", copy_front_page)
