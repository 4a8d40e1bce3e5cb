"""Export tables of a dataset to a folder for `datasets.load_dataset`: one Parquet file per table and split, and a card.

SFT and GRPO rows are written in their published form. Failed rows, bookkeeping columns, paths and videos are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets.benchmarks import BENCHMARKS, VERIFIED_FIG
from vsr1_core.home.warehouse_views import PREDICTIONS
from vsr1_core.rows.files import atomic_folder, check_name
from vsr1_core.rows.table import BASE_COLUMNS
from vsr1_core.stages.base import View
from vsr1_core.stages.examples import published_grpo_row, published_prompt, published_sft_row

CARD = "README.md"
Splits = Mapping[str, pl.DataFrame]


def _plain(view: View, asset: str) -> pl.DataFrame:
    frame = view.rows(asset)
    return frame.drop([name for name in (*BASE_COLUMNS, "path") if name in frame.columns])


def _by_split(frame: pl.DataFrame) -> Splits:
    return {str(key[0]): part.drop("split") for key, part in sorted(frame.partition_by("split", as_dict=True).items())}


def _moments(view: View) -> Splits:
    return _by_split(_plain(view, "moments"))


def _predictions(view: View) -> Splits:
    methods = {name.removeprefix(PREDICTIONS): name for name in view.stages if name.startswith(PREDICTIONS)}
    frames = [_plain(view, asset).with_columns(method=pl.lit(method)) for method, asset in methods.items()]
    return _by_split(pl.concat(frames))


def _metrics(view: View) -> Splits:
    return _by_split(_plain(view, "metrics"))


def _sft_examples(view: View) -> Splits:
    prompt = published_prompt(view)
    return _published(view, "sft_examples", lambda row: published_sft_row(row, prompt))


def _grpo_prompts(view: View) -> Splits:
    return _published(view, "grpo_prompts", published_grpo_row)


def _published(view: View, asset: str, publish: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Splits:
    rows = [publish(row) for row in view.rows(asset).iter_rows(named=True)]
    return {"train": pl.DataFrame(rows, infer_schema_length=None)} if rows else {}


TABLES: Mapping[str, tuple[str, Callable[[View], Splits]]] = {
    "moments": ("One row per annotated query: its text, its video, and its span in seconds.", _moments),
    "predictions": (
        "One row per query and method: the answer, and every turn with the text that the policy wrote.",
        _predictions,
    ),
    "metrics": ("One row per method and metric: its value and 95 % bootstrap interval over queries.", _metrics),
    "sft_examples": ("One conversation of stage 1 per row; `videos` names the shown video's frames.", _sft_examples),
    "grpo_prompts": ("One query of stage 2 per row, with its first-ranked video and hard negatives.", _grpo_prompts),
}


def assets_of(view: View, names: Sequence[str] = ()) -> list[str]:
    """The assets that are behind the named tables (by default behind all)."""
    chosen = set(names or TABLES)
    plain = [name for name in view.stages if name in chosen]
    return plain + [name for name in view.stages if name.startswith(PREDICTIONS) and "predictions" in chosen]


def export_tables(view: View, folder: Path, names: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """Write the named tables to `folder`; on an error nothing is written.

    Args:
        view: The dataset.
        folder: The folder to make; it may exist if it is empty.
        names: Names of tables; by default all that have rows.

    Returns:
        Table -> split -> number of rows.

    Raises:
        ValueError: A name is unknown, a named table has no rows, or a split has a name that no file can have.
        FileExistsError: `folder` is not empty.
    """
    unknown = sorted(set(names) - set(TABLES))
    if unknown:
        raise ValueError(f"no table {', '.join(unknown)} to export; there are: {', '.join(TABLES)}")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder")
    chosen = {name: TABLES[name][1](view) for name in names or TABLES}
    empty = sorted(name for name, splits in chosen.items() if not splits)
    if empty and (names or len(empty) == len(chosen)):
        raise ValueError(f"{view.entry.name} has no rows of {', '.join(empty)}; run: vsr1 build -d {view.entry.name}")
    chosen = {name: splits for name, splits in chosen.items() if splits}
    for split in {split for splits in chosen.values() for split in splits}:
        check_name(split, "split, which is a file here")  # annotations may say anything
    with atomic_folder(folder) as temporary:
        for name, splits in chosen.items():
            (temporary / name).mkdir()
            for split, frame in splits.items():
                frame.write_parquet(temporary / name / f"{split}.parquet")
        (temporary / CARD).write_text(_card_text(view, chosen), encoding="utf-8")
    return {name: {split: frame.height for split, frame in splits.items()} for name, splits in chosen.items()}


def _card_text(view: View, tables: Mapping[str, Splits]) -> str:
    from huggingface_hub import DatasetCardData

    benchmark = BENCHMARKS.get(view.entry.name)
    title = f"{benchmark.title if benchmark else view.entry.name}: data of VideoSearch-R1"
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits],
        }
        for name, splits in tables.items()
    ]
    data = DatasetCardData(
        pretty_name=title, tags=["video-retrieval", "moment-retrieval", "videosearch-r1"], configs=configs
    )
    lines = [f"---\n{data.to_yaml()}\n---", f"# {title}", "This dataset contains no videos and no frames."]
    if benchmark:
        lines.append(f"The queries are those of VERIFIED FIG ({VERIFIED_FIG}, CC BY 4.0).")
    for name, splits in tables.items():
        rows = ", ".join(f"{split} {frame.height:,} rows" for split, frame in splits.items())
        version = "" if name == "predictions" else f" Version `{view.table(name).manifest()['data_version']}`."
        lines += [f"## {name}", f"{TABLES[name][0]} {rows}.{version}"]
    lines.append('```python\nfrom datasets import load_dataset\n\nload_dataset("this folder", "moments")\n```')
    return "\n\n".join(lines) + "\n"
