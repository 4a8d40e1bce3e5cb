"""The checkpoints that are trained: one stage per entry of `methods.TRAINED`. `vsr1_core.training` trains them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.recipes import Configuration, effective
from vsr1_core.rows.versions import canonical, fingerprint
from vsr1_core.stages import columns as c
from vsr1_core.stages.adopted import adopted, adopted_path, is_trained_here
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.columns import Column, dtypes
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.loading import asked_with
from vsr1_core.stages.methods import TRAINED, Trained, is_made
from vsr1_core.stages.model_folders import (
    IN_TRAIN,
    ModelStage,
    content_version,
    is_absent,
    known_options,
    model_row,
    options_of,
    train_videos,
)
from vsr1_core.stages.moments import right_segments, same_text_videos, train_moments
from vsr1_core.stages.opened import OpenedModels
from vsr1_core.stages.reads import EMBEDDER, every, one
from vsr1_core.stages.turns import TURN
from vsr1_core.training.rewards import reward_columns

if TYPE_CHECKING:
    from vsr1_core.models.protocols import PolicyModel
    from vsr1_core.training.runs import CurvePoint, TrainingRun
    from vsr1_core.training.sft import SFTData
    from vsr1_core.training.traces import EpisodeTrace

EPISODE_COLUMNS: Mapping[str, Column] = {
    "step": c.integer("Training step in which the episode was sampled."),
    "sample": c.integer("Number of the episode in its group, counted from 0."),
    "query_id": c.QUERY_ID,
    "query": c.QUERY,
    "gt_video_id": c.GT_VIDEO_ID,
    "gt_start_s": c.GT_START_S,
    "gt_end_s": c.GT_END_S,
    "first_rank": c.FIRST_RANK,
    "rank": c.RANK,
    **{name: c.number(says) for name, says in reward_columns().items()},
    "advantage": c.number("How far it was above its group: (reward - mean) / (standard deviation + 1e-4)."),
    "turns": Column(pl.List(TURN), "Turns of the episode, one struct per turn."),
}
EPISODE = pl.Struct(dtypes(EPISODE_COLUMNS))
"""Polars type of an episode of stage 2's training. Episodes of one group have the same step and query."""
TRAINER = "trainer"
"""Subfolder of an asset's files that holds the state of unfinished trainings."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training returns in addition to the weights.

    curve: the logged values. facts: entries of the record. columns: values of the stage's own columns.
    """

    curve: Sequence[CurvePoint]
    facts: Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)


