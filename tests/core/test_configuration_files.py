"""Configurations in the home: read with what they are based on, refused with file and line, written as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from vsr1_core import configuration_files as files
from vsr1_core.configuration_files import configuration_path, lines_of, load_configuration, shown, write_configuration
from vsr1_core.configurations import CONFIGURATIONS, NANO, QWEN3_VL_2B, TINY
from vsr1_core.datasets.registry import DatasetEntry, own_configuration
from vsr1_core.home.model_source import configuration_here
from vsr1_core.input_form import InputForm
from vsr1_core.limits import checked, described
from vsr1_core.media.decode import _BACKENDS
from vsr1_core.media.sampling import RULES
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.recipes import (
    Configuration,
    EndpointRecipe,
    FrameRecipe,
    GRPORecipe,
    MethodOptions,
    RetrievalRecipe,
    SFTRecipe,
)
from vsr1_core.settings import Source, changed, differences, fields_of, is_group, nested, parsed, settings_of


def put(home: Path, name: str, text: str) -> Path:
    path = home / "configurations" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    put(
        tmp_path,
        "longer",
        'base = "tiny"\nretrain = "manual"\n[sft]\nsteps = 500\n[models.options]\nnum_soft_tokens = 4\n',
    )
    put(tmp_path, "longest", 'base = "longer"\nsft.steps = 900\ngrpo.lr = 1\n')
    config = load_configuration(tmp_path, "longest")
    assert differences(TINY, config) == {
        "retrain": ("auto", "manual"),
        "models.options.num_soft_tokens": (8, 4),
        "sft.steps": (TINY.sft.steps, 900),
        "grpo.lr": (TINY.grpo.lr, 1.0),
    }
    assert (config.name, type(config.grpo.lr)) == ("longest", float)
    assert files.configuration_names(tmp_path) == [*CONFIGURATIONS, "longer", "longest"]


def test_an_edit_counts_at_once(tmp_path: Path) -> None:
    entry = DatasetEntry("mine", "folder", config="mine", seed=7)
    for steps in (5, 6):
        put(tmp_path, "mine", f'base = "nano"\n[sft]\nsteps = {steps}\n')
        config = own_configuration(tmp_path, entry)
        assert (config.sft.steps, config.sft.seed, config.pool) == (steps, 7, NANO.pool)


REFUSED: dict[str, tuple[str, int, str]] = {
    "a key that there is not": ("[sft]\nstepz = 5", 3, r"sft\.stepz is no setting; did you mean sft\.steps\?"),
    "a key that stands elsewhere": ("steps = 5", 2, r"did you mean sft\.steps or fine_tuned\.steps"),
    "a group that there is not": ("[stf]\nsteps = 5", 2, r"stf is no setting; did you mean sft\?"),
    "its own name": ('name = "x"', 2, "the name of its file"),
    "another type": ('[sft]\n\nsteps = "many"', 4, "a whole number of at least 0, not 'many'"),
    "a truth for a number": ("[sft]\nsteps = true", 3, "a whole number of at least 0, not True"),
    "a number for a truth": ("[sft]\nbf16 = 1", 3, "true or false, not 1"),
    "below the range": ("sft = {lr = 1e-3, steps = -1}", 2, r"sft\.steps has to be a whole number of at least 0"),
    "above the range": ("pool.random_share = 1.5", 2, "a number from 0 to 1, not 1.5"),
    "no number at all": ("pool.random_share = nan", 2, "a number from 0 to 1"),
    "zero where more is needed": ("[grpo]\nlr = 0", 3, "a number above 0"),
    "a method that there is not": (
        '[evaluation]\nmethods = [\n "zero_shot",\n "sqr"]',
        3,
        "out of: zero_shot, fine_tuned",
    ),
    "a method twice": ('[evaluation]\nmethods = ["zero_shot", "zero_shot"]', 3, "none twice"),
    "no split": ("[evaluation]\nsplits = []", 3, "at least one"),
    "a loss that there is not": ('[grpo]\nloss_type = "ppo"', 3, "one of grpo, dr_grpo, dapo, bnpo"),
    "an index that there is not": ('[retrieval]\nindex = "tree"', 3, "one of flat, ivf, hnsw"),
    "a reward that there is not": ("[grpo.rewards]\nformt = 1", 3, r"did you mean grpo\.rewards\.format\?"),
    "a weight that is none": ('[grpo.rewards]\nformat = "high"', 3, "a number, not 'high'"),
    "a schedule that there is not": ('[sft]\nschedule = "cos"', 3, "one of linear, cosine"),
    "a pair in the wrong order": ("[toy]\nnum_events = [3, 1]", 3, "a list of 2 whole numbers"),
    "too long a pair": ("[toy]\nnum_events = [1, 2, 3]", 3, "a list of 2 whole numbers"),
    "one value for a group": ("sft = 3", 2, "is a group of settings"),
    "a setting of another kind": ("[teacher]\nnum_frames = 8", 3, r"teacher\.num_frames is no setting"),
    "a kind that there is not": ('[teacher]\nkind = "oracle"', 3, "one of template, endpoint"),
    "a prompt that there is not": ('[teacher]\nkind = "endpoint"\nprompt_version = 7', 4, "out of: 1"),
    "models that do not fit": ('[models]\npolicy = "Qwen/x"', 3, "cannot be used together"),
    "another method in a method's place": ('[sft]\nrefine = "text"', 3, "sft.refine has to be 'soft'"),
    "heads that do not divide": ("[models.tiny]\nnum_heads = 3", 2, "hidden_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    text, line, message = REFUSED[case]
    path = put(tmp_path, "mine", f'base = "tiny"\n{text}\n')
    with pytest.raises(ValueError, match=message) as error:
        load_configuration(tmp_path, "mine")
    assert str(error.value).startswith(f"{path}, line {line}: ")


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    for text, message in (
        ("base = tiny", r"mine.toml is not valid TOML: .*line 1"),
        ("[sft]\nsteps = 5", 'begin it with base = "NAME"'),
        ('base = "tinny"', r"line 1: base names no configuration: .* did you mean tiny\?"),
        ('base = "mine"', "line 1: base leads back to itself: mine -> mine"),
    ):
        put(tmp_path, "mine", text)
        with pytest.raises(ValueError, match=message):
            load_configuration(tmp_path, "mine")
    put(tmp_path, "mine", 'base = "yours"')
    put(tmp_path, "yours", 'base = "mine"')
    with pytest.raises(ValueError, match=r"yours\.toml, line 1: base leads back to itself: mine -> yours -> mine"):
        load_configuration(tmp_path, "mine")


def test_an_error_in_a_base_names_the_file_of_the_base(tmp_path: Path) -> None:
    path = put(tmp_path, "first", 'base = "tiny"\nsft.steps = -1\n')
    put(tmp_path, "second", 'base = "first"\n')
    with pytest.raises(ValueError, match=f"{path}, line 2: "):
        load_configuration(tmp_path, "second")


def test_built_in_names_are_not_overridden(tmp_path: Path) -> None:
    put(tmp_path, "tiny", 'base = "nano"\n')
    with pytest.raises(
        ValueError, match="tiny is a built-in configuration and cannot be changed; give the file another name"
    ):
        load_configuration(tmp_path, "tiny")
    with pytest.raises(ValueError, match="built-in"):
        write_configuration(tmp_path, "nano", "tiny", {}, "--set")


@pytest.mark.parametrize("name", ["../mine", "a/b", "", ".hidden"])
def test_names_are_no_paths(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a configuration"):
        write_configuration(tmp_path, name, "tiny", {}, "--set")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_the_homes_own(tmp_path: Path) -> None:
    put(tmp_path, "longer", 'base = "tiny"\n')
    with pytest.raises(LookupError, match=r"did you mean longer\? There are: tiny, .*, longer"):
        load_configuration(tmp_path, "longr")


def test_what_is_written_is_checked_first_and_never_overwrites(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--set: sft\.steps has to be"):
        write_configuration(tmp_path, "mine", "tiny", {"sft": {"steps": -1}}, "--set")
    assert not configuration_path(tmp_path, "mine").exists()
    path = write_configuration(tmp_path, "mine", "tiny", {"sft": {"steps": 7}}, "--set")
    assert path.read_text() == 'base = "tiny"\n\n[sft]\nsteps = 7\n'
    with pytest.raises(ValueError, match="configuration mine exists already"):
        write_configuration(tmp_path, "mine", "tiny", {}, "--set")
    assert [p.name for p in path.parent.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_shown_of_a_configuration_can_be_saved_back(name: str, tmp_path: Path) -> None:
    put(tmp_path, "copy", shown(tmp_path, name))
    assert dataclasses.replace(load_configuration(tmp_path, "copy"), name=name) == CONFIGURATIONS[name]


def test_what_is_shown_of_ones_own_remarks_what_its_base_has(tmp_path: Path) -> None:
    text = (
        'base = "tiny"\n[models.options]\nsystem_prompt = "say \\"yes\\"\\n\\u007f ü"\n[teacher]\nkind = "endpoint"\n'
    )
    put(tmp_path, "mine", text)
    out = shown(tmp_path, "mine")
    assert 'kind = "endpoint"  # "template" in tiny' in out
    assert "num_frames = 32  # not in tiny" in out
    put(tmp_path, "copy", out)
    assert not differences(load_configuration(tmp_path, "copy"), load_configuration(tmp_path, "mine"))


def test_lines_are_those_of_the_keys_and_not_of_texts_that_look_like_some() -> None:
    text = 'a = """\nb = 1\n[t]\n"""\nc.d = 2 # x\n[e."f g"]\n# h = 1\nh = [\n 1,\n]\n[i]\n'
    assert lines_of(text) == {("a",): 1, ("c", "d"): 5, ("e", "f g"): 6, ("e", "f g", "h"): 8, ("i",): 11}


# ---- settings ----------------------------------------------------------------------------------------------------


def leaves(recipe: Any) -> Iterator[tuple[Any, str, Any]]:
    """(recipe, field, type) of everything that is a setting."""
    for name, hint in fields_of(type(recipe)).items():
        value = getattr(recipe, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        elif not is_group(value):
            yield recipe, name, hint


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_setting_of_every_configuration_is_within_its_limits(name: str) -> None:
    config = CONFIGURATIONS[name]
    assert changed(config, nested(settings_of(config)), Source("x")) == config
    assert len(list(leaves(config))) + len(config.grpo.rewards) == len(settings_of(config))


def test_every_setting_refuses_what_it_is_not_and_says_what_it_is() -> None:
    for recipe, name, hint in [*leaves(QWEN3_VL_2B), *leaves(Configuration("x"))]:
        with pytest.raises(ValueError, match="has to be") as error:
            checked({"a": 1}, hint)
        assert described(hint) in str(error.value)
        assert checked(getattr(recipe, name), hint) == getattr(recipe, name)


def test_numbers_and_choices_have_limits() -> None:
    """A bare int, float or str takes values that nothing works with; texts that are free are named here."""
    free = {"system_prompt", "sft_prompt", "query_instruction", "policy", "embedder", "model"}
    for recipe in (TINY, QWEN3_VL_2B):
        bare = {name for _, name, hint in leaves(recipe) if hint in (int, float, str)}
        assert bare <= free


def test_choices_are_those_that_the_code_has() -> None:
    from vsr1_core.training.losses import LOSS_TYPES

    assert get_args(fields_of(GRPORecipe)["loss_type"]) == LOSS_TYPES
    assert set(get_args(fields_of(FrameRecipe)["backend"])) == set(_BACKENDS)
    assert {*get_args(fields_of(FrameRecipe)["rule"])} == {"ours", *RULES}
    assert {*get_args(fields_of(InputForm)["shown_frames"])} == {"stored", *RULES}
    for seed_hidden in get_args(fields_of(MethodOptions)["seed_hidden"]):
        SoftQueryConfig(4, 4, seed_hidden=seed_hidden)


@pytest.mark.parametrize("kind", get_args(fields_of(RetrievalRecipe)["index"]))
def test_every_index_can_be_built(kind: str) -> None:
    import numpy as np

    from vsr1_core.search.index import build_index

    assert build_index(["a", "b"], np.eye(2, 8, dtype=np.float32), kind) is not None


@pytest.mark.parametrize("schedule", get_args(fields_of(SFTRecipe)["schedule"]))
def test_every_schedule_is_one_of_the_trainer(schedule: str) -> None:
    from transformers import SchedulerType

    assert SchedulerType(schedule).value == schedule


def test_assignments_are_read_as_the_setting_wants_them() -> None:
    words = [
        "sft.steps=5",
        "grpo.lr = 1e-6",
        "sft.bf16=true",
        "evaluation.methods=zero_shot, sqr_sft",
        "toy.num_events=2,3",
    ]
    words += ["models.options.system_prompt=Is it = there?", "teacher.kind=endpoint", "teacher.num_frames=8"]
    config = changed(TINY, parsed(words, TINY), Source("--set"))
    assert (config.sft.steps, config.grpo.lr, config.sft.bf16) == (5, 1e-6, True)
    assert (config.evaluation.methods, config.toy.num_events) == (("zero_shot", "sqr_sft"), (2, 3))
    assert config.models.options.system_prompt == "Is it = there?"
    assert isinstance(config.teacher, EndpointRecipe)
    assert config.teacher.num_frames == 8
    assert changed(config, {"teacher": {"kind": "template"}}, Source("--set")).teacher == TINY.teacher


@pytest.mark.parametrize("word", ["sft.steps", "=5", "sft..steps=5"])
def test_what_is_no_assignment_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="write KEY=VALUE"):
        parsed([word], TINY)


def test_a_configuration_of_another_home_is_copied_where_its_models_are_used(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    changes = {"frames": {"max_frames": 6}, "teacher": {"kind": "endpoint"}, "grpo": {"rewards": {"format": 0.25}}}
    write_configuration(there, "coarse", "nano", changes, "test")
    write_configuration(there, "mine", "coarse", {"sft": {"steps": 3}}, "test")
    write_configuration(here, "mine", "tiny", {}, "test")
    copy = configuration_here(here, there, "mine")
    assert load_configuration(here, copy) == dataclasses.replace(load_configuration(there, "mine"), name=copy)
    assert configuration_here(here, there, "mine") == copy
    configuration_path(there, "coarse").write_text('base = "nano"\nframes.max_frames = 8\n')
    other = configuration_here(here, there, "mine")
    assert [load_configuration(here, name).frames.max_frames for name in (copy, other)] == [6, 8]
    assert configuration_here(here, there, "nano") == "nano"
