"""Configuration of Sphinx, which builds the documentation: `make docs`."""

import importlib
import re

import alexnet
from alexnet.native.pytensor_flags import set_pytensor_flags

set_pytensor_flags()                             # before autodoc imports PyTensor, which would search for compilers

project = "AlexNet on PyTensor"
author = "the authors of this port"
release = alexnet.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
myst_heading_anchors = 3                         # levels of headings that links can refer to
nb_execution_mode = "off"                        # `make notebook` executes it
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports = ["pycuda", "mpi4py", "nccl"]              # optional, and absent on most machines
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False               # the docstrings of PyTensor describe PyTensor
napoleon_use_ivar = True                         # otherwise attributes of a docstring and of the class are two entries
suppress_warnings = ["ref.python"]               # a name in prose that several classes have; no link is made

of_properties: dict[str, list[str]] = {}         # name -> lines of the docstring before napoleon changes it
SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:")


def as_markup(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText: prose and sections as they are, formulas and tables as literal blocks."""
    made: list[str] = []
    for paragraph in paragraphs(lines):
        if paragraph[0].strip() in SECTIONS:
            made += [escaped(line) for line in paragraph]
        elif any(line.startswith(" ") or re.search(r"\S  +\S", line) for line in paragraph):
            made += ["::", "", *(f"    {line}" for line in paragraph)]
        else:
            made += [escaped(line) for line in paragraph]
        made.append("")
    return made


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Split a docstring at blank lines; a blank line within a section does not end it."""
    found: list[list[str]] = []
    fresh = True
    for line in lines:
        if not line.strip():
            fresh = True
            continue
        inside = found and found[-1][0].strip() in SECTIONS and line.startswith(" ")
        if fresh and not inside:
            found.append([])
        found[-1].append(line)
        fresh = False
    return found


def escaped(text: str) -> str:
    """Return text with code between ` as literal text, and without characters that reStructuredText interprets."""
    parts = text.split("`")
    return "``".join(part if n % 2 else re.sub(r"([*|\\])|_(?=\W|$)", r"\\\g<0>", part) for n, part in enumerate(parts))


def process_docstring(app, what, name, thing, options, lines):
    """Replace the lines of a docstring; see as_markup."""
    lines[:] = as_markup(lines)
    of_properties[name] = list(lines)


def restore_property(app, what, name, thing, options, lines):
    """Undo napoleon's change of a property, where it takes the words before a colon for a type."""
    if what in ("property", "attribute", "data"):
        lines[:] = of_properties[name]


def setup(app):
    """Called by Sphinx."""
    # before autodoc, which sets TYPE_CHECKING, under which PyTensor's imports are circular
    importlib.import_module("pytensor")
    app.connect("autodoc-process-docstring", process_docstring, priority=100)        # before napoleon
    app.connect("autodoc-process-docstring", restore_property, priority=900)         # after it
