"""The base models as rows: trained from scratch on the dataset's captions (tiny), or resolved from configured ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from vsr1_core.recipes import Configuration
from vsr1_core.rows.versions import fingerprint
from vsr1_core.stages.base import Execution, Row, Stage, View
from vsr1_core.stages.model_folders import IN_TRAIN, ModelStage, model_row, train_videos
from vsr1_core.stages.moments import IS_TRAIN

if TYPE_CHECKING:
    from vsr1_core.reasoning.tasks import EventNote


class BaseModels(ModelStage):
    """`embedder` and `policy`: trained from scratch on the dataset's plain captions (tiny), or resolved from ids."""

    name: ClassVar[str] = "base_models"
    key: ClassVar[str] = "model_id"
    upstream: ClassVar[tuple[str, ...]] = ("moments", "frame_tensors")

    def recipe(self, config: Configuration) -> Any:
        return config.models

    def own_rows(self, view: View) -> dict[str, Row]:
        recipe = view.config.models
        if recipe.policy != "tiny":
            return {"embedder": Row({"model": recipe.embedder}), "policy": Row({"model": recipe.policy})}
        moments = view.rows("moments").filter(IS_TRAIN)
        frames = view.rows("frame_tensors", ["video_id", "content", "splits"]).filter(IN_TRAIN)
        if moments.is_empty() or frames.is_empty():
            raise ValueError(
                f"dataset {view.entry.name!r} has no train videos with captions to make tiny models from: "
                f"{moments.height} train moments, {frames.height} readable train videos. Put its videos into "
                f"{view.entry.videos}, or let it use another dataset's models: vsr1 dataset add ... --models-from toy"
            )
        read = moments.select("video_id", "start_s", "end_s", "plain_query", "query")
        inputs = {
            "captions": fingerprint(sorted(read.rows())),
            "frames": fingerprint(sorted(frames.select("video_id", "content").rows())),
        }
        return {"embedder": Row(inputs), "policy": Row(inputs)}

    def make(self, view: View, ids: Sequence[str], execution: Execution) -> Iterator[dict[str, Any]]:
        if view.config.models.policy == "tiny":
            yield from super().make(view, ids, execution)
        else:
            yield from _resolved(view, ids)

    def rows_a_step(self, view: View) -> int:
        from vsr1_core.training.contrastive import base_batch

        return base_batch(view.config.models, len(_captioned_events(view)))

    def train_here(self, view: View, execution: Execution, writes: bool = True) -> list[dict[str, Any]]:
        return _trained_base(self, view, execution, writes)


def _trained_base(stage: BaseModels, view: View, execution: Execution, writes: bool) -> list[dict[str, Any]]:
    """Both tiny models; the policy starts from the embedder's weights."""
    from vsr1_core.models.checkpoints import LoadedPolicy, save_embedder, save_policy
    from vsr1_core.models.policy import SoftQueryConfig, policy_from_body
    from vsr1_core.stages.loading import patches_of
    from vsr1_core.training.contrastive import train_base

    recipe, events = view.config.models, _captioned_events(view)
    moments = view.rows("moments").filter(IS_TRAIN)
    frames = {r["video_id"]: r for r in view.rows("frame_tensors").filter(IN_TRAIN).to_dicts()}
    embedder, curve = train_base(
        recipe, events, lambda v, config: patches_of(frames[v], config), _vocabulary(moments), execution.log
    )
    if not writes:
        return []
    record = {"recipe": fingerprint(recipe), "num_videos": len(events), "num_steps": recipe.contrastive_steps}
    folder = stage.folder(view, "embedder")
    digest = save_embedder(embedder, folder, record)
    embedder_row = model_row("embedder", folder, digest, record, curve)
    soft = SoftQueryConfig(
        embedding_size=embedder.hidden_size,
        embedder_hidden_size=embedder.hidden_size,
        num_soft_tokens=recipe.num_soft_tokens,
        accumulate=recipe.accumulate,
        seed_hidden=recipe.seed_hidden,
        system_prompt=recipe.system_prompt,
        embedder=digest,
    )
    policy = LoadedPolicy(policy_from_body(embedder.model, soft, recipe.seed), embedder.tokenizer)
    folder = stage.folder(view, "policy")
    return [embedder_row, model_row("policy", folder, save_policy(policy, folder, record), record, [])]


def _captioned_events(view: View) -> dict[str, list[EventNote]]:
    """Readable train video -> its captioned events in time order."""
    from vsr1_core.reasoning.tasks import EventNote

    readable = set(train_videos(view)["video_id"])
    columns = ("video_id", "start_s", "end_s", "plain_query")
    moments = view.rows("moments").filter(IS_TRAIN).sort("video_id", "start_s", "query_id").select(columns)
    events: dict[str, list[EventNote]] = {}
    for video_id, *note in moments.iter_rows():
        if video_id in readable:
            events.setdefault(video_id, []).append(EventNote(*note))
    return events


MAX_TIME_TOKEN_S = 30.0
"""Seconds up to here have tokens of their own in a tiny model's vocabulary."""


def _vocabulary(moments: pl.DataFrame) -> list[str]:
    """What the tokenizer learns to spell: the dataset's words and the method's own sentences."""
    from vsr1_core.models.embedder import INSTRUCTION
    from vsr1_core.reasoning.conversation import HARD_REFINE_PROMPT, SYSTEM_PROMPT, answer_text, user_text

    texts = [t for row in moments.sort("query_id").select("plain_query", "query").iter_rows() for t in row]
    frame = f"{INSTRUCTION} {SYSTEM_PROMPT} {user_text('')} <0.5 seconds> system\nuser\nassistant\n"
    answers = [answer_text("0.0-5.0: the query's", True, 0.0, 5.0), answer_text("missing: not shown", False)]
    answers += [HARD_REFINE_PROMPT, answer_text("missing: not shown", False, new_query="another")]
    longest_s = min(float(moments["duration_s"].max() or 0), MAX_TIME_TOKEN_S)  # type: ignore[arg-type]
    times = " ".join(f"{tenths / 10:.1f}" for tenths in range(int(10 * longest_s) + 1))
    return [*texts, *([frame, *answers, "yes no Closest", times] * 20)]


def _resolved(view: View, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows that point to the configured models' folders; a model that cannot be had is a failed row that says how."""
    from vsr1_core.models.checkpoints import digest_weights, fetch_model

    names = {"embedder": view.config.models.embedder, "policy": view.config.models.policy}
    for row_id in ids:
        try:
            folder = fetch_model(names[row_id])
        except (OSError, ValueError) as error:
            yield {"model_id": row_id, "error": f"model {names[row_id]!r} cannot be had: {error}"}
            continue
        yield model_row(row_id, folder, digest_weights(folder), {"model": names[row_id]}, []) | {
            "source": names[row_id]
        }


STAGES: tuple[type[Stage], ...] = (BaseModels,)
