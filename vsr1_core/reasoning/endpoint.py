"""The teacher that asks a model behind an OpenAI-compatible chat API (vLLM, SGLang, `transformers serve`).

Several requests at a time, each sent again when the server or the network had a bad moment. One bad row is a failed
reply; what would fail for every row (no such server, no such model, a wrong key) stops the run, and what was asked
already is waited for, since it is paid for. What is asked and how a reply is read is `reasoning.evidence`.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice

import httpx2
from pydantic import BaseModel, Field, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from vsr1_core.reasoning.evidence import build_messages, read_reply
from vsr1_core.reasoning.tasks import ConfigurationError, EndpointSettings, TeacherReply, TeacherTask
from vsr1_core.recipes import EndpointRecipe

CONNECT_TIMEOUT_S = 10.0
MAX_RETRY_AFTER_S = 300.0
"""The longest wait that a server is granted."""
PASSING = frozenset({408, 409, 425, 429})
"""HTTP statuses that another try may cure, beside all from 500 on."""
HOPELESS = frozenset({401, 404})
"""HTTP statuses that every row would get: a wrong key, a wrong path or model."""
_MAX_QUOTED = 300


class BadMoment(Exception):
    """A request that failed in a way that may pass."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(BadMoment):
    """No connection at all: nobody listens there."""


class Refused(Exception):
    """The server will not answer this row."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """What is read of an answer; whatever else a server adds is ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class EndpointTeacher:
    """Asks for one trace a task, in order, and gives replies in the order they come."""

    def __init__(self, recipe: EndpointRecipe, settings: EndpointSettings) -> None:
        self.recipe, self.settings = recipe, settings
        self.url = f"{settings.url.rstrip('/')}/chat/completions"
        exponential = wait_random_exponential(settings.first_wait_s, settings.max_wait_s)
        self._retrying = AsyncRetrying(
            stop=stop_after_attempt(settings.max_requests),
            wait=lambda state: _asked_wait_s(state) + exponential(state),
            retry=retry_if_exception_type(BadMoment),
            reraise=True,
        )

    def write(self, tasks: Sequence[TeacherTask]) -> Iterator[TeacherReply]:
        """One reply per task. The event loop runs only while the caller waits for the next reply.

        Raises ConnectionError when the server cannot be reached, ConfigurationError when it refuses all of it, both
        after the replies that were still to come.
        """
        replies = self._replies(tasks)
        with asyncio.Runner() as runner:
            try:
                while (reply := runner.run(_next(replies))) is not None:
                    yield reply
            finally:
                runner.run(replies.aclose())

    async def _replies(self, tasks: Sequence[TeacherTask]) -> AsyncGenerator[TeacherReply]:
        waiting, running, problem = iter(tasks), set[asyncio.Task[TeacherReply]](), None
        async with self._client() as client:
            try:
                while True:
                    if problem is None:
                        free = self.settings.concurrency - len(running)
                        running |= {asyncio.create_task(self._reply(client, task)) for task in islice(waiting, free)}
                    if not running:
                        break
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for row in done:
                        if error := row.exception():
                            problem = problem or error
                        else:
                            yield row.result()
            finally:
                for row in running:
                    row.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        if problem is not None:
            raise problem

    def _client(self) -> httpx2.AsyncClient:
        key = self.settings.api_key
        return httpx2.AsyncClient(
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(self.settings.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
        )

    async def _reply(self, client: httpx2.AsyncClient, task: TeacherTask) -> TeacherReply:
        """The row boundary: whatever concerns this row alone becomes its error."""
        seconds: list[float] = []
        try:
            body = await asyncio.to_thread(self._body, task)
            completion: Completion = await self._retrying(self._post, client, body, seconds)
        except Unreachable as error:
            raise ConnectionError(
                f"the teacher's endpoint {self.settings.url} cannot be reached ({error}); start it, or set "
                "VSR1_TEACHER_URL, and build again: finished rows are kept"
            ) from error
        except BadMoment as error:
            return self._failed(task, f"{len(seconds)} requests failed, the last one: {error}", seconds)
        except ConfigurationError:
            raise
        except (Refused, OSError, ValueError) as error:
            return self._failed(task, str(error), seconds)
        return self._read(task, completion, seconds)

    def _failed(self, task: TeacherTask, error: str, seconds: list[float]) -> TeacherReply:
        return TeacherReply(
            task.query_id, "", "error", error=error, num_requests=len(seconds), request_s=round(sum(seconds), 3)
        )

    def _read(self, task: TeacherTask, completion: Completion, seconds: list[float]) -> TeacherReply:
        choice, usage = completion.choices[0], completion.usage or _Usage()
        content, finish_reason = choice.message.content or "", choice.finish_reason or "unknown"
        text, verdict = read_reply(content)
        error = ""
        if finish_reason == "stop" and text and verdict is None:
            error = f"the reply does not end with a verdict: {content[-80:]!r}"
        return TeacherReply(
            task.query_id,
            text,
            finish_reason,
            usage.completion_tokens or 0,
            verdict,
            error,
            num_prompt_tokens=usage.prompt_tokens,
            num_requests=len(seconds),
            request_s=round(sum(seconds), 3),
        )

    def _body(self, task: TeacherTask) -> bytes:
        """The request; runs in a thread, since it reads and encodes the frames."""
        request = {
            "model": self.recipe.model,
            "messages": build_messages(task, self.recipe),
            "temperature": self.recipe.temperature,
            "max_tokens": self.recipe.max_tokens,
        }
        return json.dumps(request).encode()

    async def _post(self, client: httpx2.AsyncClient, body: bytes, seconds: list[float]) -> Completion:
        """One request; its duration is added to `seconds` whatever becomes of it."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                response = await client.post(self.url, content=body)
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            raise BadMoment(f"no answer within {self.settings.timeout_s:g} s") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        except httpx2.RequestError as error:
            raise BadMoment(f"the connection broke: {str(error) or type(error).__name__}") from error
        finally:
            seconds.append(time.monotonic() - started)
        return self._checked(response)

    def _checked(self, response: httpx2.Response) -> Completion:
        said = f"HTTP {response.status_code}: {self._quoted(response)}"
        if response.status_code in PASSING or response.status_code >= 500:
            raise BadMoment(said, retry_after_s(response.headers.get("Retry-After", "")))
        if response.status_code in HOPELESS:
            raise ConfigurationError(
                f"the teacher's endpoint {self.settings.url} refuses to be asked for {self.recipe.model!r} ({said}); "
                "check VSR1_TEACHER_URL, VSR1_TEACHER_API_KEY and the model it serves, and build again: finished rows "
                "are kept"
            )
        if response.status_code != 200:
            raise Refused(said)
        try:
            return Completion.model_validate_json(response.content)
        except ValidationError as error:
            raise BadMoment(f"the answer is no chat completion: {self._quoted(response)}") from error

    def _quoted(self, response: httpx2.Response) -> str:
        """What the server said, short, and without the key, which some servers repeat."""
        text, key = " ".join(response.text.split()), self.settings.api_key
        return (text.replace(key, "***") if key else text)[:_MAX_QUOTED] or "(nothing)"


async def _next(replies: AsyncIterator[TeacherReply]) -> TeacherReply | None:
    return await anext(replies, None)


def _asked_wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, BadMoment) else 0.0


def retry_after_s(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 where it says nothing readable."""
    try:
        asked = float(header)
    except ValueError:
        try:
            asked = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 0.0
    return 0.0 if math.isnan(asked) else min(max(asked, 0.0), MAX_RETRY_AFTER_S)
