"""The data types of teachers: tasks, replies, and the settings of an endpoint. The teachers are in `teacher` and
`endpoint`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import urlsplit

Label = Literal["matched", "not_matched"]


class ConfigurationError(ValueError):
    """The configuration asks for something that is not set up. The message says what to change."""

    is_of_the_run = True
    """It is no row's fault (`rows.boundary`)."""


@dataclass(frozen=True, order=True)
class EventNote:
    """One annotated event of a video: its start and end in seconds, and a caption in plain words."""

    start_s: float
    end_s: float
    caption: str

    @property
    def times(self) -> str:
        return f"{self.start_s:.1f}-{self.end_s:.1f}"


@dataclass(frozen=True)
class StoredFrames:
    """The stored frames of one video. path: the file with uint8 [T, H, W, 3]. timestamps_s: their T times in seconds.
    content: a version that changes when the pixels change."""

    path: str
    timestamps_s: tuple[float, ...]
    content: str


@dataclass(frozen=True)
class TeacherTask:
    """One pair of a query and a shown video, for which a trace is needed.

    moment: the event that the query describes, in its right video. events: the events of the shown video in time order.
    frames: the frames of the shown video, for teachers that look at them.
    """

    query_id: str
    query: str
    label: Label
    shown_video_id: str
    moment: EventNote
    events: tuple[EventNote, ...]
    frames: StoredFrames | None = None


@dataclass(frozen=True)
class TeacherReply:
    """The reply to one task.

    finish_reason: `stop`, `length` (truncated) or `error`. num_tokens: length of the reply as the teacher counts it;
    the template teacher counts words. verdict: the label that the teacher's own words support; None when it gives none.
    error: why there is no usable reply; empty otherwise.

    The cost of a model's reply: num_prompt_tokens and num_tokens as the server counts them, num_requests including all
    retries, and request_s, the seconds spent in these requests without the waits between them. The costs are None for a
    teacher that sends no requests.
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
    """Where the model is served, and how requests are sent. These settings do not change a trace; the settings that do
    are in EndpointRecipe.

    url: the base of an OpenAI-compatible API, e.g. http://127.0.0.1:8000/v1. api_key: never written anywhere.
    concurrency: the number of simultaneous requests. timeout_s: the limit for one request, in seconds. A failed request
    is sent again, up to max_requests in total, after a random wait. The wait is at most first_wait_s seconds at first,
    then twice as much each time, up to max_wait_s; the wait that the server asks for is added.

    Raises:
        ConfigurationError: If the URL is not a base URL, or a number is too small.
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
            raise ConfigurationError(
                "the teacher's settings allow no request: concurrency and max_requests must be at least 1, and "
                "timeout_s must be above 0"
            )


class Teacher(Protocol):
    """Anything that can write reasoning traces."""

    def write(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherReply]:
        """Yield one reply per task, in any order."""
        ...
