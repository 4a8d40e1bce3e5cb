"""What the pages show: fenced blocks, inline commands, links and headings of README.md and docs/.

A block may be preceded by one comment for the tests:

    <!-- test: skip reason="asks a server" -->        its commands are parsed, and not run
    <!-- test: exit 1 reason="the check finds something" -->    its last command ends with this code
    <!-- test: with small=toy reason="is built already" -->    runs with these words replaced

Comments are not shown on the site or on a code host.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = frozenset({"sh", "python", "sql", "text", "toml", "csv", "json", "mermaid"})

_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- test: (.*?) -->\n\Z")
_INLINE = re.compile(r"`((?:vsr1|make) [^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Directive:
    """What the tests do with a block: run it (`kind` empty), skip it, expect an exit code of its last command, or
    run it with other words."""

    kind: str = ""
    reason: str = ""
    code: int = 0
    words: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is the number of its first line in `page` (a path relative to the repository)."""

    page: str
    line: int
    language: str
    text: str
    directive: Directive

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README.md, then the pages in the order of the site's navigation."""
    return [ROOT / "README.md", *(ROOT / "docs" / name for name in navigation())]


def navigation() -> list[str]:
    """The site's pages, as mkdocs.yml lists them."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = yaml.load(text, Loader=_IgnoringTags)["nav"]
    return list(_leaves(listed))


def _leaves(entries: list[dict[str, Any]]) -> Iterator[str]:
    for entry in entries:
        for page in entry.values():
            if isinstance(page, str):
                yield page
            else:
                yield from _leaves(page)


class _IgnoringTags(yaml.SafeLoader):
    """mkdocs.yml names Python functions (`!!python/name:`), which need not be importable here."""


_IgnoringTags.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda _loader, suffix, _node: suffix)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found = []
    for match in _FENCE.finditer(text):
        comment = _COMMENT.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        directive = parse_directive(comment[1], f"{name}:{line}") if comment else Directive()
        found.append(Block(name, line, match[1], match[2], directive))
    return found


def parse_directive(text: str, place: str) -> Directive:
    """ValueError for an unknown directive, and for one without a reason."""
    kind, *rest = shlex.split(text)
    reason = next((word.removeprefix("reason=") for word in rest if word.startswith("reason=")), "")
    if kind not in ("skip", "exit", "with") or not reason:
        raise ValueError(f'{place}: {text!r}; use skip, exit CODE or with WORD=OTHER, and reason="..."')
    code = int(rest[0]) if kind == "exit" else 0
    pairs = [word.split("=", 1) for word in rest if not word.startswith("reason=")] if kind == "with" else []
    return Directive(kind, reason, code, tuple((old, new) for old, new in pairs))


def commands(block: Block) -> list[list[str]]:
    """The commands of a `sh` block as words. Comments are dropped, continued lines joined, `~` is left as it is."""
    joined = block.text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def inline_commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each command in backticks inside the text: `vsr1 ...` and `make ...`."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    for match in _INLINE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, shlex.split(match[1])


def links(page: Path) -> list[str]:
    """Targets of links and pictures outside fenced blocks."""
    return _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and the site make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}
