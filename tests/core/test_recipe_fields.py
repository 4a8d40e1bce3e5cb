"""Every field of every recipe in every configuration: either a version depends on it, or it is listed as unused.

The rows that stages want are compared on the same committed tables, with the configuration as it is and with one field
changed. A stage is asked again only where a part of the configuration changed that it read before: of the same tables
and the same parts it wants the same rows. `test_published_build` shows that what is made reads what bears a version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from tests.cheap_stages import cheap_stages
from tests.small_world import SmallWorld, build, fill
from vsr1_core.configurations import CONFIGURATIONS, NANO
from vsr1_core.datasets import toy
from vsr1_core.datasets.registry import DatasetEntry
from vsr1_core.input_form import AUTHORS, InputForm
from vsr1_core.recipes import Configuration, MethodOptions, ModelRecipe, SFTRecipe
from vsr1_core.rows.lake import Lake
from vsr1_core.rows.versions import canonical, row_version
from vsr1_core.stages import methods
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import all_stages
from vsr1_core.stages.readings import Reading

pytestmark = pytest.mark.slow

PUBLISHED_NANO = dataclasses.replace(
    NANO, name="published-nano", models=ModelRecipe("published/policy", "published/embedder")
)
EVERY = {**CONFIGURATIONS, "published-nano": PUBLISHED_NANO}
OTHERS: dict[str, Any] = {
    "name": "another",
    "retrain": "sometimes",
    "toy.num_events": (1, 2),
    "toy.moments_per_train_video": 1,
    "toy.seconds_per_event": (4, 6),
    "frames.backend": "ffmpeg",
    "frames.rule": "paper",
    "frames.store": "jpeg",
    "models.options.seed_hidden": "pre_norm",
    "models.options.form.video_wrapper": "template",
    "models.options.form.time_marks": "frame_count",
    "models.options.form.shown_frames": "paper",
    "retrieval.index": "hnsw",
    "pool.num_matched": 0,
    "pool.num_not_matched": 0,
    "pool.random_share": 1.0,
    "teacher.kind": "by hand",
    "teacher.frames_as": "video",
    "sft.refine": "none",
    "fine_tuned.refine": "soft",
    "hard_refine.refine": "soft",
    "sft.schedule": "constant",
    "grpo.loss_type": "dapo",
    "evaluation.methods": ("zero_shot", "sqr_sft"),
    "evaluation.splits": ("train", "test"),
}
"""What a field is changed to where one more, the opposite or another word does not serve."""


def leaves(recipe: Any, prefix: str = "") -> Iterator[str]:
    """The fields of a recipe and of the recipes in it, as dotted paths."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def value_at(recipe: Any, path: str) -> Any:
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


def with_value(recipe: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    return dataclasses.replace(recipe, **{name: with_value(getattr(recipe, name), rest, value) if rest else value})


def another(config: Configuration, path: str) -> Any:
    """Another value of the field's type."""
    value = value_at(config, path)
    if path in OTHERS and OTHERS[path] != value:
        return OTHERS[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return value + 1 if isinstance(value, int) else f"{value} another"


SEARCHES = (
    *("refine_lr", "retrieval_weight", "retrieval_warmup_ratio", "temperature", "num_negatives"),
    *("in_batch_positives", "all_negatives", "first_latents"),
    *("drop_above_positive", "drop_above_positive_when_refined"),
)


def unused(config: Configuration) -> dict[str, str]:
    """path -> why it changes nothing where videos and annotations are given. The whole list, written out by hand."""
    found = {"retrain": "it decides when automation trains, never what"}
    found |= {f"toy.{name}": "no video is rendered" for name in leaves(config.toy)}
    if config.models.policy != "tiny":
        found |= {f"models.tiny.{name}": "published models are not trained" for name in leaves(config.models.tiny)}
    for part in ("sft", "fine_tuned", "hard_refine"):
        found |= {f"{part}.{name}": why for name, why in unused_of_sft(getattr(config, part)).items()}
    if config.grpo.temperature != 1:
        found["grpo.clip"] = "the ratio that is clipped is 1"
    if config.frames.store != "jpeg":
        found["frames.jpeg_quality"] = "frames are kept as they were decoded"
    if not config.segments.window_s:
        found["segments.overlap"] = "no video is divided"
    if config.grpo.queries_per_step == 1:
        found["grpo.matched_share"] = "a step has one query"
    for part in ("fine_tuned", "hard_refine"):
        if not any(methods.ALL[method].model == f"{part}_checkpoint" for method in config.evaluation.methods):
            found |= {f"{part}.{name}": "no reported method searches with it" for name in leaves(config.sft)}
    return found


def unused_of_sft(recipe: SFTRecipe) -> dict[str, str]:
    found = {}
    if recipe.refine != "soft":
        found |= dict.fromkeys(SEARCHES, "nothing is searched with in this training")
    elif recipe.all_negatives:
        found |= dict.fromkeys(("num_negatives", "in_batch_positives"), "every video is a negative")
    if recipe.early_stop_patience == 0:
        found |= dict.fromkeys(("validation_steps", "validation_share"), "nothing is validated")
    return found


REFUSED = {"models.policy", "models.embedder"}
"""Of tiny configurations: one without the other is an error (`test_recipes`)."""


def versions(view: View, config: Configuration, stages: tuple[str, ...] = ()) -> dict[str, dict[str, str]]:
    """Stage -> row id -> version, as wanted on the tables as they are."""
    return {name: wanted(view, config, name) for name in stages or view.stages}


def wanted(view: View, config: Configuration, name: str) -> dict[str, str]:
    view.config, stage = config, view.stages[name]
    inputs = stage.inputs_of(view, stage.planned_rows(view))
    return {row_id: row_version(of_row) for row_id, of_row in inputs.items()}


Parts = tuple[str, ...]
PARTS: Parts = tuple(field.name for field in dataclasses.fields(Configuration))


class Noting(Configuration):
    """A configuration that notes which of its parts are read."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        if name in PARTS:
            Noting.read.add(name)
        return super().__getattribute__(name)


Noting.__name__ = Configuration.__name__  # which is part of the version of a configuration as a whole


def kept_versions(view: Committed, config: Configuration) -> dict[str, dict[str, str]]:
    """`versions`; a stage is asked where none of its answers so far read the same."""
    parts = spelled(config)
    return {name: kept(view, config, parts, name) for name in view.stages}


def spelled(config: Configuration) -> dict[str, str]:
    """Part -> its value as text: 1 and 1.0 are equal, and two versions."""
    return {part: repr(getattr(config, part)) for part in PARTS}


def kept(view: Committed, config: Configuration, parts: dict[str, str], name: str) -> dict[str, str]:
    answers = view.answers.setdefault(name, {})
    for read, of_values in answers.items():
        values = tuple(parts[part] for part in read)
        if values in of_values:
            return of_values[values]
    noting = Noting(*(getattr(config, part) for part in PARTS))
    Noting.read.clear()
    answer = wanted(view, noting, name)
    read = tuple(sorted(Noting.read))
    answers.setdefault(read, {})[tuple(parts[part] for part in read)] = answer
    return answer


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Committed:
    """A corpus of given videos, built with every method there is."""
    world = fill(SmallWorld(tmp_path_factory.mktemp("home")), num_train=9)
    evaluation = dataclasses.replace(NANO.evaluation, methods=tuple(methods.ALL), num_resamples=2)
    built = world.view(cheap_stages(), dataclasses.replace(NANO, evaluation=evaluation))
    build(built)
    stages = {n: stage for n, stage in all_stages().items() if not n.startswith("predictions.") or "+" not in n}
    return Committed(built.lake, built.entry, built.config, stages, home=world.home)


@dataclasses.dataclass
class Committed(View):
    """Tables that nobody changes, so each is read once. answers: stage -> parts of the configuration that it read ->
    their values -> the versions of the rows that it wants."""

    kept: dict[Reading, pl.DataFrame] = dataclasses.field(default_factory=dict)
    answers: dict[str, dict[Parts, dict[Parts, dict[str, str]]]] = dataclasses.field(default_factory=dict)

    def read(self, reading: Reading) -> pl.DataFrame:
        if reading not in self.kept:
            self.kept[reading] = super().read(reading)
        return self.kept[reading]


def fitted(config: Configuration) -> Configuration:
    """With a pool that fits the corpus of 18 train queries: of those whose first video is wrong, it matters which three
        are drawn, and those whose first video is right are fewer than asked for, so it matters whether the rest is
    filled."""
    pool = dataclasses.replace(config.pool, num_matched=17, num_not_matched=3)
    return dataclasses.replace(config, pool=pool)


def moved(view: Committed, before: dict[str, dict[str, str]], config: Configuration) -> set[str]:
    after = kept_versions(view, config)
    return {name for name in before if after[name] != before[name]}


def moves_any(view: Committed, before: dict[str, dict[str, str]], config: Configuration, order: list[str]) -> bool:
    """Whether any stage's versions differ. The one that did comes first in `order` the next time: fields that stand
    beside each other in a recipe mostly move the same stage."""
    parts = spelled(config)
    for place, name in enumerate(order):
        if kept(view, config, parts, name) != before[name]:
            order.insert(0, order.pop(place))
            return True
    return False


@pytest.mark.parametrize("name", EVERY)
def test_each_field_moves_a_version_or_is_listed_as_unused(view: Committed, name: str) -> None:
    config = fitted(EVERY[name])
    before = kept_versions(view, config)
    still, order = set(), list(before)
    for path in leaves(config):
        if config.models.is_tiny and path in REFUSED:
            continue
        if not moves_any(view, before, with_value(config, path, another(config, path)), order):
            still.add(path)
    no_policy = set() if config.models.policy else {p for p in leaves(config) if p.startswith("models.options.")}
    assert still == set(unused(config)) | no_policy


@pytest.mark.parametrize("name", EVERY)
def test_answers_that_are_kept_are_those_of_stages_that_are_asked(view: Committed, name: str) -> None:
    config = fitted(EVERY[name])
    assert kept_versions(view, config) == versions(view, config)


@pytest.mark.parametrize("name", ["tiny", "nano", "qwen3-vl-2b"])
def test_an_unused_field_counts_where_it_has_an_effect(view: Committed, name: str) -> None:
    """The conditions of the list, from the other side."""
    config = fitted(EVERY[name])
    for changes, counts in (
        ({"sft.early_stop_patience": 3}, ("sft.validation_steps", "sft.validation_share")),
        (
            {"fine_tuned.refine": "soft", "fine_tuned.all_negatives": False},
            tuple(f"fine_tuned.{field}" for field in SEARCHES),
        ),
        ({"grpo.queries_per_step": 1}, ()),
        ({"grpo.temperature": 0.7}, ()),
        ({"segments.window_s": 4.0}, ("segments.overlap",)),
        ({"frames.store": "jpeg"}, ("frames.jpeg_quality",)),
    ):
        changed = config
        for path, value in changes.items():
            changed = with_value(changed, path, value)
        before = kept_versions(view, changed)
        listed = set(unused(changed))
        for path in counts:
            assert path not in listed
            assert moved(view, before, with_value(changed, path, another(changed, path))), path
        for path in listed & {"grpo.clip", "grpo.matched_share"}:
            assert not moved(view, before, with_value(changed, path, another(changed, path))), path
        assert len(listed & {"grpo.clip", "grpo.matched_share"}) == sum("grpo" in path for path in changes)


@pytest.mark.parametrize("name", [name for name, config in EVERY.items() if config.models.policy])
@pytest.mark.parametrize("option", list(leaves(MethodOptions())))
def test_an_option_of_the_method_moves_the_policy_and_nothing_else_of_its_own(
    view: Committed, name: str, option: str
) -> None:
    """What follows reads the policy. The tiny embedder is trained with the prompt, so it alone moves with that."""
    config, path = fitted(EVERY[name]), f"models.options.{option}"
    before = kept_versions(view, config)
    changed = with_value(config, path, another(config, path))
    assert moved(view, before, changed) == {"base_models"}
    rows = {i for i, v in kept_versions(view, changed)["base_models"].items() if v != before["base_models"][i]}
    with_embedder = config.models.is_tiny and option == "system_prompt"
    assert rows == ({"policy", "embedder"} if with_embedder else {"policy"})


@pytest.mark.parametrize("name", ["nano", "published-nano"])
def test_the_query_instruction_moves_what_embeds_queries_and_no_video(view: Committed, name: str) -> None:
    """A tiny embedder is trained with it; a published one is only told it."""
    config = fitted(EVERY[name])
    before = kept_versions(view, config)
    changed = with_value(config, "models.query_instruction", "Find the video.")
    searching = {asset for asset in before if asset.startswith("predictions.")}
    trained = {"sft_checkpoint", "grpo_checkpoint"}
    found = moved(view, before, changed)
    assert found >= {"query_embeddings", *searching, *trained}
    assert "video_embeddings" not in found
    assert ("base_models" in found) == config.models.is_tiny


def test_a_setting_that_was_added_later_leaves_the_rows_of_existing_homes_as_they_are() -> None:
    """While it has its default, a version is what it was before the setting existed."""
    of_models = ((NANO.models.options, "form"), (NANO.models, "query_instruction"))
    of_frames = ((NANO.frames, "rule"), (NANO.frames, "store"), (NANO.frames, "jpeg_quality"))
    for recipe, added in (*of_frames, *of_models, (NANO, "segments")):
        assert added not in canonical(recipe)
        assert added in canonical(with_value(recipe, added, another_of(getattr(recipe, added))))


def another_of(value: Any) -> Any:
    return AUTHORS if isinstance(value, InputForm) else f"{value} another"


@pytest.mark.parametrize("name", EVERY)
def test_each_field_of_the_rendered_corpus_moves_what_is_rendered(tmp_path: Path, name: str) -> None:
    config = EVERY[name]
    small = dataclasses.replace(config.toy, num_train=6, num_val=3, num_test=3, near_duplicate_share=0.5)
    config = dataclasses.replace(config, toy=small)
    entry = DatasetEntry("toy", "toy", str(tmp_path / "videos"), str(tmp_path))
    view = View(Lake(tmp_path / "lake"), entry, config, all_stages())
    before, sources = rendered(config), ("annotation_files", "raw_videos")
    wanted = versions(view, config, sources)
    for path in leaves(config.toy, "toy."):
        changed = with_value(config, path, another(config, path))
        assert versions(view, changed, sources) != wanted, path
        assert rendered(changed) != before, path


def rendered(config: Configuration) -> list[Any]:
    """What the toy files say and show: annotations, scenes, and the size of the first one's frames."""
    scenes = toy.scenes(config.toy)
    return [toy.annotations(config.toy), scenes, toy.draw(scenes[0], config.toy).shape]
