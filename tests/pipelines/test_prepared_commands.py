"""`vsr1 import-prepared` and `vsr1 export-prepared` on a small prepared folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.core.datasets.prepared_folder import content, write_prepared


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSR1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VSR1_WORKERS", "1")
    return write_prepared(tmp_path / "charades-sta")


def ok(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.slow
def test_in_and_out_and_the_plan_between_says_what_was_imported(folder: Path, tmp_path: Path) -> None:
    assert "wrote charades_fig_train.jsonl to" in ok("import-prepared", folder, "--dataset", "charades")
    plan = json.loads(ok("plan", "--dataset", "charades", "--json"))
    assert plan["imported"]["query_embeddings"] == 16
    for name in plan["imported"]:
        assert (plan["assets"][name]["new"], plan["assets"][name]["stale"]) == (0, 0), name
    assert "kept as imported (16)" in ok("plan", "--dataset", "charades")
    assert str(folder) in "".join(ok("dataset", "show", "charades").split())
    ok("export-prepared", "charades", tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.slow
def test_mistakes_are_explained_and_an_import_can_be_undone(folder: Path, tmp_path: Path) -> None:
    assert "give the folder of the prepared data" in refused("import-prepared", tmp_path / "nowhere", "-d", "charades")
    assert "--models-from and --config are for a new name" in refused(
        "import-prepared", folder, "-d", "charades", "--config", "tiny"
    )
    assert "no split 'tests'" in refused("import-prepared", folder, "-d", "charades", "--split", "tests")
    assert "nothing was imported" in refused("import-prepared", "-d", "charades", "--forget")
    assert "has not been built" in refused("export-prepared", "charades", tmp_path / "out")
    (folder / "raw_annotation/test.jsonl").rename(folder / "kept")
    assert "raw_annotation/test.jsonl: is not there" in refused("import-prepared", folder, "-d", "charades")
    (folder / "kept").rename(folder / "raw_annotation/test.jsonl")
    ok("import-prepared", folder, "-d", "charades", "--split", "test")
    annotations = tmp_path / "home/data/charades/annotations"
    (tmp_path / "home/lake/imported/charades/current.json").unlink()  # as if it was killed before it was in force
    assert "charades_fig_test.jsonl" in ok("import-prepared", "-d", "charades", "--forget")
    assert not (annotations / "charades_fig_test.jsonl").exists()
    ok("import-prepared", folder, "-d", "charades", "--split", "test")
    ok("import-prepared", folder, "-d", "charades")
    train, test = (annotations / f"charades_fig_{split}.jsonl" for split in ("train", "test"))
    train.write_text(train.read_text() + "\n")
    said = "".join(ok("import-prepared", "-d", "charades", "--forget").split())
    assert f"Removed{test},whichtheimporthadwritten." in said, "a second import does not forget what the first wrote"
    assert str(train) not in said
    assert train.is_file(), "a file that was changed since is not the import's any more"
    assert not test.exists()
    assert "imported" not in json.loads(ok("plan", "--dataset", "charades", "--json"))


def test_a_dataset_has_to_be_named_and_the_folder_of_another_one_is_refused(folder: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["import-prepared", str(folder)]).exit_code == 2
    said = " ".join(refused("import-prepared", folder, "-d", "didemo").split())
    assert "8 of the 8 videos in" in said
    assert "have ids that didemo does not have (such as 'TRN00'; they look like" in said
    assert "import it under the name of its own dataset" in said
    ok("import-prepared", folder, "-d", "mine", "--models-from", "toy")
    for split in ("train", "test"):
        path = tmp_path / f"home/data/mine/annotations/mine_fig_{split}.jsonl"
        rows = [json.loads(line) | {"desc_id": f"other{n}"} for n, line in enumerate(path.open())]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "and not one of them is among the" in " ".join(refused("import-prepared", folder, "-d", "mine").split())
    assert not (tmp_path / "home/lake/tables/query_embeddings/dataset=didemo").exists()


def test_rows_that_do_not_fit_are_said_to_be_left_out(folder: Path, tmp_path: Path) -> None:
    ok("import-prepared", folder, "-d", "charades")
    path = tmp_path / "home/data/charades/annotations/charades_fig_train.jsonl"
    rows = [json.loads(line) for line in path.open()]
    rows[0]["fig_desc"] = "something else happens"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = " ".join(ok("import-prepared", folder, "-d", "charades").split())
    assert "query_embeddings: 1 of 16 rows were left out, because they do not fit the files of this dataset" in said


def test_a_new_name_is_registered_by_the_import(folder: Path, tmp_path: Path) -> None:
    (folder / "train/hard_negatives.json").unlink()
    assert "no dataset 'gone'" in refused("import-prepared", folder, "-d", "mine", "--models-from", "gone")
    said = ok("import-prepared", folder, "--dataset", "mine", "--models-from", "toy")
    assert "train/hard_negatives.json: is not there" in said
    assert json.loads((tmp_path / "home/datasets/mine.json").read_text())["models_from"] == "toy"
    assert "16" in ok("status", "--dataset", "mine")
    ok("export-prepared", "mine", tmp_path / "out", "--stale")
    assert (tmp_path / "out/train/query_embedding/query_embeddings.train.npy").is_file()
