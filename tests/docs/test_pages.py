"""The pages say nothing stale: every command, variable, link and anchor in them exists. Runs none of the commands."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import vsr1_core
from tests.docs.known_commands import check, check_variable
from tests.docs.pages import (
    LANGUAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    inline_commands,
    links,
    navigation,
    pages,
    parse_directive,
)

BLOCKS = [block for page in pages() for block in blocks(page)]
MAX_README_LINES = 200


def by_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=lambda b: b.place)
def test_every_command_shown_exists(block: Block) -> None:
    for words in commands(block):
        check(words)


@pytest.mark.parametrize("page", pages(), ids=by_name)
def test_every_command_named_in_the_text_exists(page: Path) -> None:
    for line, words in inline_commands(page):
        try:
            check(words, whole=False)
        except ValueError as error:
            pytest.fail(f"{by_name(page)}:{line}: {error}")


@pytest.mark.parametrize("path", ["Makefile", ".ci/run"])
def test_every_command_of_the_scripts_exists(path: str) -> None:
    found = re.findall(r"(?:\$\(BIN\)|\.venv/bin)/vsr1 ([^\n]*)", (ROOT / path).read_text(encoding="utf-8"))
    assert found
    for arguments in found:
        check(["vsr1", *(word for word in arguments.split() if not word.startswith("$("))])


@pytest.mark.parametrize(
    "command",
    [
        "vsr1 frobnicate",
        "vsr1 build --no-such-option",
        "vsr1 push sft_checkpoint",
        "make nothing",
        "frobnicate",
        "python -m vsr1_core.nothing",
        "pip install -e .[nothing]",
        "export VSR1_NOTHING=1",
        "VSR1_NOTHING=1 make demo",
    ],
)
def test_a_stale_command_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        check(command.split())


@pytest.mark.parametrize("mentioned", ["vsr1 frobnicate", "vsr1 dataset frobnicate", "vsr1 plan --no-such-option"])
def test_a_stale_mention_is_refused(mentioned: str) -> None:
    with pytest.raises(ValueError, match="has no"):
        check(mentioned.split(), whole=False)


@pytest.mark.parametrize("page", pages(), ids=by_name)
def test_every_variable_is_read_by_the_code(page: Path) -> None:
    for name in set(re.findall(r"VSR1_[A-Z_]*[A-Z]\b(?!_?\*)", page.read_text(encoding="utf-8"))):
        check_variable(name)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.place)
def test_a_block_says_its_language_and_commands_stand_where_they_are_run(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.place}: give one of {', '.join(sorted(LANGUAGES))}"
    if block.language == "text":
        assert not re.search(r"^(?:\$ )?(?:vsr1|make) ", block.text, re.MULTILINE), f"{block.place}: use a sh block"
    if block.language == "sql":
        assert block.page == "docs/queries.md", "the queries of that page are run; put this one there"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.place)
def test_what_a_python_block_imports_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == [], block.place


@pytest.mark.parametrize("text", ["skip", "skip because=x", "exit 1", 'forget reason="no"'])
def test_a_block_is_skipped_only_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:3"):
        parse_directive(text, "page.md:3")


@pytest.mark.parametrize("page", pages(), ids=by_name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    """`mkdocs build --strict` says the same of the site; this also covers the README and needs no mkdocs."""
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{by_name(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{by_name(page)}: {link}"


def test_every_page_is_in_the_navigation() -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert written == set(navigation())


def test_the_api_page_has_every_name_of_the_face() -> None:
    listed = re.findall(r"^::: vsr1_core\.\S*?(\w+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*vsr1_core.__all__} - {"__version__"} <= set(listed)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES
