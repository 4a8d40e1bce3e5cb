"""The base models as rows: trained from scratch on the dataset's captions (tiny), or fetched by configured ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from vsr1_core.input_form import PUBLISHED, QUERY_INSTRUCTION
from vsr1_core.models.published import hub_name, wrapper_of
from vsr1_core.recipes import Configuration, MethodOptions, ModelRecipe
from vsr1_core.rows.versions import canonical, fingerprint, fingerprint_of_all
from vsr1_core.segments import clipped, is_right, shown_span
from vsr1_core.stages import checks
from vsr1_core.stages.adopted import needs_base_policy
from vsr1_core.stages.base import Row, Stage, View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.loading import asked_with, frames_to_embed, one_row
from vsr1_core.stages.model_content import fetched_name, model_identity
from vsr1_core.stages.model_folders import IN_TRAIN, ModelStage, content_version, known_options, model_row, train_videos
from vsr1_core.stages.moments import IS_TRAIN, TRAIN, windows_by_video
from vsr1_core.stages.reads import every

if TYPE_CHECKING:
    from vsr1_core.models.family_protocols import TinyModel
    from vsr1_core.reasoning.tasks import EventNote


class BaseModels(ModelStage):
    """`embedder` and `policy`: trained from scratch on the dataset's plain captions (tiny), or fetched by their ids."""

    name = "base_models"
    key = "model_id"
    key_says = "Name of the base model: `embedder` or `policy`."
    version = 4
    says = (
        "The embedder and the policy that training starts from: small ones trained here where the configuration says "
        "`tiny`, else the configured models."
    )
    reads = {"captions": every("moments", IS_TRAIN), "frames": every("frame_tensors", IN_TRAIN)}
    checks = (checks.SOME_USABLE,)
    retries_failed = True
    searched_with = ("embedder",)
    unversioned_columns = ("path", "source")

    def recipe(self, config: Configuration) -> Any:
        models = config.models
        return models if models.is_tiny else [models.policy, models.embedder, models.options, *asked_with(config)]

    def own_rows(self, view: View) -> dict[str, Row]:
        """The embedder depends on no option of the policy, except the prompt of the tiny one. So videos are not
        embedded again when only the policy changes. A published embedder does not depend on the query instruction
        either, which changes no video: the stages that embed queries name it themselves."""
        recipe = view.config.models
        made_with = known_options(asdict(made_options(recipe)))
        if not recipe.is_tiny:
            return self._configured(view, made_with)
        inputs = self._trained_on(view)
        trained = [recipe.tiny, recipe.options.system_prompt, *asked_with(view.config)]
        return {
            "embedder": Row({**inputs, "recipe": fingerprint(trained)}),
            "policy": Row({**inputs, "recipe": fingerprint([*trained, recipe.options])}, made_with),
        }

    @staticmethod
    def _configured(view: View, made_with: Mapping[str, Any]) -> dict[str, Row]:
        """The rows of configured models. Their versions follow the content, so a folder that moved changes only the
        path in its row."""
        recipe = view.config.models
        embedder = model_identity(view, recipe.embedder)
        form = fingerprint(PUBLISHED.video_wrapper)
        rows = {"embedder": Row({"model": embedder, "recipe": form}, _place(recipe.embedder))}
        if recipe.policy and needs_base_policy(view):
            made_from = {
                "model": model_identity(view, recipe.policy),
                "recipe": fingerprint([embedder, made_options(recipe)]),
            }
            rows["policy"] = Row(made_from, {**made_with, **_place(recipe.policy)})
        return rows

    @staticmethod
    def _trained_on(view: View) -> dict[str, str]:
        moments = view.rows("moments", ["video_id", "start_s", "end_s", "plain_query", "query"], TRAIN)
        videos = train_videos(view)
        if moments.is_empty() or videos.is_empty():
            raise ValueError(
                f"dataset {view.entry.name!r} has no train videos with captions to make tiny models from: "
                f"{moments.height} train moments, {videos.height} readable train videos. Put its videos into "
                f"{view.entry.videos}, or let it use another dataset's models: vsr1 dataset add ... --models-from toy"
            )
        captions = moments.sort(moments.columns, maintain_order=True)
        return {"captions": fingerprint_of_all(captions.iter_rows()), "frames": content_version(videos)}

    def make_own(self, view: View, rows: Mapping[str, Row], run: Execution) -> Iterator[dict[str, Any]]:
        if not view.config.models.is_tiny:
            yield from _resolved(view, rows, run.log)
        elif "embedder" in rows:
            yield from super().make_own(view, rows, run)
        else:  # only options of the policy changed: it takes the weights of the present embedder
            yield _tiny_policy(self, view, *_tiny_embedder(one_row(view, self.name, "embedder")))

    def num_steps(self, view: View) -> int:
        tiny = view.config.models.tiny
        return tiny.vision_pretraining_steps + tiny.contrastive_steps

    def rows_a_step(self, view: View) -> int:
        from vsr1_core.training.contrastive import base_batch

        return base_batch(view.config.models.tiny, len(_captioned_events(view)))

    def train_here(self, view: View, run: Execution, writes: bool = True) -> list[dict[str, Any]]:
        return _trained_base(self, view, run, writes)


def _trained_base(stage: BaseModels, view: View, run: Execution, writes: bool) -> list[dict[str, Any]]:
    """Train both tiny models and return their rows. The policy starts from the embedder's weights."""
    from vsr1_core.models.checkpoints import save_embedder
    from vsr1_core.training.contrastive import train_base

    models, events = view.config.models, _captioned_events(view)
    recipe, prompt, instruction = models.tiny, models.options.system_prompt, models.query_instruction
    moments = view.rows("moments").filter(IS_TRAIN)
    frames = {r["video_id"]: r for r in view.rows("frame_tensors").filter(IN_TRAIN).to_dicts()}
    load = lambda segment_id: frames_to_embed(frames[segment_id])  # noqa: E731
    embedder, curve = train_base(recipe, prompt, events, load, _vocabulary(moments, instruction), run.log, instruction)
    if not writes:
        return []
    record = {"recipe": canonical(recipe), "system_prompt": prompt, "num_videos": len(events)}
    folder = stage.folder(view, "embedder")
    digest = save_embedder(embedder, folder, record)
    embedder_row = model_row(stage.key, "embedder", folder, digest, record, curve, None)
    return [embedder_row, _tiny_policy(stage, view, embedder, digest)]


def _tiny_embedder(row: Mapping[str, Any]) -> tuple[TinyModel, str]:
    """(embedder of an earlier build, on the CPU; its digest)."""
    import torch

    from vsr1_core.models.registry import tiny_family

    return tiny_family().load_embedder(Path(row["path"]), "cpu", torch.float32, QUERY_INSTRUCTION), row["digest"]


def _tiny_policy(stage: BaseModels, view: View, embedder: TinyModel, digest: str) -> dict[str, Any]:
    """Save a policy with the embedder's weights and its own options; its row. digest: that of the embedder."""
    from vsr1_core.models.checkpoints import save_policy
    from vsr1_core.models.soft_query import soft_query_of

    options = view.config.models.options
    sizes = embedder.hidden_size, embedder.embedding_size
    soft_query = soft_query_of(options, *sizes, digest, trained_with="template")
    policy = embedder.new_policy(soft_query, options.seed)
    record = {"recipe": canonical(view.config.models.tiny), "options": canonical(options)}
    folder = stage.folder(view, "policy")
    digest = save_policy(policy, folder, record)
    return model_row(stage.key, "policy", folder, digest, record, [], asdict(made_options(view.config.models)))


def _captioned_events(view: View) -> dict[str, list[EventNote]]:
    """Readable train segment -> the captioned events that it is right for, in the order of their times, which count
    from its start."""
    from vsr1_core.reasoning.tasks import EventNote

    readable, windows = set(train_videos(view)["video_id"]), windows_by_video(view)
    columns = ("video_id", "start_s", "end_s", "plain_query")
    moments = view.rows("moments").filter(IS_TRAIN).sort("video_id", "start_s", "query_id").select(columns)
    events: dict[str, list[EventNote]] = {}
    for video_id, *span, caption in moments.iter_rows():
        for segment_id in windows.get(video_id, [video_id]):
            if segment_id in readable and is_right(segment_id, video_id, *span):
                first_s, _ = shown_span(segment_id, 0.0)
                start_s, end_s = clipped(segment_id, *span)
                events.setdefault(segment_id, []).append(EventNote(start_s - first_s, end_s - first_s, caption))
    return events


