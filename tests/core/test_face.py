"""`Home`, `Index` and `search` on a nano corpus: what they build, what they keep open, and what they say."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

import vsr1_core as vsr1
from tests.notebooks import outputs_here, outputs_in_kernel
from vsr1_core.home.home import Home
from vsr1_core.home.search import SearchRequest, search_once, search_together
from vsr1_core.stages import checks, loading
from vsr1_core.stages.base import Check

pytestmark = pytest.mark.slow

TEXT = "a red circle moves left"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With base models and stage 1 of a nano dataset."""
    home = Home(tmp_path_factory.mktemp("home"), "cpu", workers=1)
    home.add_dataset("nano", toy=True, config="nano")
    home.build("nano", ["video_index", "sft_checkpoint"])
    return home


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often policies and embedders are loaded."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> None:
        real = getattr(loading, name)
        monkeypatch.setattr(loading, name, lambda *args, **kwargs: counts.update([name]) or real(*args, **kwargs))

    for name in ("policy_of", "embedder_of"):
        counted(name)
    return counts


def clips(home: Home, folder: Path, number: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    for path in sorted((home.path / "data/nano/videos").glob("toy_test_*.mp4"))[:number]:
        shutil.copy(path, folder)
    return folder


def touch_version(home: Home, row_id: str, version: str) -> str:
    """Give a row of base_models another version, as a build would; returns the one before."""
    table = home.view("nano").table("base_models")
    rows, is_it = table.rows(), pl.col("model_id") == row_id
    before = rows.filter(is_it)["row_version"][0]
    table.commit(rows.with_columns(row_version=pl.when(is_it).then(pl.lit(version)).otherwise("row_version")), {})
    return str(before)


def test_a_search_ranks_and_says_what_the_policy_saw(home: Home) -> None:
    hits = home.search(TEXT, "nano", top_k=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(Path(str(hit.path)).is_file() and hit.video in str(hit.path) for hit in hits)
    shown = [hit for hit in home.search(TEXT, "nano", top_k=8) if hit.turn is not None]
    assert shown
    assert all(hit.decision in ("matched", "not_matched", "unknown") for hit in shown)


def test_searching_again_loads_nothing_until_a_row_moves(home: Home, loads: Counter[str]) -> None:
    home.close()
    home.search(TEXT, "nano")
    home.search("a blue square", "nano", split="train")
    assert loads == {"policy_of": 1, "embedder_of": 1}
    before = touch_version(home, "policy", "another")
    home.search(TEXT, "nano")
    assert loads == {"policy_of": 1, "embedder_of": 1}, "the search asks stage 1's policy, not the base policy"
    touch_version(home, "policy", before)
    before = touch_version(home, "embedder", "another")
    home.search(TEXT, "nano")
    assert loads == {"policy_of": 2, "embedder_of": 2}
    touch_version(home, "embedder", before)


def test_a_result_says_every_turn_and_both_rankings(home: Home) -> None:
    found = home.search(TEXT, "nano", top_k=2, method="sqr_sft", turns=2)
    assert (found.method, found.dataset, found.split) == ("sqr_sft", "nano", "test")
    assert 1 <= len(found.turns) <= 2
    everything = home.search(TEXT, "nano", top_k=8, method="sqr_sft", turns=2)
    order = [hit.video for hit in everything]
    assert [turn.last_rank for turn in found.turns] == [order.index(turn.video) + 1 for turn in found.turns]
    assert [turn.ranking[0].video for turn in found.turns] == [turn.video for turn in found.turns]
    plain = home.search(TEXT, "nano", top_k=8, verify=False)
    assert (plain.method, plain.turns) == (None, ())
    assert [hit.video for hit in plain] == [place.video for place in everything.first]
    assert {hit.video: hit.first_rank for hit in everything} == {hit.video: hit.rank for hit in plain}
    assert type(found).from_dict(found.to_dict()) == found


def test_requests_in_one_batch_get_what_each_gets_alone(home: Home) -> None:
    opened = home.opened("nano")
    requests = [SearchRequest(text, top_k=3) for text in (TEXT, "a blue square moves right", "a bar")]
    told = Counter[int]()
    together = search_together(opened, requests, told=lambda number, turn: told.update([number]))
    assert dict(told) == {number: len(found.turns) for number, found in enumerate(together)}
    for request, found in zip(requests, together, strict=True):
        alone = search_once(opened, request)
        assert [hit.video for hit in found] == [hit.video for hit in alone]
        assert [(turn.video, turn.decision) for turn in found.turns] == [(t.video, t.decision) for t in alone.turns]


def test_the_function_keeps_its_home_open(home: Home, loads: Counter[str]) -> None:
    first, again = (vsr1.search(TEXT, "nano", home=home.path, top_k=1) for _ in range(2))
    assert first == again == home.search(TEXT, "nano", top_k=1)
    assert loads["policy_of"] <= 2, "once by the function, and once by the home of this test"


def test_a_build_without_dagster_leaves_nothing_for_one_with_it(home: Home) -> None:
    from pipelines.builds import run_build
    from pipelines.settings import Settings

    built = run_build(Settings(home.path, "cpu"), "nano", "video_index")
    assert built.success, built.problems
    assert {asset.name: asset.num_processed for asset in built.assets if asset.num_processed} == {}


def test_a_blocking_check_stops_a_build_and_another_one_is_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list[str]()
    monkeypatch.setattr(home, "log", lines.append)
    odd = Check("is_odd", "It is not odd.", lambda _, asset: "it is odd" * (asset == "moments"), blocking=False)
    bad = Check("is_bad", "It is not bad.", lambda _, asset: "it is bad" * (asset == "frame_tensors"))
    monkeypatch.setattr(checks, "EVERY", (odd, bad))
    with pytest.raises(ValueError, match=r"^frame_tensors, is_bad: it is bad$"):
        home.build("nano", ["video_index"])
    assert "warning: moments, is_odd: it is odd" in lines
    assert not any(line.startswith("video_embeddings") for line in lines)


def test_plan_status_tables_and_sql_answer(home: Home) -> None:
    plan = {row["asset"]: row for row in home.plan("nano").to_dicts()}
    assert plan["video_index"]["unchanged"] == 3
    assert plan["predictions.sqr_sft"]["new"] == 8
    assert plan["predictions.sqr_sft"]["why"] == "new row (8)"
    status = {row["asset"]: row for row in home.status("nano").to_dicts()}
    assert (status["videos"]["rows"], status["report"]["rows"]) == (36, None)
    assert home.table("videos", "nano").height == 36
    assert vsr1.sql("select count(*) n from videos where dataset = 'nano'", home=home.path)["n"].to_list() == [36]
    assert home.explain("video_embeddings", "toy_test_00000", "nano").row_id == "toy_test_00000"
    assert "nano" in home.datasets()


def test_what_is_wrong_is_said(home: Home, tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"^no dataset 'nona'; known: activitynet"):
        home.search(TEXT, "nona")
    with pytest.raises(LookupError, match="has no model to search with; run: vsr1 build --dataset toy"):
        home.search(TEXT, "toy")
    with pytest.raises(ValueError, match="search text is blank"):
        home.search(" ", "nano")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        home.search(TEXT, "nano", top_k=0)
    with pytest.raises(LookupError, match="no method 'sqr'; did you mean 'sqr_sft'"):
        home.search(TEXT, "nano", method="sqr")
    with pytest.raises(LookupError, match="grpo_checkpoint has no row 'grpo_checkpoint'; run: vsr1 build"):
        home.search(TEXT, "nano", method="videosearch_r1")
    with pytest.raises(LookupError, match="no videos in the split 'dev'; its splits: test, train, val"):
        home.search(TEXT, "nano", split="dev")
    with pytest.raises(ValueError, match=r"no asset or group 'frames'; did you mean 'frame_tensors'"):
        home.build("nano", ["frames"])
    with pytest.raises(LookupError, match="no configuration 'huge'; there are: tiny"):
        home.add_dataset("mine", tmp_path, config="huge")
    with pytest.raises(ValueError, match="no video files in"):
        home.add_dataset("mine", tmp_path)
    with pytest.raises(ValueError, match="give the folder of videos"):
        home.add_dataset("mine")
    with pytest.raises(ValueError, match="The views are: "):
        home.table("nothing", "nano")


def test_a_folder_is_indexed_once_and_searched_with_the_models_of_a_dataset(
    home: Home, tmp_path: Path, loads: Counter[str]
) -> None:
    folder = clips(home, tmp_path / "my clips")
    (folder / "broken.mp4").write_bytes(b"no video")
    lines: list[str] = []
    models = home.path / "nano"
    index = vsr1.Index.from_folder(folder, models, home=tmp_path / "home", device="cpu", workers=1, log=lines.append)
    assert index.videos == ["toy_test_00000", "toy_test_00001", "toy_test_00002"]
    assert "broken.mp4" in index.failures["broken"]
    assert any(line.startswith("1 of 4 videos cannot be searched: broken: ") for line in lines)
    assert not {"query_embeddings", "sft_examples", "predictions.zero_shot"} & {asset.name for asset in index.built}
    loads.clear()
    first, again = index.search(TEXT), index.search(TEXT)
    assert first == again
    assert loads == {"policy_of": 1, "embedder_of": 1}
    assert [hit.turn for hit in first if hit.turn is not None]
    index = vsr1.Index.from_folder(folder, models, home=tmp_path / "home", device="cpu", workers=1)
    assert {asset.name: asset.num_processed for asset in index.built if asset.num_processed} == {}
    (folder / "toy_test_00002.mp4").unlink()
    clips(home, folder / "more", 4)
    index.refresh()
    assert {asset.name: asset.num_processed for asset in index.built}["frame_tensors"] == 4
    assert "more/toy_test_00003" in index.videos
    assert "toy_test_00002" not in index.videos


def test_an_embedder_alone_ranks_and_verifies_nothing(home: Home, tmp_path: Path) -> None:
    view = home.view("nano")
    folders = {name: Path(loading.one_row(view, "base_models", name)["path"]) for name in ("embedder", "policy")}
    place = {"home": tmp_path / "home", "config": "nano", "device": "cpu", "workers": 1}
    index = vsr1.Index.from_folder(clips(home, tmp_path / "clips"), folders["embedder"], **place)  # type: ignore[arg-type]
    hits = index.search(TEXT, top_k=2)
    assert [(hit.turn, hit.start_s, hit.reasoning) for hit in hits] == [(None, None, None)] * 2
    with pytest.raises(ValueError, match="is a policy with soft query modules"):
        vsr1.Index.from_folder(tmp_path / "clips", folders["policy"], **place)  # type: ignore[arg-type]
    for name, folder in folders.items():
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / name).symlink_to(folder)
    index = vsr1.Index.from_folder(tmp_path / "clips", tmp_path / "models", **place)  # type: ignore[arg-type]
    assert {asset.name: asset.num_processed for asset in index.built}["frame_tensors"] == 0
    assert [hit.turn for hit in index.search(TEXT) if hit.turn]


def test_toy_models_are_made_where_they_are_asked_for(home: Home, tmp_path: Path) -> None:
    place = Home(tmp_path / "home", "cpu", workers=1)
    place.add_dataset("toy", toy=True, config="nano")
    index = vsr1.Index.from_folder(clips(home, tmp_path / "clips"), "toy", home=place.path, device="cpu", workers=1)
    assert "sft_checkpoint" in place.status("toy").drop_nulls("rows")["asset"].to_list()
    assert len(index.search(TEXT)) == 3


def test_a_folder_or_models_that_are_not_there_are_named(home: Home, tmp_path: Path) -> None:
    place = {"home": tmp_path / "home", "device": "cpu", "workers": 1}
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        vsr1.Index.from_folder(tmp_path / "nowhere", "toy", **place)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no video files in"):
        vsr1.Index.from_folder(tmp_path / "empty", "toy", **place)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"models='nothing' names no models: models may be \"toy\""):
        vsr1.Index.from_folder(clips(home, tmp_path / "clips"), "nothing", **place)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has neither a config.json nor a folder embedder/"):
        vsr1.Index.from_folder(tmp_path / "clips", tmp_path / "empty", **place)  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="has no model to search with"):
        vsr1.Index.from_folder(tmp_path / "clips", home.path / "toy", **place)  # type: ignore[arg-type]
    (tmp_path / "empty" / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of the 1 videos in .*empty can be read: bad: bad.mp4"):
        vsr1.Index.from_folder(tmp_path / "empty", home.path / "nano", **place)  # type: ignore[arg-type]


def notebook(name: str, monkeypatch: pytest.MonkeyPatch, **environ: Path | str) -> Path:
    """A notebook that uses only the face, which reads these variables."""
    for key, value in environ.items():
        monkeypatch.setenv(key, str(value))
    path = Path(__file__).parents[2] / "notebooks" / f"{name}.ipynb"
    assert "vsr1_core." not in path.read_text(), "it uses the face, and no module behind it"
    return path


def test_the_notebook_that_searches_a_folder(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clips(home, tmp_path / "clips")
    path = notebook(
        "search_my_folder",
        monkeypatch,
        VSR1_HOME=tmp_path / "home",
        VSR1_NOTEBOOK_VIDEOS=folder,
        VSR1_NOTEBOOK_MODELS=home.path / "nano",
    )
    shown = outputs_here(path)
    assert "3 videos can be searched, 0 cannot" in shown
    assert "toy_test_00000" in shown


@pytest.mark.long
def test_the_notebook_that_trains_on_annotations(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = home.table("moments", "nano")
    columns = {"video_id": "video", "start_s": "start", "end_s": "end", "query": "query", "split": "split"}
    moments.select(list(columns)).rename(columns).write_csv(tmp_path / "clips.csv")
    path = notebook(
        "train_on_my_annotations",
        monkeypatch,
        VSR1_HOME=tmp_path / "home",
        VSR1_NOTEBOOK_VIDEOS=home.path / "data/nano/videos",
        VSR1_NOTEBOOK_ANNOTATIONS=tmp_path / "clips.csv",
        VSR1_NOTEBOOK_CONFIG="nano",
    )
    shown = outputs_in_kernel(path)
    assert "no video and no line was refused" in shown
    assert "zero_shot" in shown
    assert "1 toy_test_" in shown
