"""The table of `make bench`: its form, what is met, and a row for whatever breaks."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests import waiting
from tests.benchmarks import __main__ as bench
from tests.benchmarks.measuring import line, not_measured, scaled
from tests.benchmarks.rows import KEPT_IN, SCALE, Row, about, kept, markdown, name_of

SEARCH = Row("search | ranks", "plain FAISS", "10 ms", "12 ms", 1.2, "<= 1.5x")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(KEPT_IN, str(tmp_path / "rows.jsonl"))
    return tmp_path / "rows.jsonl"


def test_the_table_is_markdown_with_a_line_per_row() -> None:
    rows = [
        SEARCH,
        Row("a tick", "the first", "4 s", "0.21 s", 0.0525, "at most 0.2 s", judged=0.21),
        Row("room", ours="3"),
    ]
    assert markdown(rows, "Commit abc.").splitlines() == [
        "Commit abc.",
        "",
        "| what | against | baseline | ours | ratio | wanted | met |",
        "|---|---|---|---|---|---|---|",
        "| search \\| ranks | plain FAISS | 10 ms | 12 ms | 1.20 | at most 1.5 | yes |",
        "| a tick | the first | 4 s | 0.21 s | 0.052 | at most 0.2 s | **no** |",
        "| room | - | - | 3 | - | - | - |",
    ]


@pytest.mark.parametrize(
    ("ratio", "wanted", "met"),
    [
        (1.3, "at most 1.3", "yes"),
        (1.31, "at most 1.3", "**no**"),
        (10.0, "at least 10", "yes"),
        (9.9, ">= 10x", "**no**"),
        (9.9, "", ""),
        (None, "at least 10", ""),
        (float("nan"), "at most 1", "**no**"),
    ],
)
def test_what_is_met(ratio: float | None, wanted: str, met: str) -> None:
    assert Row("what", ratio=ratio, wanted=wanted).met == met


@pytest.mark.parametrize("wanted", ["1.3", "about 2", "at most", "at least ten"])
def test_a_bound_that_cannot_be_judged_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match="write it as `at most"):
        Row("what", wanted=wanted)


def test_a_line_that_is_printed_is_a_row(file: Path) -> None:
    printed = line("search", "10 ms", "5 ms", 2.0, "at least 2", against="plain FAISS")
    not_measured("frames", "torchcodec", "skipped: torchcodec is not installed")
    assert printed.split() == ["search", "10", "ms", "5", "ms", "2.00x", "at", "least", "2"]
    assert [(row.what, row.against, row.met) for row in kept(file)] == [
        ("search", "plain FAISS", "yes"),
        ("frames", "torchcodec", "skipped: torchcodec is not installed"),
    ]


def test_nothing_is_kept_where_no_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEPT_IN, raising=False)
    monkeypatch.chdir(tmp_path)
    line("search", "10 ms", "5 ms", 2.0)
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_a_killed_process_did_not_finish_is_left_out(file: Path) -> None:
    line("search", "10 ms", "5 ms")
    with file.open("a") as rows:
        rows.write('{"what": "half')
    assert [row.what for row in kept(file)] == ["search"]


def test_sizes_follow_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scaled(300) == 300
    monkeypatch.setenv(SCALE, "0.01")
    assert (scaled(300), scaled(10)) == (3, 1)


def test_the_machine_is_named() -> None:
    said = about(Path(__file__).parent, 0.5)
    assert said.startswith("Commit ")
    for part in ("cores", "torch ", "faiss-cpu ", "dagster ", "0.5 times the usual"):
        assert part in said


def test_the_name_of_a_test_is_read_as_words() -> None:
    assert name_of("tests/benchmarks/test_search.py::test_search_and_ranks[32]") == "search and ranks [32]"
    assert name_of("tests/benchmarks/test_search.py") == "search"


BROKEN = {
    "test_a_good": """
        import os
        from tests.benchmarks.measuring import line, scaled

        def test_one():
            line("one", "1 s", f"{scaled(10)} s", 2.0, "at most 3")
            assert os.environ["OMP_NUM_THREADS"]
        """,
    "test_b_fails": """
        import pytest
        from tests.benchmarks.measuring import line

        def test_wrong_answer():
            line("before it failed", "1 s", "2 s", 2.0, "at most 1")
            assert [1] == [2], "the answers | differ"

        def test_no_gpu():
            pytest.skip("there is no GPU here")
        """,
    "test_c_import": "import no_such_module\n",
    "test_d_dies": """
        import os, signal
        from tests.benchmarks.measuring import line

        def test_dies():
            line("before it died", "1 s", "2 s", 2.0)
            os.kill(os.getpid(), signal.SIGSEGV)
        """,
    "test_e_last": """
        from tests.benchmarks.measuring import line

        def test_last():
            line("last", "1 s", "2 s", 2.0)
        """,
}


@pytest.mark.slow
def test_whatever_breaks_is_a_row_and_nothing_else_is_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    out = tmp_path / "made/bench.md"
    arguments = ["--folder", str(tmp_path), "--out", str(out), "--scale=0.5"]
    assert bench.main(arguments) == 1
    assert list(out.parent.iterdir()) == [out], "no temporary file is left"
    table = out.read_text()
    assert table.rstrip() in capfd.readouterr().out
    rows = [[cell.strip() for cell in row.split(" | ")] for row in table.splitlines()[4:]]
    assert [(row[0].removeprefix("| "), row[-1].removesuffix(" |")) for row in rows] == [
        ("one", "yes"),
        ("before it failed", "**no**"),
        ("wrong answer", "failed: AssertionError: the answers \\| differ"),
        ("no gpu", "skipped: there is no GPU here"),
        ("c import", "failed: ModuleNotFoundError: No module named 'no_such_module'"),
        ("before it died", "-"),
        ("d dies", "failed: its process ended with SIGSEGV"),
        ("last", "-"),
    ]


def is_gone(pid: str) -> bool:
    """A process that ended may wait for its parent to see it."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_what_hangs_is_stopped_and_a_row(tmp_path: Path) -> None:
    """With a limit that it reaches however fast the machine is, and with the process that it started."""
    hanging = """
        import subprocess, pathlib

        with subprocess.Popen(["sleep", "3600"]) as child:
            pathlib.Path(__file__).with_name("pid").write_text(str(child.pid))
        """
    (tmp_path / "test_hangs.py").write_text(textwrap.dedent(hanging))
    out = tmp_path / "bench.md"
    assert bench.main(["--folder", str(tmp_path), "--out", str(out), "--limit=5"]) == 1
    assert "| hangs | - | - | - | - | - | failed: its process ended with its limit of 5 s |" in out.read_text()
    started = tmp_path / "pid"
    if started.exists():
        waiting.until(lambda: is_gone(started.read_text()))


@pytest.mark.slow
def test_a_part_is_chosen_by_file_and_by_name(tmp_path: Path) -> None:
    for name in ("test_a_good", "test_b_fails", "test_e_last"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(BROKEN[name]))
    out = tmp_path / "bench.md"
    common = ["--folder", str(tmp_path), "--out", str(out)]
    assert bench.main([*common, "test_b_fails.py", "test_e_last", "-k", "gpu or last"]) == 0
    assert [row.split(" | ")[0] for row in out.read_text().splitlines()[4:]] == ["| no gpu", "| last"]
    assert bench.main([*common, "test_none"]) == 2
