"""The toy world: scenes of moving shapes, how they are drawn, and how they are described. `toy_files` writes the files.

A video shows a few events one after another (two by default) on one background; each event is one coloured shape that
moves. A moment is one event. Its plain caption (`cog_desc`) names every attribute in the base words, and a neighbouring
object; its query (`fig_desc`) says the same in another order and partly in other words, which a model trained on plain
captions has never seen. Some videos are copies of another video with a single attribute changed. Every split is made
from its own seed and from nothing else, and no two videos of a split fit the same description.
"""

import dataclasses
import functools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsr1_core.toy_recipe import ToyRecipe

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (60, 90, 235),
    "yellow": (240, 220, 50),
    "purple": (170, 60, 200),
    "cyan": (60, 215, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (8, 8, 8),
    "gray": (110, 110, 110),
    "white": (245, 245, 245),
    "brown": (95, 55, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("moves left", "moves right", "moves up", "moves down")

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "green": ("emerald", "verdant"),
    "blue": ("azure", "cobalt"),
    "yellow": ("golden", "lemon"),
    "purple": ("violet", "magenta"),
    "cyan": ("turquoise", "teal"),
    "black": ("dark", "pitch"),
    "gray": ("ashen", "slate"),
    "white": ("pale", "snowy"),
    "brown": ("earthy", "chestnut"),
    "circle": ("disc", "dot"),
    "square": ("box", "block"),
    "triangle": ("wedge", "pyramid"),
    "cross": ("plus sign", "crucifix"),
    "moves left": ("slides leftwards", "drifts toward the left edge"),
    "moves right": ("slides rightwards", "drifts toward the right edge"),
    "moves up": ("climbs", "rises toward the top"),
    "moves down": ("sinks", "falls toward the bottom"),
}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Event:
    """One coloured shape that moves, from `start_s` to `end_s` (seconds of the video)."""

    colour: str
    shape: str
    motion: str
    start_s: float
    end_s: float

    @property
    def object(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One video. Its events fill it from 0 to `duration_s` seconds without a gap."""

    video_id: str
    split: str
    background: str
    events: tuple[Event, ...]

    @property
    def duration_s(self) -> float:
        return self.events[-1].end_s


@dataclass(frozen=True)
class Moment:
    """One event of a scene, and the neighbouring event that its description names. `event` and `neighbour` are indices
    into the scene's events."""

    scene: Scene
    event: int
    neighbour: int

    @property
    def key(self) -> tuple[str, ...]:
        """The content of the description in base words. Two moments with the same key have the same plain caption."""
        event, other = self.scene.events[self.event], self.scene.events[self.neighbour]
        return (self.scene.background, event.colour, event.shape, event.motion, self.relation, other.object)

    @property
    def relation(self) -> str:
        return "before" if self.event < self.neighbour else "after"

    @property
    def plain_caption(self) -> str:
        background, colour, shape, motion, relation, other = self.key
        return f"a {colour} {shape} {motion} on {background} {relation} a {other}"


@functools.lru_cache(maxsize=4)
def scenes(recipe: ToyRecipe) -> tuple[Scene, ...]:
    """All scenes of all splits, in a fixed order. A plan asks for them several times, so the last worlds are kept."""
    sizes = {"train": recipe.num_train, "val": recipe.num_val, "test": recipe.num_test}
    return tuple(scene for split in SPLITS for scene in _split_scenes(recipe, split, sizes[split]))


def _split_scenes(recipe: ToyRecipe, split: str, size: int) -> list[Scene]:
    rng = random.Random(f"{recipe.seed}/{split}/scenes")
    made: list[Scene] = []
    seen: set[tuple[Any, ...]] = set()
    while len(made) < size:
        video_id = f"toy_{split}_{len(made):05d}"
        is_near_duplicate = made and rng.random() < recipe.near_duplicate_share
        scene = _near_duplicate(rng, rng.choice(made)) if is_near_duplicate else _random_scene(rng, recipe)
        look = (scene.background, tuple((e.object, e.motion) for e in scene.events))
        if look not in seen:
            seen.add(look)
            made.append(dataclasses.replace(scene, video_id=video_id, split=split))
    return made


def _random_scene(rng: random.Random, recipe: ToyRecipe) -> Scene:
    events, start_s = [], 0.0
    objects = rng.sample([(c, s) for c in COLOURS for s in SHAPES], rng.randint(*recipe.num_events))
    for colour, shape in objects:
        end_s = start_s + rng.randint(*recipe.seconds_per_event)
        events.append(Event(colour, shape, rng.choice(MOTIONS), start_s, end_s))
        start_s = end_s
    return Scene("", "", rng.choice(tuple(BACKGROUNDS)), tuple(events))


def _near_duplicate(rng: random.Random, scene: Scene) -> Scene:
    """Copy `scene` and change one attribute of one event, or the background. The times stay the same."""
    attribute = rng.choice(("colour", "shape", "motion", "background"))
    if attribute == "background":
        return dataclasses.replace(scene, background=_other(rng, tuple(BACKGROUNDS), scene.background))
    number = rng.randrange(len(scene.events))
    choices = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS}[attribute]
    value = _other(rng, choices, getattr(scene.events[number], attribute))
    events = list(scene.events)
    events[number] = dataclasses.replace(events[number], **{attribute: value})  # type: ignore[arg-type]
    return dataclasses.replace(scene, events=tuple(events))


def _other(rng: random.Random, choices: tuple[str, ...], value: str) -> str:
    return rng.choice([c for c in choices if c != value])


def moments(recipe: ToyRecipe) -> list[Moment]:
    """The annotated moments: at most `moments_per_train_video` or `moments_per_eval_video` per video. Each description
    fits only one video of its split."""
    found = []
    for split in SPLITS:
        in_split = [s for s in scenes(recipe) if s.split == split]
        candidates = {s.video_id: _candidates(s) for s in in_split}
        uses = Counter(key for some in candidates.values() for key in {m.key for m in some})
        rng = random.Random(f"{recipe.seed}/{split}/moments")
        for scene in in_split:
            unique = [m for m in candidates[scene.video_id] if uses[m.key] == 1]
            rng.shuffle(unique)
            one_an_event = {m.event: m for m in unique}
            limit = recipe.moments_per_train_video if split == "train" else recipe.moments_per_eval_video
            chosen = list(one_an_event.values())
            if len(chosen) > limit:  # a random choice: if all moments were early, a constant span would ground well
                chosen = rng.sample(chosen, limit)
            found.extend(sorted(chosen, key=lambda m: m.event))
    return found


def _candidates(scene: Scene) -> list[Moment]:
    """Every pair of an event and an adjacent event whose description fits only one event of its own video."""
    last = len(scene.events) - 1
    pairs = [Moment(scene, i, j) for i in range(last + 1) for j in (i - 1, i + 1) if 0 <= j <= last]
    counts = Counter(m.key for m in pairs)
    return [m for m in pairs if counts[m.key] == 1]


def query_text(moment: Moment, recipe: ToyRecipe) -> str:
    """The fine-grained query of a moment, in one of three sentence forms. Each base word is replaced by a synonym with
    probability `synonym_probability`."""
    scene = moment.scene
    rng = random.Random(f"{recipe.seed}/{scene.video_id}/{moment.event}/query")

    def say(word: str) -> str:
        return rng.choice(SYNONYMS[word]) if rng.random() < recipe.synonym_probability else word

    event, other = scene.events[moment.event], scene.events[moment.neighbour]
    thing = f"a {say(event.colour)} {say(event.shape)} {say(event.motion)}"
    second = f"a {say(other.colour)} {say(other.shape)}"
    place = say(scene.background)
    if moment.relation == "before":
        forms = (
            f"{thing} on a {place} background before {second}",
            f"{thing} against a {place} backdrop, then {second} follows",
            f"on a {place} background {thing} and {second} comes next",
        )
    else:
        forms = (
            f"{thing} on a {place} background after {second}",
            f"once {second} is gone, {thing} against a {place} backdrop",
            f"following {second}, on a {place} background {thing}",
        )
    return rng.choice(forms)


def annotations(recipe: ToyRecipe) -> dict[str, list[dict[str, Any]]]:
    """Map split -> rows of the FIG schema. `desc_id` is unique over all splits."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for moment in moments(recipe):
        scene, event = moment.scene, moment.scene.events[moment.event]
        base = 1_000_000 * SPLITS.index(scene.split)
        rows[scene.split].append(
            {
                "video": scene.video_id,
                "time": [event.start_s, event.end_s],
                "desc_id": base + 10 * int(scene.video_id.rsplit("_", 1)[1]) + moment.event,
                "duration": scene.duration_s,
                "cog_desc": moment.plain_caption,
                "fig_desc": query_text(moment, recipe),
                "fig_desc_score": 1.0,
            }
        )
    return rows


def draw(scene: Scene, recipe: ToyRecipe) -> np.ndarray:
    """Draw the frames of a video: uint8 [T, size, size, 3], with `source_fps` frames per second."""
    count = round(scene.duration_s * recipe.source_fps)
    background = np.array(BACKGROUNDS[scene.background], np.float32)
    frames = np.empty((count, recipe.size, recipe.size, 3), np.uint8)
    for number in range(count):
        time_s = number / recipe.source_fps
        event = next(e for e in scene.events if time_s < e.end_s)
        progress = (time_s - event.start_s) / (event.end_s - event.start_s)
        cover = _cover(event, progress, recipe.size)[..., None]
        colour = np.array(COLOURS[event.colour], np.float32)
        frames[number] = np.rint(background * (1 - cover) + colour * cover)
    return frames


def _cover(event: Event, progress: float, size: int) -> np.ndarray:
    """The share of each pixel that the shape covers: float [size, size] in 0..1. `progress` goes from 0 to 1 during the
    event."""
    travel = 0.6 * (progress - 0.5)
    dx = {"moves left": -travel, "moves right": travel}.get(event.motion, 0.0)
    dy = {"moves up": -travel, "moves down": travel}.get(event.motion, 0.0)
    radius = 0.2
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = (grid[None, :] - dx) / radius, (grid[:, None] - dy) / radius
    return np.clip(-_distance(event.shape, x, y) * radius * size + 0.5, 0, 1)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The approximate signed distance to a shape of radius 1, which is negative inside the shape."""
    across, far = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(across, far) - 0.85
    if shape == "triangle":
        return np.maximum(0.87 * across - 0.5 * y - 0.5, y - 0.7)
    return np.minimum(np.maximum(across - 0.3, far - 1), np.maximum(across - 1, far - 0.3))  # cross
