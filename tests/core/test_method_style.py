"""How methods are ordered, coloured and paired."""

from __future__ import annotations

from vsr1_core.evaluation.method_style import MethodInfo, MethodStyles
from vsr1_core.evaluation.plot_parts import method_label
from vsr1_core.evaluation.published import PUBLISHED
from vsr1_core.stages.method_styles import STYLES
from vsr1_core.stages.methods import ALL

METHOD_NAMES = ["videosearch_r1+exclude_rejected", "videosearch_r1", "zero_shot", "mine"]


def test_methods_keep_their_order_and_colour() -> None:
    expected = ["zero_shot", "videosearch_r1", "videosearch_r1+exclude_rejected", "mine"]
    assert STYLES.ordered(METHOD_NAMES) == expected
    assert STYLES.ordered(expected * 2) == expected
    alone, together = (STYLES.colours(names)["videosearch_r1"] for names in (["videosearch_r1"], METHOD_NAMES))
    assert alone == together == STYLES.get("videosearch_r1").colour
    assert len(set(STYLES.colours(METHOD_NAMES).values())) == len(METHOD_NAMES)


def test_a_checkpoint_has_the_colour_of_its_method_and_others_one_to_spare() -> None:
    colours = STYLES.colours_of_checkpoints(["sft_checkpoint", "embedder", "drop_above_positive_checkpoint"])
    assert colours["sft_checkpoint"] == STYLES.get("sqr_sft").colour
    assert len(set(colours.values())) == 3


def test_each_method_is_paired_with_the_one_before_it_and_an_option_with_its_method() -> None:
    names = ["sqr_sft", "zero_shot", "sqr_sft+last_latents", "videosearch_r1+exclude_rejected"]
    assert STYLES.successive(names) == [("zero_shot", "sqr_sft")]
    assert STYLES.ablations(names) == [("sqr_sft", "sqr_sft+last_latents")]  # the other one lacks its base


def test_every_method_has_a_style_and_every_published_counterpart_is_in_the_table() -> None:
    assert {info.name for info in STYLES.infos} == set(ALL)
    assert all(info.label != info.name and info.says.endswith(".") for info in STYLES.infos)
    printed = {row.method for rows in PUBLISHED.values() for row in rows}
    named = {info.published for info in STYLES.infos if info.published}
    assert named < printed
    assert {STYLES.counterpart(name) for name in named} == {"zero_shot", "fine_tuned", "videosearch_r1"}
    assert STYLES.counterpart("CONQUER") == ""


def test_an_option_stands_on_a_line_of_its_own_in_plots() -> None:
    labels = {"a": "A, stage 1", "a+x": "A, stage 1, less of it"}
    styles = MethodStyles(tuple(MethodInfo(name, label, "", 0) for name, label in labels.items()))
    assert [method_label(styles, name) for name in labels] == ["A, stage 1", "A, stage 1\nless of it"]
    assert method_label(styles, "mine+wide") == "mine\n+wide"


def test_a_method_nobody_described_is_shown_by_its_name() -> None:
    info = MethodStyles().get("mine+wide")
    assert (info.label, info.base, info.option) == ("mine+wide", "mine", "wide")
    assert MethodStyles((MethodInfo("a", "A", "It does.", 0),)).get("a").label == "A"
