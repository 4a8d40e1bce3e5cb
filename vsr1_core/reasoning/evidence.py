"""Writes the request that asks a model for a reasoning trace, and reads its reply. `reasoning.endpoint` sends it.

The model gets the query, the frames of the shown video with their times, and the gold label. Its reply ends with its
own verdict, so that a trace which contradicts the label is detected and dropped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsr1_core.media.encode import jpeg_bytes, mp4_bytes
from vsr1_core.media.frame_store import frames_shape, read_frames, spread_numbers
from vsr1_core.reasoning.tasks import ConfigurationError, Label, StoredFrames, TeacherTask
from vsr1_core.recipes import EndpointRecipe

Part = dict[str, Any]


@dataclass(frozen=True)
class PromptText:
    """One version of the prompt. system: the system turn. match, mismatch: the question for each label, as format
    strings with the fields query, start_s and end_s (in seconds)."""

    system: str
    match: str
    mismatch: str


_VERDICT = (
    "End with one more line that gives your own finding from the frames alone, even where it differs from the label: "
    '"Verdict: match" if they show all that the query says, else "Verdict: mismatch".'
)

PROMPTS: Mapping[int, PromptText] = {
    1: PromptText(
        system=(
            "You explain search results for moments in videos. You get a video as frames with their times, a query, "
            "and a label that says whether the video shows the moment that the query describes. Write one to three "
            "plain sentences of visible evidence: people, objects, places, actions and their order, with times in "
            "seconds. Write as someone who only watched the video: no word of the label, of frames, or of this task, "
            "no lists, no tags."
        ),
        match=(
            'Query: "{query}"\nLabel: match, from {start_s:.1f} to {end_s:.1f} seconds.\n'
            "Write what shows that the moment is there: what is seen where it begins, with that time, and what is seen "
            f"where it ends, with that time.\n{_VERDICT}"
        ),
        mismatch=(
            'Query: "{query}"\nLabel: mismatch.\n'
            "Write what the video shows instead, with times, and which of the things that the query asks for is "
            f"missing or different.\n{_VERDICT}"
        ),
    )
}

_VERDICT_LINE = re.compile(r"\W*verdict\W+((?:mis|not?[\s_-]*)?match)(?:ed)?\W*", re.IGNORECASE)


_CONTROL = re.compile(r"<(?=/?\w+>|\|[^<>|]*\|>|\uff5c)")


def as_words(text: str) -> str:
    """`text` with a space in each thing that looks like a control token: `<|im_end|>` becomes `< |im_end|>`. A server
    renders a message into its own template and tokenizes the whole, so the text itself has to be harmless."""
    return _CONTROL.sub("< ", text)


def build_messages(task: TeacherTask, recipe: EndpointRecipe) -> list[dict[str, Any]]:
    """Build the system and the user turn in the format of OpenAI's chat API, with the frames as data URLs.

    Raises OSError or ValueError when the frames of the shown video cannot be read, and ConfigurationError when the
    recipe's `prompt_version` or `frames_as` is unknown.
    """
    if recipe.prompt_version not in PROMPTS:
        raise ConfigurationError(f"the teacher has no prompt version {recipe.prompt_version}; known: {list(PROMPTS)}")
    if recipe.frames_as not in _FRAME_PARTS:
        raise ConfigurationError(f"frames_as must be one of {', '.join(_FRAME_PARTS)}, not {recipe.frames_as!r}")
    if task.frames is None:
        raise ValueError(f"video {task.shown_video_id} has no frames to show; build frame_tensors")
    prompt = PROMPTS[recipe.prompt_version]
    question = prompt.match if task.label == "matched" else prompt.mismatch
    text = question.format(query=as_words(task.query), start_s=task.moment.start_s, end_s=task.moment.end_s)
    frames = _FRAME_PARTS[recipe.frames_as](*chosen_frames(task.frames, recipe.num_frames))
    return [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": [*frames, {"type": "text", "text": text}]},
    ]


def chosen_frames(stored: StoredFrames, num_frames: int) -> tuple[np.ndarray, list[float]]:
    """Return at most `num_frames` frames, uint8 [n, H, W, 3], evenly spread from the first to the last one, and their n
    times in seconds. Raises OSError or ValueError when the stored frames are missing or do not fit their times."""
    num_stored, num_times = frames_shape(stored.path)[0], len(stored.timestamps_s)
    if num_stored != num_times:
        raise ValueError(f"{stored.path} contains {num_stored} frames, but its row in frame_tensors says {num_times}")
    numbers = spread_numbers(num_stored, num_frames)
    return read_frames(stored.path, numbers), [stored.timestamps_s[i] for i in numbers]


def _as_images(pixels: np.ndarray, timestamps_s: Sequence[float]) -> list[Part]:
    """One picture per frame, each after a text with its time."""
    parts: list[Part] = []
    for time_s, frame in zip(timestamps_s, pixels, strict=True):
        parts.append({"type": "text", "text": f"At {time_s:.1f} seconds:"})
        parts.append({"type": "image_url", "image_url": {"url": _data_url("image/jpeg", jpeg_bytes(frame))}})
    return parts


def _as_video(pixels: np.ndarray, timestamps_s: Sequence[float]) -> list[Part]:
    """One clip of all frames, after a text with their times: a server may know only the average distance between
    frames."""
    times = ", ".join(f"{t:.1f}" for t in timestamps_s)
    return [
        {"type": "text", "text": f"The video's frames were taken at these seconds: {times}."},
        {"type": "video_url", "video_url": {"url": _data_url("video/mp4", mp4_bytes(pixels, timestamps_s))}},
    ]


_FRAME_PARTS = {"images": _as_images, "video": _as_video}


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def read_reply(content: str) -> tuple[str, Label | None]:
    """Split a reply into the trace, on one line, and the verdict, which is None when there is none. Thoughts that the
    server left before the reply are cut off."""
    said = content.rpartition("</think>")[2].strip()
    before, _, last = said.rpartition("\n")
    found = _VERDICT_LINE.fullmatch(last)
    if found is None:
        return " ".join(said.split()), None
    return " ".join(before.split()), "matched" if found[1].lower() == "match" else "not_matched"