MAX_TIME_TOKEN_S = 30.0
"""Times up to so many seconds have tokens of their own in a tiny model's vocabulary."""


def _vocabulary(moments: pl.DataFrame, instruction: str) -> list[str]:
    """The texts that the tokenizer is trained on: the dataset's captions and the sentences of the method."""
    from vsr1_core.reasoning.conversation import HARD_REFINE_PROMPT, SYSTEM_PROMPT, answer_text, user_text

    texts = [t for row in moments.sort("query_id").select("plain_query", "query").iter_rows() for t in row]
    frame = f"{instruction} {SYSTEM_PROMPT} {user_text('')} <0.5 seconds> system\nuser\nassistant\n"
    answers = [answer_text("0.0-5.0: the query's", True, 0.0, 5.0), answer_text("missing: not shown", False)]
    answers += [HARD_REFINE_PROMPT, answer_text("missing: not shown", False, new_query="another")]
    longest_s = min(float(moments["duration_s"].max() or 0), MAX_TIME_TOKEN_S)  # type: ignore[arg-type]
    times = " ".join(f"{tenths / 10:.1f}" for tenths in range(int(10 * longest_s) + 1))
    return [*texts, *([frame, *answers, "yes no Closest", times] * 20)]


def made_options(recipe: ModelRecipe) -> MethodOptions:
    """The options that the policy is made with, in which the form names the video wrapper."""
    wrapper = "template" if recipe.is_tiny else wrapper_of(recipe.policy)
    return replace(recipe.options, form=recipe.options.form.resolved(wrapper))


def _place(name: str) -> dict[str, str]:
    """Columns that say where a local folder is; empty for a model on the hub, whose folder a plan does not know."""
    if not Path(name).is_dir():
        return {}
    return dict.fromkeys(("path", "source"), str(Path(name).absolute()))  # a kept `./` is the home, not this folder


def _resolved(view: View, ids: Iterable[str], log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Rows that point to the folders of the configured models. A model that cannot be fetched is a failed row. What is
    peculiar about the embedder is said here, once, and not wherever it is opened."""
    from vsr1_core.models.checkpoints import fetch_model
    from vsr1_core.models.registry import family_of
    from vsr1_core.models.weights import digest_weights

    recipe = view.config.models
    for row_id in ids:
        name = recipe.policy if row_id == "policy" else recipe.embedder
        made_with = made_options(recipe) if row_id == "policy" else None
        options = asdict(made_with) if made_with else None
        try:
            folder = fetch_model(fetched_name(view, row_id, name))
            if made_with:
                _check_options(name, folder, made_with)
            elif notice := family_of(folder).insertion_place(folder).notice(name):
                log(notice)
        except (OSError, ValueError) as error:
            yield {BaseModels.key: row_id, **known_options(options), "error": f"model {name!r} cannot be used: {error}"}
            continue
        record = {"model": name, **({"options": options} if options else {})}
        if not Path(name).is_dir():
            record["revision"] = folder.name  # the hub client names a snapshot by its commit
        digest = digest_weights(folder)
        source = _place(name).get("source", hub_name(name)[0])
        yield model_row(BaseModels.key, row_id, folder, digest, record, [], options) | {"source": source}


def _check_options(name: str, folder: Path, options: MethodOptions) -> None:
    """Raise ValueError where the policy's own soft query modules were made with other options than configured."""
    from vsr1_core.models.soft_query import own_soft_query

    own = own_soft_query(folder)
    names = [f.name for f in fields(options) if f.name not in ("seed", "form")]
    other = {k: getattr(own, k) for k in names if own and getattr(own, k) != getattr(options, k)}
    if own and own.form != options.form:
        other |= {f"form.{k}": v for k, v in asdict(own.form).items() if getattr(options.form, k) != v}
    if other:
        raise ValueError(
            f"{name} was made with other options than the configuration asks for; set its own in "
            f"ModelRecipe(options=...): {', '.join(f'{k}={v!r}' for k, v in other.items())}"
        )


STAGES: tuple[type[Stage], ...] = (BaseModels,)