class TrainedStage(ModelStage):
    """One checkpoint, trained as its entry of `methods.TRAINED` says, from train rows only."""

    key = "checkpoint"

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.name, self.says, self.version = trained.name, trained.says, trained.version
        self.reads = {
            "parent": one(*trained.parent),
            "embedder": EMBEDDER,
            "corpus": every("frame_tensors", IN_TRAIN),
            trained.examples: every(trained.examples),
        }

    def recipe(self, config: Configuration) -> Any:
        recipe: Any = self.trained.recipe(config)
        return effective(recipe)

    def is_made(self, config: Configuration) -> bool:
        return is_made(config, self.trained)

    def trains(self, view: View) -> bool:
        return super().trains(view) and adopted(view, self.name) is None

    def records(self, view: View) -> list[Path]:
        return [adopted_path(view.lake, view.entry.name, self.name)]

    def plan(self, view: View) -> dict[str, Row]:
        checkpoint = adopted(view, self.name)
        if checkpoint is None:
            return super().plan(view)
        made_with = known_options(checkpoint.options)
        # The digest covers the config, which records the form; so the form is not named here a second time.
        asked = {name: value for name, value in checkpoint.options.items() if name != "form"}
        inputs = {"adopted": checkpoint.digest, "options": fingerprint(known_options(asked))}
        return {self.name: Row(inputs, made_with, is_borrowed=True, facts=checkpoint)}

    def make(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        checkpoint = rows[self.name].facts
        if checkpoint is None:
            yield from super().make(view, rows, run)
            return
        record = json.dumps({"source": checkpoint.source})
        facts = {**known_options(checkpoint.options), "record": record, "curve": []}
        yield {self.key: self.name, **asdict(checkpoint), **facts}

    def own_rows(self, view: View) -> dict[str, Row]:
        """No row without train queries or without a policy to start from: such a dataset is evaluated with the policies
        that it has."""
        asset, row_id = self.trained.parent
        if not is_trained_here(view, self.trained) or is_absent(view, asset, row_id) or not train_moments(view):
            return {}
        inputs = {
            "parent": view.version(asset, row_id),
            "embedder": view.version("base_models", "embedder"),
            "corpus": content_version(train_videos(view)),
            self.trained.examples: fingerprint(sorted(view.versions(self.trained.examples).items())),
        }
        if instruction := asked_with(view.config):  # the loss of retrieval embeds queries
            inputs["query_instruction"] = fingerprint(instruction)
        return {self.name: Row(inputs, known_options(self.made_with(options_of(view, asset, row_id))))}

    def made_with(self, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The options of the checkpoint: those of its parent, with the training's prompt where the parent has none."""
        return options and {**options, "system_prompt": options["system_prompt"] or self.trained.prompt}

    def train_here(self, view: View, run: Execution, writes: bool = True) -> list[dict[str, Any]]:
        from vsr1_core.models.checkpoints import save_policy
        from vsr1_core.stages.loading import learning_policy_of, one_row

        asset, row_id = self.trained.parent
        recipe = self.recipe(view.config)
        trains_vision, lora_rank = getattr(recipe, "train_vision", False), getattr(recipe, "lora_rank", 0)
        policy = learning_policy_of(view, run, asset, row_id, trains_vision, lora_rank)
        soft_query = policy.model.config.soft_query
        soft_query["system_prompt"] = soft_query["system_prompt"] or self.trained.prompt
        result = self.train(view, policy, run)
        if not writes:
            return []
        parent = one_row(view, asset, row_id)
        record = {"recipe": canonical(recipe), "parent": parent["digest"], **result.facts}
        folder, options = self.folder(view, self.name), self.made_with(parent["options"])
        digest = save_policy(policy, folder, record)
        row = model_row(self.key, self.name, folder, digest, record, result.curve, options)
        return [row | {"parent": record["parent"], **result.columns}]

    def num_steps(self, view: View) -> int:
        return int(self.recipe(view.config).steps)

    @abstractmethod
    def train(self, view: View, policy: PolicyModel, run: Execution) -> TrainingResult:
        """Train `policy` in place and return what its row needs in addition to the weights."""

    def training_run(self, view: View, run: Execution) -> TrainingRun:
        """How the training runs. A killed one resumes from its state, whose folder is named by the row's version."""
        from vsr1_core.training.runs import TrainingRun

        return TrainingRun(
            folder=view.files(self.name).absolute() / TRAINER / self.folder(view, self.name).name,
            save_steps=run.save_steps,
            trackers=run.trackers,
            name=f"{view.entry.name}/{self.name}",
            log=run.log,
        )

    def after_build(self, view: View) -> None:
        """Delete the saved training state: the checkpoint is committed, so no training will resume from it."""
        folder = view.files(self.name) / TRAINER
        if folder.exists():
            from vsr1_core.training.runs import drop_state

            drop_state(folder)


class SFTCheckpoint(TrainedStage):
    """A checkpoint that is trained on written answers: stage 1, the fine-tuned baselines, and ablations of stage 1."""

    uses = ("video_embeddings",)

    def rows_a_step(self, view: View) -> int:
        return int(self.recipe(view.config).batch_size)

    def train(self, view: View, policy: PolicyModel, run: Execution) -> TrainingResult:
        from vsr1_core.stages.loading import embedder_of
        from vsr1_core.training.sft import train_sft

        recipe = self.recipe(view.config)
        data = _sft_data(view, self.trained.examples, policy, run, recipe.train_vision)
        curve = train_sft(policy, embedder_of(view, run), data, recipe, self.training_run(view, run))
        return TrainingResult(curve, {"num_examples": len(data.examples)})


POSITIVE = "positive_id"


def _with_positives(view: View, examples_asset: str) -> Iterator[dict[str, Any]]:
    """The rows that a checkpoint is trained on, sorted by id. POSITIVE is the segment that a refined query is drawn to:
    the right video, or its window with most of the moment. A query is left out where no window has enough of it."""
    right = right_segments(view)
    for row in view.rows(examples_asset).sort("query_id").iter_rows(named=True):
        if (positive := right.get(row["query_id"], row["gt_video_id"])) is not None:
            yield {**row, POSITIVE: positive}


def _sft_data(view: View, examples_asset: str, policy: PolicyModel, run: Execution, train_vision: bool) -> SFTData:
    from vsr1_core.stages.loading import frame_store, layouts_of, vectors_of
    from vsr1_core.training.examples import build_examples
    from vsr1_core.training.sft import SFTData

    rows = [{**row, "gt_video_id": row[POSITIVE]} for row in _with_positives(view, examples_asset)]
    store = frame_store(view, policy.encoder, run, is_learning=train_vision)
    layouts = layouts_of(view, [r["shown_video_id"] for r in rows], policy.encoder)
    examples = build_examples(policy, rows, layouts)
    corpus = view.rows("video_embeddings", ["video_id", "splits"]).filter(IN_TRAIN)["video_id"].sort().to_list()
    vectors = dict(zip(corpus, vectors_of(view, "video_embeddings", corpus), strict=True))
    return SFTData(examples, store, vectors, same_text_videos(view))


class GRPOCheckpoint(TrainedStage):
    """Stage 2, which starts from stage 1's checkpoint. `episodes` holds some of its search episodes, for people."""

    uses = ("video_index", "video_embeddings", "query_embeddings")
    columns = {
        **ModelStage.columns,
        "episodes": Column(
            pl.List(EPISODE),
            "Some of the episodes that training sampled; the views `grpo_episodes` and `grpo_turns` have them as rows.",
        ),
    }

    def rows_a_step(self, view: View) -> int:
        """Number of queries per step: the episodes of one query are sampled and scored in one process."""
        recipe = self.recipe(view.config)
        return min(recipe.queries_per_step, view.rows(self.trained.examples).height)

    def train(self, view: View, policy: PolicyModel, run: Execution) -> TrainingResult:
        from vsr1_core.stages.loading import vectors_of, with_writer
        from vsr1_core.training.grpo import train_grpo

        policy = with_writer(view, policy, *self.trained.parent, run.rollout_writer, learns=True)
        prompts = self._prompts(view)
        opened = OpenedModels(view, run)
        index = opened.index("train")
        vectors = dict(zip(index.ids, vectors_of(view, "video_embeddings", list(index.ids)), strict=True))
        result = train_grpo(
            policy,
            opened.embedder,
            prompts,
            index=index,
            features=opened.features(policy),
            vectors=vectors,
            durations_s=opened.durations_s,
            never=same_text_videos(view),
            recipe=self.recipe(view.config),
            run=self.training_run(view, run),
            micro_batch_size=run.micro_batch_size,
        )
        if policy.writer is not None:
            policy.writer.close()
        episodes = [_episode_row(trace) for trace in result.episodes]
        return TrainingResult(result.curve, {"num_prompts": len(prompts)}, {"episodes": episodes})

    def _prompts(self, view: View) -> list[Any]:
        from vsr1_core.stages.loading import vectors_of
        from vsr1_core.training.grpo import GRPOPrompt

        rows = list(_with_positives(view, self.trained.examples))
        if not rows:
            raise ValueError(f"stage 2 has no prompts to train on: {self.trained.examples} is empty")
        vectors = vectors_of(view, "query_embeddings", [r["query_id"] for r in rows])
        return [
            GRPOPrompt(
                query_id=r["query_id"],
                query=r["query"],
                gt_video_id=r["gt_video_id"],
                start_s=r["start_s"],
                end_s=r["end_s"],
                duration_s=r["duration_s"],
                negative_ids=tuple(r["negative_ids"]),
                is_matched=r["label"] == "matched",
                vector=vector,
                positive_id=r[POSITIVE],
            )
            for r, vector in zip(rows, vectors, strict=True)
        ]


def _episode_row(trace: EpisodeTrace) -> dict[str, Any]:
    """A traced episode as a value of EPISODE, with each reward in a column of its own."""
    plain = asdict(trace)
    del plain["reward"]
    return plain | trace.reward.columns


def trained_stage(trained: Trained) -> TrainedStage:
    """The stage of an entry of `methods.TRAINED`."""
    return GRPOCheckpoint(trained) if trained.searches else SFTCheckpoint(trained)


STAGES: tuple[Callable[[], Stage], ...] = tuple(partial(trained_stage, trained) for trained in TRAINED.values())
