"""The toy world's promises to whoever measures on it."""

from collections import Counter

from vsr1_core.datasets import toy
from vsr1_core.toy_recipe import ToyRecipe

RECIPE = ToyRecipe(num_train=60, num_val=40, num_test=120)


def test_a_query_describes_one_video_of_its_split() -> None:
    for rows in toy.annotations(RECIPE).values():
        assert max(Counter(row["cog_desc"] for row in rows).values()) == 1
        assert max(Counter(row["fig_desc"] for row in rows).values()) == 1


def test_moments_of_the_evaluated_splits_lie_anywhere_in_their_videos() -> None:
    rows = toy.annotations(RECIPE)["test"]
    first = sum(row["time"][0] == 0 for row in rows) / len(rows)
    assert 0.2 < first < 0.65


def test_the_test_split_does_not_depend_on_the_others() -> None:
    other = ToyRecipe(num_train=5, num_val=3, num_test=120)
    assert toy.annotations(other)["test"] == toy.annotations(RECIPE)["test"]
