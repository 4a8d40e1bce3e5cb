"""How a method is shown: its name, its description, its place and its colour. The stages say which methods exist."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vsr1_core.recipes import Refine

SPARE_COLOURS = ("#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8f6bb3")
"""Colours for methods and curves that have none of their own. Colour-blind readers can tell them, and the colours of
the methods that are compared, apart (Okabe and Ito, the first two darkened)."""


@dataclass(frozen=True)
class MethodInfo:
    """How one method is shown wherever methods are listed."""

    name: str
    """The name in the tables. In `method+option`, the option is what differs from `method`."""
    label: str
    """The name that plots show."""
    says: str
    """What it does, in one sentence."""
    order: int
    """Its place in lists: the weakest design first."""
    colour: str = ""
    """`#rrggbb`; if it is empty, one of the spare colours is used."""
    refine: Refine = "none"
    published: str = ""
    """Name of the corresponding row of the published table; empty if there is none."""
    checkpoint: str = ""
    """The model that searches, by the name under which its training curves are logged."""

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

    An unknown name is shown as it is: after the others, in a spare colour.
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
        """The method `name`; for an unknown name, a method without description or colour."""
        known = {info.name: info for info in self.infos}
        return known.get(name) or MethodInfo(name, name, "", len(known))

    def ordered(self, names: Collection[str]) -> list[str]:
        """The names without repetition: the weakest design first, a method with an option after the same method
        without, unknown names last."""
        return sorted(set(names), key=lambda name: (self._place(name), name))

    def _place(self, name: str) -> int:
        known = {info.name: info.order for info in self.infos}
        return known.get(name, known.get(name.partition("+")[0], len(known)))

    def successive(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs (before, after) of each method without an option and the one before it."""
        return list(itertools.pairwise(name for name in self.ordered(names) if not self.get(name).option))

    def ablations(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Pairs (without, with) of a method without and with an option, if both are among the names."""
        infos = [info for name in self.ordered(names) if (info := self.get(name)).option]
        return [(info.base, info.name) for info in infos if info.base in names]

    def colours(self, names: Collection[str]) -> dict[str, str]:
        """Name -> colour. A method that has a colour of its own keeps it in all plots."""
        return self._with_spare({name: self.get(name).colour for name in self.ordered(names)})

    def colours_of_checkpoints(self, checkpoints: Sequence[str]) -> dict[str, str]:
        """Checkpoint -> colour: the colour of the basic method that searches with it, or a spare one."""
        own = {info.checkpoint: info.colour for info in self.infos if info.checkpoint and not info.option}
        return self._with_spare({name: own.get(name, "") for name in checkpoints})

    def _with_spare(self, own: dict[str, str]) -> dict[str, str]:
        spare = iter(SPARE_COLOURS * (1 + len(own)))
        return {name: colour or next(spare) for name, colour in own.items()}

    def counterpart(self, published: str) -> str:
        """The method that corresponds to a row of the published table; empty if there is none."""
        return next((info.name for info in self.infos if published and info.published == published), "")
