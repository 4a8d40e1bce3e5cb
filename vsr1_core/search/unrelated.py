"""Says whether anything like a query is among the videos: compares its best score with those of unrelated texts.

The highest cosine of a query says little by itself: it depends on the embedder, and grows with the number of videos.
So the same index is asked for texts that have nothing to do with most corpora. The share of them that score at least as
high as the query is its p-value under "the query is one more unrelated text". No model and no table is known here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr1_core.search.index import VideoIndex

DIGITS = 4
"""Scores are compared as they are shown: rounded to so many digits."""


def best_scores(index: VideoIndex, vectors: NDArray[Any]) -> NDArray[np.float64]:
    """The highest cosine of each unit vector [T, D] with any video of the index, rounded: [T]."""
    _, scores = index.search(vectors, 1)
    return np.round([best[0] for best in scores if best], DIGITS)


def share_at_least(score: float, unrelated: NDArray[np.float64]) -> float:
    """Share of texts, the query among them, that score at least `score`, in (0, 1]: (1 + number of the best scores
    `unrelated` that are at least as high) / (1 + their number)."""
    return (1 + int((unrelated >= round(score, DIGITS)).sum())) / (1 + len(unrelated))


UNRELATED = (
    "a glassblower turns a glowing vase on a long pipe",
    "two tugboats pull a container ship into a harbour",
    "a beekeeper lifts a frame full of bees out of a hive",
    "a combine harvester drives through a field of wheat at dusk",
    "a violin maker planes the top of a violin",
    "an astronaut floats along the outside of a space station",
    "a blacksmith hammers a horseshoe on an anvil",
    "penguins jump from an ice floe into the sea",
    "a judge in a robe raps a gavel in a courtroom",
    "lava flows slowly into the ocean and steam rises",
    "a surgeon in green scrubs ties a suture",
    "a hot air balloon lifts off from a meadow",
    "a potter cuts a bowl from the wheel with a wire",
    "camels walk in a line along the ridge of a dune",
    "a welder joins two steel beams in a shower of sparks",
    "a falconer holds out a glove and a hawk lands on it",
    "a printing press spits out newspapers",
    "a man in chain mail swings a sword at a wooden post",
    "a steam locomotive crosses a stone viaduct",
    "a diver swims through the wreck of a ship",
    "a shepherd drives sheep through a mountain pass",
    "a robot arm places car doors on an assembly line",
    "a tightrope walker crosses between two towers",
    "a chess grandmaster moves a rook and presses the clock",
    "monks pour coloured sand into a mandala",
    "a crane lowers a bell into a church tower",
    "an orchestra conductor raises a baton",
    "a fishing trawler hauls in a net at night",
    "a whale breaches beside a small boat",
    "a cartographer draws a coastline with a fine pen",
    "a helicopter drops water on a forest fire",
    "a gymnast swings around the high bar and lets go",
    "a priest swings a censer in front of an altar",
    "a rocket leaves its launch pad in a cloud of smoke",
    "a woman spins wool on a wooden spinning wheel",
    "a goldsmith sets a diamond in a ring",
    "a snowplough clears a mountain road",
    "a lion chases a zebra through high grass",
    "a puppeteer lets a marionette bow",
    "miners push a cart of coal out of a shaft",
    "a referee shows a red card to a football player",
    "a baker slides loaves into a stone oven with a peel",
    "a pilot pulls the throttle in the cockpit of an airliner",
    "a spider wraps a fly in silk",
    "a bulldozer pushes down a brick wall",
    "a clockmaker puts a gear into a pocket watch",
    "sumo wrestlers collide in a ring",
    "a gondolier rows under a bridge",
    "a chemist pours a blue liquid into a flask",
    "a lumberjack fells a tall spruce with a chainsaw",
    "a bride throws her bouquet over her shoulder",
    "a soldier lowers a flag at sunset",
    "a kayaker drops over a waterfall",
    "a tattooist draws a dragon on a forearm",
    "a newsreader shuffles papers behind a studio desk",
    "pelicans dive for fish in a bay",
    "a stonemason chisels letters into a gravestone",
    "an auctioneer points at a bidder and bangs a hammer",
    "a racing car spins into a wall of tyres",
    "an archaeologist brushes soil from a skull",
    "a tailor pins the hem of a wedding dress",
    "a tractor ploughs a field followed by gulls",
    "a magician pulls a rabbit out of a top hat",
    "a ski jumper lands in deep snow",
    "a wine maker crushes grapes with bare feet",
    "a submarine surfaces between ice floes",
    "a conveyor belt carries bottles under a filling machine",
    "a fencer lunges and touches the opponent's mask",
    "an elephant sprays itself with dust",
    "a bricklayer spreads mortar with a trowel",
    "a choir in red robes sings by candlelight",
    "a geyser erupts in front of a crowd",
    "a jockey urges a horse over a hedge",
    "a locksmith files a key in a vice",
    "a sailor climbs the mast of a tall ship",
    "a cheese maker turns wheels of cheese in a cellar",
    "a polar bear walks along a frozen shore with its cub",
    "a bungee jumper leaps from a bridge",
    "a sculptor smooths a clay bust with wet hands",
    "an air traffic controller watches a radar screen",
    "rice farmers plant seedlings in a flooded terrace",
    "a trapeze artist is caught in mid-air",
    "a dentist drills into a tooth",
    "a bookbinder presses gold leaf onto a leather cover",
    "an excavator loads gravel onto a lorry",
    "a peacock spreads its tail",
    "a barista pours a leaf of milk into a cup of coffee",
    "a mountaineer hammers an ice screw into a glacier",
    "a drummer in a kilt twirls a stick in a parade",
    "a fire eater blows a cloud of flame at night",
    "a crocodile snaps at a wildebeest in a river",
    "a calligrapher writes a large character with a brush",
    "a roofer nails slates to a steep roof",
    "a speedboat pulls a water skier past a pier",
    "an owl swallows a mouse on a branch",
    "a weaver throws the shuttle through a loom",
    "a tennis player serves an ace on a clay court",
    "a volcanologist in a silver suit takes a sample",
    "a train of mules carries sacks up a stone stair",
)
"""Short descriptions of moments, as people write queries. Each is of something particular, so that few of them fit the
videos of any one corpus."""
