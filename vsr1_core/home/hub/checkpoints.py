"""Write a checkpoint as a folder to share: weights, config, tokenizer, record, and a card that says how it was made.

`models.checkpoints` loads such a folder by its path. No file in it contains a path of this machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.evaluation.markdown import markdown_table, text_cell
from vsr1_core.evaluation.metrics import metrics_shown
from vsr1_core.home.hub.remote import QUERY_EMBEDDER
from vsr1_core.models.family_protocols import PolicyFamily
from vsr1_core.models.published import FETCHED
from vsr1_core.models.registry import family_of, policy_family_of
from vsr1_core.rows.files import atomic_folder, read_json, write_json, write_json_array
from vsr1_core.rows.versions import canonical
from vsr1_core.stages import methods
from vsr1_core.stages.base import View
from vsr1_core.stages.examples import SFT_FILE, published_sft_row, sft_prompt
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.model_folders import ModelStage

CARD = "README.md"


@dataclass(frozen=True)
class Checkpoint:
    """One row of a model stage, which a card is written about."""

    view: View
    asset: str
    row: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.row[self.view.stages[self.asset].key])

    @property
    def methods(self) -> list[str]:
        """The methods of the report that search with this checkpoint."""
        own = (self.asset, self.name)
        return [name for name, method in methods.ALL.items() if (method.model, method.row_id) == own]


def find_checkpoint(view: View, name: str) -> Checkpoint:
    """The checkpoint `name` (`sft_checkpoint`, `embedder`, ...). LookupError lists the checkpoints that are built."""
    assets = [asset for asset, stage in view.stages.items() if stage.group == ModelStage.group]
    for asset in assets:
        if name in view.versions(asset):
            return Checkpoint(view, asset, one_row(view, asset, name))
    built = [row_id for asset in assets for row_id in view.versions(asset)]
    raise LookupError(
        f"{view.entry.name} has no checkpoint {name!r}; it has: {', '.join(built) or 'none yet'}. To build: "
        f"vsr1 build --dataset {view.entry.name} --assets {','.join(assets)}"
    )


def write_checkpoint_folder(checkpoint: Checkpoint, folder: Path, repo_id: str) -> None:
    """Write the folder that can be pushed as `repo_id`; on an error nothing is written.

    Raises:
        ValueError: The checkpoint is a published base model, so there is nothing to share.
    """
    source = checkpoint.row["source"]
    if checkpoint.asset == "base_models" and source:
        raise ValueError(f"{checkpoint.name} is {source} as published, so there is nothing new to push")
    with atomic_folder(folder) as temporary:
        for pattern in FETCHED:
            for path in sorted(Path(checkpoint.row["path"]).glob(pattern)):
                shutil.copyfile(path, temporary / path.name)
        _name_embedder(temporary / "config.json", checkpoint.view)
        (temporary / CARD).write_text(card_text(checkpoint, repo_id), encoding="utf-8")


def write_authors_folder(checkpoint: Checkpoint, folder: Path, repo_id: str) -> list[str]:
    """Write the folder as the authors' code reads it, with the embedder that the policy searches with and the training
    file that has the policy's prompt.

    Returns:
        What their code does otherwise than the checkpoint was trained, in sentences.

    Raises:
        ValueError: The checkpoint is no policy with soft query modules.
    """
    path, view = Path(checkpoint.row["path"]), checkpoint.view
    base = view.rows("base_models", ["model_id", "path"]).filter(pl.col("model_id") == "policy")["path"].to_list()
    if not checkpoint.row["options"]:
        raise ValueError(f"{checkpoint.name} is not a policy; push it without --form authors")
    with atomic_folder(folder) as temporary:
        differences = policy_family_of(path).write_released_form(path, temporary, Path(base[0]) if base else path)
        differences += _write_query_embedder(Path(one_row(view, "base_models", "embedder")["path"]), temporary)
        prompt = sft_prompt(checkpoint.row["options"])
        rows = view.rows("sft_examples").sort("query_id").iter_rows(named=True) if "sft_examples" in view.stages else ()
        write_json_array(temporary / SFT_FILE, (published_sft_row(row, prompt) for row in rows))
        text = card_text(checkpoint, repo_id) + "\n## In the authors' code\n\n" + "\n".join(differences) + "\n"
        (temporary / CARD).write_text(text, encoding="utf-8")
    return differences


def _write_query_embedder(embedder: Path, folder: Path) -> list[str]:
    """Write the embedder into the checkpoint `folder`, from which their code loads it; or say why it is not there."""
    family = family_of(embedder)
    if not isinstance(family, PolicyFamily):
        return [f"It has no {QUERY_EMBEDDER}/, because their code reads no embedder of the family {family.name}."]
    (folder / QUERY_EMBEDDER).mkdir()
    family.write_released_embedder(embedder, folder / QUERY_EMBEDDER)
    return []


def _name_embedder(path: Path, view: View) -> None:
    """Replace the embedder's path in the config, if it is a path of this machine, by its hub id or digest."""
    config = read_json(path)
    soft_query = config.get("soft_query")
    if soft_query and Path(soft_query["embedder"]).is_absolute():
        row = one_row(view, "base_models", "embedder")
        soft_query["embedder"] = hub_source(row) or row["digest"]
        write_json(path, config)


