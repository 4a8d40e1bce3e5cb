"""Foreign text in Markdown, HTML and on a terminal: it is shown, and it does nothing."""

from __future__ import annotations

import html
import re

import pytest
from markdown_it import MarkdownIt

from pipelines.show import plain
from tests.hostile_texts import hostile_texts
from vsr1_core.evaluation.markdown import code, escaped, markdown_table, text_cell
from vsr1_core.rows.texts import check_text, half_character, visible

MARKUP = [
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table>", "<!-- x", "&lt;b&gt;"),
    *("[x](javascript:alert(1))", "![x](http://e.example/p.png)", "\\[x](y)", "[x]: http://e.example", "www.e.example"),
    *(
        "a | b |\n| --- |",
        "`code`",
        "``` \n x\n```",
        "**bold** and *it* and _it_",
        "~~x~~",
        "# title",
        "- item",
        "+ item",
    ),
]
_EXPECTED_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "p"}


def tags(rendered: str) -> set[str]:
    return set(re.findall(r"</?([a-z0-9]+)", rendered))


@pytest.mark.parametrize("text", [*MARKUP, *hostile_texts(60)])
def test_foreign_text_renders_as_itself_and_as_nothing_else(text: str) -> None:
    cell = text_cell(text, 1000)
    table = "\n".join(markdown_table(["id", "text"], [["q1", cell]]))
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(table)
    assert tags(rendered) <= _EXPECTED_TAGS
    [shown] = re.findall(r"<td[^>]*>(.*)</td>\n</tr>", rendered)
    assert html.unescape(shown).strip() == visible(" ".join(text.split())).strip()
    assert "http://" not in cell
    assert "www." not in cell


def test_a_cell_is_one_line_and_cut_before_it_is_escaped() -> None:
    assert text_cell("a\nb\tc", 10) == "a b c"
    assert text_cell("<" * 30, 10) == "&#60;" * 9 + "…"
    assert text_cell(None, 10) == ""


def test_ordinary_words_stay_readable() -> None:
    for text in ("a person opens a fridge", "video_12/clip-3.mp4", "not_matched, 3.5 s (100 %)", "Hund läuft: ja!"):
        assert escaped(text) == text


def test_ids_are_code_where_a_code_span_can_hold_them() -> None:
    assert code("clips/v_1.mp4") == "`clips/v_1.mp4`"
    assert code("a`b|c<i>") == "a&#96;b&#124;c&#60;i&#62;"


def test_characters_that_a_screen_obeys_are_spelled() -> None:
    assert visible("a\0b\x1b[31m\u202ec\u2066\u2028") == "a\\u0000b\\u001b[31m\\u202ec\\u2066\\u2028"
    assert visible("a\tb\n\u200d é 漢 🙂") == "a\tb\n\u200d é 漢 🙂"
    assert visible("\udce9.mp4") == "\\udce9.mp4"


def test_every_such_character_is_spelled_wherever_it_stands() -> None:
    obeyed = [0, 7, 0xB, 0x1F, 0x7F, 0x9F, 0x61C, 0x200E, 0x2029, 0x202E, 0x2069, 0xFDD0, 0xFDEF, 0xD800, 0xDFFF]
    for number in obeyed:
        assert visible(f"a{chr(number)}") == f"a\\u{number:04x}"
    assert plain("[red]\x1b[2J[/red]") == "\\[red]\\u001b[2J\\[/red]"


def test_half_a_character_is_named_with_its_place() -> None:
    assert check_text("é 🙂") == "é 🙂"
    assert half_character("é 🙂") is None
    with pytest.raises(ValueError, match=r"character 3 of the text is U\+D800"):
        check_text("a \ud800 x")
