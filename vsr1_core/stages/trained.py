"""Models as rows: the base models, the fine-tuned baseline, and what stages 1 and 2 train. Training is `training`'s.

A dataset that borrows models (`models_from`) gets rows that point to the lender's folders, so the rest of the graph
needs not know. Every folder is named by its row's version: a rebuilt checkpoint never overwrites one in use.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration, MethodOptions, SFTRecipe, effective
from vsr1_core.rows.files import read_json, write_json
from vsr1_core.rows.versions import canonical, fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.methods import is_used
from vsr1_core.stages.model_folders import IN_TRAIN, ModelStage, known_options, model_row, options_of, train_videos
from vsr1_core.stages.moments import same_text_videos
from vsr1_core.stages.turns import TURN

if TYPE_CHECKING:
    from vsr1_core.models.checkpoints import LoadedPolicy
    from vsr1_core.training.grpo import EpisodeTrace
    from vsr1_core.training.runs import CurvePoint, TrainingRun
    from vsr1_core.training.sft import SFTData
EPISODE = pl.Struct(
    {
        "step": pl.Int64,
        "sample": pl.Int64,
        "query_id": pl.String,
        "query": pl.String,
        "gt_video_id": pl.String,
        "gt_start_s": pl.Float64,
        "gt_end_s": pl.Float64,
        "first_rank": pl.Int64,
        "rank": pl.Int64,
        **{f"reward_{part}": pl.Float64 for part in ("format", "verification", "retrieval", "grounding", "total")},
        "advantage": pl.Float64,
        "turns": pl.List(TURN),
    }
)
"""An episode of stage 2's training: samples of one group share step and query."""
TRAINER = "trainer"
"""Below an asset's files: the folders of trainings that are under way."""


@dataclass(frozen=True)
class Adopted:
    """A checkpoint from elsewhere that stands for a training: its folder, its digest, and where it is from."""

    path: str
    digest: str
    source: str


def _adopted_path(view: View, asset: str) -> Path:
    return view.files(asset) / "adopted.json"


def adopted(view: View, asset: str) -> Adopted | None:
    """What stands for `asset`'s training, if anything."""
    path = _adopted_path(view, asset)
    return Adopted(**read_json(path)) if path.exists() else None


def write_adopted(view: View, asset: str, checkpoint: Adopted) -> Path:
    """Let `checkpoint` stand for `asset`'s training from the next build on. Returns the record."""
    write_json(_adopted_path(view, asset), asdict(checkpoint))
    return _adopted_path(view, asset)


def _options_in(checkpoint: Adopted) -> dict[str, Any]:
    """The options in the checkpoint's own folder, which does not say with which seed it began."""
    recorded = read_json(Path(checkpoint.path) / "config.json")["soft_query"]
    return {f.name: recorded.get(f.name, f.default) for f in fields(MethodOptions)} | {"seed": None}


@dataclass(frozen=True)
class Trained:
    """What a training gives beside the weights: its curve, facts for the record, values of the stage's own columns."""

    curve: Sequence[CurvePoint]
    facts: Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)