def hub_source(row: Mapping[str, Any]) -> str:
    """The hub id of a base model's row; empty for a model that was made here or read from a folder."""
    source = row["source"] or ""
    return "" if Path(source).is_absolute() or " " in source else source


def card_text(checkpoint: Checkpoint, repo_id: str) -> str:
    """The text of the card: metadata for the hub, what the checkpoint is, its use, its metrics, and how it was made."""
    from huggingface_hub import ModelCardData

    view, results, name = checkpoint.view, metric_rows(checkpoint), repo_id.rpartition("/")[2]
    data = ModelCardData(
        library_name="transformers",
        tags=["video-retrieval", "moment-retrieval", "videosearch-r1"],
        base_model=hub_source(one_row(view, "base_models", "policy")) or None,
        model_name=name,
        eval_results=_eval_results(view, results) or None,
    )
    title = BENCHMARKS[view.entry.name].title if view.entry.name in BENCHMARKS else view.entry.name
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"`{checkpoint.name}` of VideoSearch-R1, video corpus moment retrieval with soft query refinement, on {title}.",
        _usage(checkpoint, repo_id),
        "## Results",
        *(_metric_lines(results) if results.height else ["Not evaluated."]),
        "## How it was made",
        "The versions of its inputs; a version is a hash of everything that decides the input.",
        "\n".join(markdown_table(["input", "version"], sorted(json.loads(checkpoint.row["row_inputs"]).items()))),
        "\n".join(markdown_table(["annotation file", "digest"], _annotation_digests(view))),
        f"Weights: `{checkpoint.row['digest']}`; parent: `{checkpoint.row['parent'] or 'none'}`. Recipe:",
        f"```json\n{json.dumps(_recipes(checkpoint), indent=2)}\n```",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def metric_rows(checkpoint: Checkpoint) -> pl.DataFrame:
    """The metrics with a value of the methods that search with this checkpoint; empty where none was evaluated."""
    columns = ["split", "method", "metric", "value", "low", "high", "num_queries"]
    rows = checkpoint.view.rows("metrics", columns).filter(pl.col("method").is_in(checkpoint.methods))
    return rows.drop_nulls("value").sort("split", "method", "metric")


def _usage(checkpoint: Checkpoint, repo_id: str) -> str:
    if checkpoint.asset == "base_models":
        return f'Use: `ModelRecipe({checkpoint.name}="{repo_id}")`.'
    dataset = checkpoint.view.entry.name
    pulled = f"vsr1 pull {repo_id} --dataset {dataset} --as {checkpoint.asset}"
    return f"Use: `{pulled}`, or `vsr1_core.models.checkpoints.load_policy(folder)`."


def _eval_results(view: View, results: pl.DataFrame) -> list[Any]:
    from huggingface_hub import EvalResult

    named = {metric.name: metric for metric in metrics_shown("card")}
    return [
        EvalResult(
            task_type="video-corpus-moment-retrieval",
            dataset_type=view.entry.name,
            dataset_name=view.entry.name,
            dataset_split=row["split"],
            metric_type=row["metric"],
            metric_name=f"{named[row['metric']].label} ({row['method']})",
            metric_value=round(row["value"], 6),
        )
        for row in results.iter_rows(named=True)
        if row["metric"] in named
    ]


def _metric_lines(results: pl.DataFrame) -> list[str]:
    rows = [
        (r["split"], r["method"], r["metric"], f"{r['value']:.4g}", f"{r['low']:.4g} to {r['high']:.4g}")
        for r in results.fill_null(float("nan")).iter_rows(named=True)
    ]
    num_queries = max(results["num_queries"].to_list())
    note = f"{num_queries:,} queries; intervals are 95 % bootstrap intervals over queries."
    return [note, "\n".join(markdown_table(["split", "method", "metric", "value", "interval"], rows))]


def _annotation_digests(view: View) -> list[tuple[str, str]]:
    files = view.rows("annotation_files", ["file_id", "digest"]).sort("file_id")
    return [(text_cell(str(name), 200), str(digest)) for name, digest in files.iter_rows()]


def _recipes(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.view.config
    own = checkpoint.view.stages[checkpoint.asset].recipe(config)
    return {
        "configuration": config.name,
        checkpoint.asset: canonical(own),
        "models": canonical(checkpoint.view.stages["base_models"].recipe(config)),
        "options": checkpoint.row["options"],
        "frames": canonical(config.frames),
    }
