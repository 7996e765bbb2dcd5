"""README and docs: links, checksums and the notebook. `make docs` also checks the links between the pages."""

import json
import re
from pathlib import Path

import pytest

from alexnet.config import load_config
from alexnet.pretrained.caffe.caffemodel import PUBLISHED
from alexnet.pretrained.upstream import PUBLISHED_SHA1
from multigpu.rules.base import check_rule

TOP = Path(__file__).parents[1]
PAGES = sorted([*TOP.glob("*.md"), *(TOP / "docs").glob("*.md")])
LIMIT = 200_000                                  # bytes of the notebook, which is part of each clone


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_has_a_target(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    files = [link for link in links if not re.match(r"https?:", link)]
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^([a-z_/]+)$", (TOP / "docs" / "index.md").read_text("utf-8"), re.MULTILINE)
    pages = [page.stem for page in (TOP / "docs").iterdir() if page.suffix in (".md", ".ipynb")]
    assert sorted(set(pages) - {"index"}) == sorted(set(listed) - {"api/index"})


def test_downloads_list_every_published_checksum():
    page = (TOP / "docs" / "downloads.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` .*SHA-1 `([0-9a-f]{40})` \|$", page, re.MULTILINE))
    known = {name: sha1 for sha1, name in PUBLISHED.items()} | {"parameters_releasing.zip": PUBLISHED_SHA1}
    assert known.items() <= rows.items()


def test_tests_of_the_security_page_exist():
    named = re.findall(r"`(tests/[^`]*)`", (TOP / "SECURITY.md").read_text("utf-8"))
    assert named and [path for path in named if not (TOP / path).exists()] == []


def test_notebook_is_executed_small_and_names_no_folder_of_its_machine():
    path = TOP / "docs" / "notebook.ipynb"
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert path.stat().st_size < LIMIT
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    printed = json.dumps([cell["outputs"] for cell in cells])
    assert "Traceback" not in printed and "/tmp/" not in printed and "/home/" not in printed


def test_commands_for_slurm_have_valid_settings():
    """A shell variable stands for a value, or for a setting that is absent."""
    text = re.sub(r" \$start\b", "", (TOP / "docs" / "slurm.md").read_text("utf-8"))
    commands = re.findall(r"^.*mpi4py train\.py (.*?)(?: &)?$", text, re.MULTILINE)
    configs = [load_config(command.split()) for command in commands]
    assert {config.rule for config in configs} == {"bsp", "easgd", "asgd", "gosgd"}
    for config in configs:
        check_rule(config)


def test_settings_of_the_choosing_page_are_valid():
    settings = re.findall(r"`(rule=[^`]*)`", (TOP / "docs" / "choosing.md").read_text("utf-8"))
    configs = [load_config(each.split()) for each in settings]
    assert {config.rule for config in configs} == {"bsp", "slowmo", "easgd", "asgd", "gosgd"}
    for config in configs:
        check_rule(config)


def test_readme_is_short_and_keeps_its_two_commands():
    text = (TOP / "README.md").read_text("utf-8")
    assert len(text.split()) < 1500
    assert re.search(r"^make  .*\nmake test  ", text, re.MULTILINE)