class TrainedStage(ModelStage):
    """One checkpoint trained from `parent` (a stage and a row) on train rows only."""

    key: ClassVar[str] = "checkpoint"
    parent: ClassVar[tuple[str, str]]

    @abstractmethod
    def trains_on(self, view: View) -> dict[str, str]:
        """The versions of the train rows that this stage reads."""

    def trains(self, view: View) -> bool:
        return super().trains(view) and adopted(view, self.name) is None

    def records(self, view: View) -> list[Path]:
        return [_adopted_path(view, self.name)]

    def wanted(self, view: View) -> dict[str, Row]:
        given = adopted(view, self.name)
        if given is None:
            return super().wanted(view)
        made_with = known_options(_options_in(given))
        return {self.name: Row({"adopted": given.digest, "options": fingerprint(made_with)}, made_with)}

    def wanted_inputs(self, view: View, wanted: Mapping[str, Row]) -> dict[str, Any]:
        if adopted(view, self.name):
            return {row_id: dict(row.inputs) for row_id, row in wanted.items()}
        return super().wanted_inputs(view, wanted)

    def process(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        if given := adopted(view, self.name):
            record = json.dumps({"source": given.source})
            facts = {**asdict(given), **known_options(_options_in(given)), "record": record, "curve": []}
            yield {self.key: self.name, **facts}
        else:
            yield from super().process(view, ids, execution)

    def own_rows(self, view: View) -> dict[str, Row]:
        asset, row_id = self.parent
        inputs = {
            "parent": view.versions(asset).get(row_id, ""),
            "embedder": view.versions("base_models").get("embedder", ""),
            "corpus": fingerprint(sorted(train_videos(view).select("video_id", "content").rows())),
            **self.trains_on(view),
        }
        return {self.name: Row(inputs, known_options(self.made_with(options_of(view, asset, row_id))))}

    def made_with(self, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The options that the checkpoint has: those of the policy that it is trained from."""
        return options

    def train_here(self, view: View, execution: Execution, writes: bool = True) -> list[dict[str, Any]]:
        from vsr1_core.models.checkpoints import save_policy
        from vsr1_core.stages.loading import learning_policy_of, one_row

        asset, row_id = self.parent
        recipe = self.recipe(view.config)
        policy = learning_policy_of(view, execution, asset, row_id, getattr(recipe, "train_vision", False))
        trained = self.train(view, policy, execution)
        if not writes:
            return []
        parent = one_row(view, asset, row_id)
        record = {"recipe": canonical(recipe), "parent": parent["digest"], **trained.facts}
        folder, options = self.folder(view, self.name), self.made_with(parent["options"])
        row = model_row(self.name, folder, save_policy(policy, folder, record), record, trained.curve, options)
        row[self.key] = row.pop("model_id")
        return [row | {"parent": record["parent"], **trained.columns}]

    @abstractmethod
    def train(self, view: View, policy: LoadedPolicy, execution: Execution) -> Trained:
        """Train `policy` in place."""

    def training_run(self, view: View, execution: Execution) -> TrainingRun:
        """How it runs. A killed training goes on from its state, which lies by the version of the row it makes."""
        from vsr1_core.training.runs import TrainingRun

        return TrainingRun(
            folder=view.files(self.name).absolute() / TRAINER / self.folder(view, self.name).name,
            save_steps=execution.save_steps,
            trackers=execution.trackers,
            name=f"{view.entry.name}/{self.name}",
            log=execution.log,
        )

    def after_build(self, view: View) -> None:
        """The checkpoint is committed: what a stopped training would have gone on from is of no use any more."""
        folder = view.files(self.name) / TRAINER
        if folder.exists():
            from vsr1_core.training.runs import drop_state

            drop_state(folder)


class SFTCheckpoint(TrainedStage):
    """Stage 1 (METHOD 5). `examples`: the table of its rows."""

    name: ClassVar[str] = "sft_checkpoint"
    examples: ClassVar[str] = "sft_examples"
    parent: ClassVar[tuple[str, str]] = ("base_models", "policy")
    upstream: ClassVar[tuple[str, ...]] = ("base_models", "sft_examples", "video_embeddings", "frame_tensors")

    def recipe(self, config: Configuration) -> SFTRecipe:
        return effective(config.sft)

    def trains_on(self, view: View) -> dict[str, str]:
        return {self.examples: view.version_of(self.examples)}

    def rows_a_step(self, view: View) -> int:
        return self.recipe(view.config).batch_size

    def train(self, view: View, policy: LoadedPolicy, execution: Execution) -> Trained:
        from vsr1_core.stages.loading import embedder_of
        from vsr1_core.training.sft import train_sft

        recipe = self.recipe(view.config)
        data = _sft_data(view, self.examples, policy, execution, recipe.train_vision)
        curve = train_sft(policy, embedder_of(view, execution), data, recipe, self.training_run(view, execution))
        return Trained(curve, {"num_examples": len(data.examples)})


def _sft_data(
    view: View, examples_asset: str, policy: LoadedPolicy, execution: Execution, train_vision: bool
) -> SFTData:
    from vsr1_core.stages.loading import frame_store, layouts_of, vectors_of
    from vsr1_core.training.examples import build_examples
    from vsr1_core.training.sft import SFTData

    rows = view.rows(examples_asset).sort("query_id").to_dicts()
    store = frame_store(view, policy.model.model, execution, is_learning=train_vision)
    layouts = layouts_of(view, [r["shown_video_id"] for r in rows], policy.model.config)
    examples = build_examples(policy, rows, layouts)
    corpus = view.rows("video_embeddings", ["video_id", "splits"]).filter(IN_TRAIN)["video_id"].sort().to_list()
    vectors = dict(zip(corpus, vectors_of(view, "video_embeddings", corpus), strict=True))
    return SFTData(examples, store, vectors, same_text_videos(view))


class FineTunedCheckpoint(SFTCheckpoint):
    """The baseline: stage 1's rows without refinement (METHOD 9, FT)."""

    name: ClassVar[str] = "fine_tuned_checkpoint"

    def recipe(self, config: Configuration) -> SFTRecipe:
        return effective(config.fine_tuned)

    def is_made(self, config: Configuration) -> bool:
        return is_used(config, self.name)


class HardRefineCheckpoint(SFTCheckpoint):
    """Hard query refinement (METHOD 9, HQR): as stage 1, but the policy writes a new query in words."""

    name: ClassVar[str] = "hard_refine_checkpoint"
    examples: ClassVar[str] = "hard_refine_examples"
    upstream: ClassVar[tuple[str, ...]] = ("base_models", "hard_refine_examples", "video_embeddings", "frame_tensors")

    def recipe(self, config: Configuration) -> SFTRecipe:
        return effective(config.hard_refine)

    def is_made(self, config: Configuration) -> bool:
        return is_used(config, self.name)

    def made_with(self, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The checkpoint carries a prompt of its own; a configured one stays."""
        from vsr1_core.reasoning.conversation import HARD_REFINE_PROMPT

        return options and {**options, "system_prompt": options["system_prompt"] or HARD_REFINE_PROMPT}

    def train(self, view: View, policy: LoadedPolicy, execution: Execution) -> Trained:
        soft_query = policy.model.config.soft_query
        options = self.made_with({"system_prompt": soft_query["system_prompt"]}) or {}
        soft_query["system_prompt"] = options["system_prompt"]
        return super().train(view, policy, execution)


class DropAbovePositiveCheckpoint(SFTCheckpoint):
    """An ablation: stage 1 without the negatives that rank above the right video, as the authors' code has it."""

    name: ClassVar[str] = "drop_above_positive_checkpoint"

    def recipe(self, config: Configuration) -> SFTRecipe:
        return effective(replace(config.sft, drop_above_positive=True))

    def is_made(self, config: Configuration) -> bool:
        return is_used(config, self.name)


class GRPOCheckpoint(TrainedStage):
    """Stage 2 (METHOD 6), from stage 1's checkpoint. `episodes`: a sample of what the policy did, to be read."""

    name: ClassVar[str] = "grpo_checkpoint"
    columns: ClassVar[Mapping[str, Any]] = {**ModelStage.columns, "episodes": pl.List(EPISODE)}
    parent: ClassVar[tuple[str, str]] = ("sft_checkpoint", "sft_checkpoint")
    upstream: ClassVar[tuple[str, ...]] = (
        "base_models",
        "sft_checkpoint",
        "grpo_prompts",
        "video_index",
        "video_embeddings",
        "frame_tensors",
    )

    def recipe(self, config: Configuration) -> Any:
        return effective(config.grpo)

    def trains_on(self, view: View) -> dict[str, str]:
        return {"grpo_prompts": view.version_of("grpo_prompts")}

    def rows_a_step(self, view: View) -> int:
        """Queries: a group is sampled and scored in one process."""
        return min(view.config.grpo.queries_per_step, view.rows("grpo_prompts").height)

    def train(self, view: View, policy: LoadedPolicy, execution: Execution) -> Trained:
        from vsr1_core.search.index import read_index
        from vsr1_core.stages.loading import durations_of, embedder_of, frame_store, one_row, vectors_of
        from vsr1_core.training.grpo import GRPOPrompt, train_grpo

        rows = view.rows("grpo_prompts").sort("query_id").to_dicts()
        if not rows:
            raise ValueError("stage 2 has no prompts to train on: grpo_prompts is empty")
        prompts = [
            GRPOPrompt(
                query_id=r["query_id"],
                query=r["query"],
                gt_video_id=r["video_id"],
                start_s=r["start_s"],
                end_s=r["end_s"],
                duration_s=r["duration_s"],
                negative_ids=tuple(r["negative_ids"]),
                is_matched=r["label"] == "matched",
            )
            for r in rows
        ]
        index = read_index(Path(one_row(view, "video_index", "train")["path"]))
        vectors = dict(zip(index.ids, vectors_of(view, "video_embeddings", list(index.ids)), strict=True))
        result = train_grpo(
            policy,
            embedder_of(view, execution),
            prompts,
            index=index,
            features=frame_store(view, policy.model.model, execution),
            vectors=vectors,
            durations_s=durations_of(view),
            never=same_text_videos(view),
            recipe=self.recipe(view.config),
            run=self.training_run(view, execution),
            micro_batch_size=execution.micro_batch_size,
        )
        episodes = [_episode_row(trace) for trace in result.episodes]
        return Trained(result.curve, {"num_prompts": len(prompts)}, {"episodes": episodes})


def _episode_row(trace: EpisodeTrace) -> dict[str, Any]:
    """A traced episode as an EPISODE, its rewards side by side."""
    plain = asdict(trace)
    reward = plain.pop("reward")
    return plain | {f"reward_{part}": value for part, value in reward.items()}


STAGES: tuple[type[Stage], ...] = (
    *(FineTunedCheckpoint, HardRefineCheckpoint),
    *(SFTCheckpoint, DropAbovePositiveCheckpoint, GRPOCheckpoint),
)
