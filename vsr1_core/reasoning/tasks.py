"""What a teacher is given and what it gives back, and where one that is a model can be asked. Nobody writes here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import urlsplit

Label = Literal["matched", "not_matched"]


class ConfigurationError(ValueError):
    """What the configuration asks for is not set up; the message says what to change."""


@dataclass(frozen=True, order=True)
class EventNote:
    """One annotated event of a video, in plain words."""

    start_s: float
    end_s: float
    caption: str

    @property
    def times(self) -> str:
        return f"{self.start_s:.1f}-{self.end_s:.1f}"


@dataclass(frozen=True)
class StoredFrames:
    """Where a video's frames lie (uint8 [T, H, W, 3]), their source times [T], and what changes when the pixels do."""

    path: str
    timestamps_s: tuple[float, ...]
    content: str


@dataclass(frozen=True)
class TeacherTask:
    """One pair of query and shown video. `moment` is the query's own event, in its right video; `events` are those of
    the shown video in time order; `frames` are the shown video's, for a teacher that looks at them."""

    query_id: str
    query: str
    label: Label
    shown_video_id: str
    moment: EventNote
    events: tuple[EventNote, ...]
    frames: StoredFrames | None = None


@dataclass(frozen=True)
class TeacherReply:
    """finish_reason: `stop`, `length` (truncated) or `error`. verdict: the label that the teacher's own words support,
    None where it gives none. num_tokens: as the teacher counts; words for the template.

    What a model's reply cost: num_prompt_tokens and num_tokens as the server counts them, num_requests with all
    retries, request_s seconds in them without the waits between. None from a teacher that asks no one.
    """

    query_id: str
    text: str
    finish_reason: str = "stop"
    num_tokens: int = 0
    verdict: Label | None = None
    error: str = ""
    num_prompt_tokens: int | None = None
    num_requests: int | None = None
    request_s: float | None = None


@dataclass(frozen=True)
class EndpointSettings:
    """Where the model is and how it is asked; what it is asked is EndpointRecipe's. Nothing here changes a trace.

    url: the base of an OpenAI-compatible API, e.g. http://127.0.0.1:8000/v1. api_key is never written anywhere.
    timeout_s: of one request. A failed request is sent again, up to max_requests in all, after a random wait of up to
    first_wait_s, then twice that and so on up to max_wait_s, and at least as long as the server asks for.
    """

    url: str
    api_key: str = field(default="", repr=False)
    concurrency: int = 8
    timeout_s: float = 600.0
    max_requests: int = 8
    first_wait_s: float = 2.0
    max_wait_s: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigurationError(
                "the teacher's URL must be the base of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1; a "
                "key belongs into VSR1_TEACHER_API_KEY, not into the URL"
            )
        if self.concurrency < 1 or self.max_requests < 1 or self.timeout_s <= 0:
            raise ConfigurationError("the teacher needs at least one request at a time, one try, and some time for it")


class Teacher(Protocol):
    def write(self, tasks: Sequence[TeacherTask]) -> Iterator[TeacherReply]:
        """One reply per task, in any order."""
        ...
