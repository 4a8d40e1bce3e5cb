"""How a method is shown: its name, its words, its place and its colour. Which methods there are is the stages'."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vsr1_core.recipes import Refine

SPARE_COLOURS = ("#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8f6bb3")
"""For methods and curves without a colour of their own. With the colours of the methods that are compared, they are
told apart by colour-blind readers too (Okabe and Ito, the first two darkened)."""


@dataclass(frozen=True)
class MethodInfo:
    """How one method is shown wherever methods are listed."""

    name: str
    """As in the tables; behind a `+` stands the option in which it differs from the method before it."""
    label: str
    """As people call it, in plots."""
    says: str
    """What it does, in one sentence."""
    order: int
    """Its place in lists: the weakest design first."""
    colour: str = ""
    """`#rrggbb`; one that is to spare where this is empty."""
    refine: Refine = "none"
    published: str = ""
    """The row of the published table that does the same; empty where there is none."""
    checkpoint: str = ""
    """The model that searches: the name under which its training curves are logged."""

    @property
    def base(self) -> str:
        """The method without its option."""
        return self.name.partition("+")[0]

    @property
    def option(self) -> str:
        """What differs from `base`; empty for a basic method."""
        return self.name.partition("+")[2]


@dataclass(frozen=True)
class MethodStyles:
    """The methods of a project, and how lists of their names are ordered, coloured and labelled.

    A name that is not among them is shown as it is: after the others, in a colour that is to spare.
    """

    infos: tuple[MethodInfo, ...] = ()

    @property
    def basic(self) -> list[str]:
        """The methods without an option, in order."""
        return self.ordered([info.name for info in self.infos if not info.option])

    @property
    def options(self) -> list[str]:
        """The options of methods, without repetition."""
        return list(dict.fromkeys(info.option for info in self.infos if info.option))

    def get(self, name: str) -> MethodInfo:
        """The method `name`; one that says nothing but its name where it is not known."""
        known = {info.name: info for info in self.infos}
        return known.get(name) or MethodInfo(name, name, "", len(known))

    def ordered(self, names: Collection[str]) -> list[str]:
        """The names once each: the weakest design first, an option behind its method, unknown names last."""
        return sorted(set(names), key=lambda name: (self._place(name), name))

    def _place(self, name: str) -> int:
        known = {info.name: info.order for info in self.infos}
        return known.get(name, known.get(name.partition("+")[0], len(known)))

    def successive(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Of the methods without an option: each with the one before it, as (before, after)."""
        return list(itertools.pairwise(name for name in self.ordered(names) if not self.get(name).option))

    def ablations(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Each method with an option and the same without, as (without, with), where both are among the names."""
        infos = [info for name in self.ordered(names) if (info := self.get(name)).option]
        return [(info.base, info.name) for info in infos if info.base in names]

    def colours(self, names: Collection[str]) -> dict[str, str]:
        """Each name's colour; a method keeps its own from plot to plot."""
        return self._with_spare({name: self.get(name).colour for name in self.ordered(names)})

    def colours_of_checkpoints(self, checkpoints: Sequence[str]) -> dict[str, str]:
        """Each checkpoint's colour: that of the basic method that searches with it, where there is one."""
        own = {info.checkpoint: info.colour for info in self.infos if info.checkpoint and not info.option}
        return self._with_spare({name: own.get(name, "") for name in checkpoints})

    def _with_spare(self, own: dict[str, str]) -> dict[str, str]:
        spare = iter(SPARE_COLOURS * (1 + len(own)))
        return {name: colour or next(spare) for name, colour in own.items()}

    def counterpart(self, published: str) -> str:
        """The method that does the same as a row of the published table; empty where there is none."""
        return next((info.name for info in self.infos if published and info.published == published), "")
