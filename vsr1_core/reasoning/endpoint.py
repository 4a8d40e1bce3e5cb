"""The teacher that asks a model behind an OpenAI-compatible chat API (vLLM, SGLang, `transformers serve`).

It sends several requests at a time, and repeats a request after a temporary failure of the server or the network. An
error that concerns one row gives a failed reply for this row. An error that concerns every row (no such server, no such
model, a wrong key) stops the run; replies to requests that were already sent are still awaited, because they are paid
for. `reasoning.evidence` writes the requests and reads the replies.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
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
"""The longest wait in seconds that a server's Retry-After header can ask for."""
PASSING = frozenset({408, 409, 425, 429})
"""HTTP statuses after which a request is sent again; so is any status from 500 on."""
HOPELESS = frozenset({401, 404})
"""HTTP statuses that every row would get: the key, the path or the model is wrong."""
MAX_REPLY_BYTES = 16 << 20
"""A chat completion is a few kilobytes. A longer reply is not read to its end."""
_MAX_QUOTED = 300


class BadMoment(Exception):
    """A temporary failure of a request; it may succeed when it is sent again."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(BadMoment):
    """No connection could be made: no server listens at the address."""


class Refused(Exception):
    """The server refuses this row's request; sending it again will not help."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """The fields of a server's response that are read. All other fields are ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class EndpointTeacher:
    """Sends one request per task, in order, and yields the replies in the order in which they arrive."""

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

    def write(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherReply]:
        """Yield one reply per task. The event loop runs only while the caller waits for the next reply.

        Raises ConnectionError when the server cannot be reached, and ConfigurationError when it would refuse every
        request. Both are raised only after the replies to all requests that were already sent.
        """
        replies = self._replies(tasks)
        with asyncio.Runner() as runner:
            try:
                while (reply := runner.run(_next(replies))) is not None:
                    yield reply
            finally:
                runner.run(replies.aclose())

    async def _replies(self, tasks: Iterable[TeacherTask]) -> AsyncGenerator[TeacherReply]:
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
        """A client that follows no redirect, because the key belongs to one server, and asks for replies that are not
        compressed, because a small one may unpack to any size."""
        key = self.settings.api_key
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return httpx2.AsyncClient(
            headers={**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
            follow_redirects=False,
            timeout=httpx2.Timeout(self.settings.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
        )

    async def _reply(self, client: httpx2.AsyncClient, task: TeacherTask) -> TeacherReply:
        """Ask for one trace. An error that concerns only this row becomes a failed reply."""
        seconds: list[float] = []
        try:
            body = await asyncio.to_thread(self._body, task)
            completion: Completion = await self._retrying(self._post, client, body, seconds)
        except Unreachable as error:
            raise ConnectionError(
                f"the teacher's endpoint {self.settings.url} cannot be reached ({error}); start it, or correct "
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
        """The body of the request. This runs in a thread, because it reads and encodes the frames."""
        request = {
            "model": self.recipe.model,
            "messages": build_messages(task, self.recipe),
            "temperature": self.recipe.temperature,
            "max_tokens": self.recipe.max_tokens,
        }
        return json.dumps(request).encode()

    async def _post(self, client: httpx2.AsyncClient, body: bytes, seconds: list[float]) -> Completion:
        """Send one request. Its duration is appended to `seconds`, whether it succeeds or fails."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                async with client.stream("POST", self.url, content=body) as response:
                    content = await _bounded(response)
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout) as error:
            raise BadMoment(f"no answer within {self.settings.timeout_s:g} s") from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        except httpx2.RequestError as error:
            raise BadMoment(f"the connection broke: {str(error) or type(error).__name__}") from error
        finally:
            seconds.append(time.monotonic() - started)
        return self._checked(response, content)

    def _checked(self, response: httpx2.Response, content: bytes) -> Completion:
        said = f"HTTP {response.status_code}: {self._quoted(content)}"
        if response.has_redirect_location:
            raise ConfigurationError(
                f"the teacher's endpoint {self.settings.url} redirects to {response.headers['Location']!r}; nothing "
                "was sent there. If you trust that server, set VSR1_TEACHER_URL to it, and build again: finished rows "
                "are kept"
            )
        if response.status_code in PASSING or response.status_code >= 500:
            raise BadMoment(said, retry_after_s(response.headers.get("Retry-After", "")))
        if response.status_code in HOPELESS:
            raise ConfigurationError(
                f"the teacher's endpoint {self.settings.url} refuses requests for {self.recipe.model!r} ({said}); "
                "check VSR1_TEACHER_URL, VSR1_TEACHER_API_KEY and the model that it serves, and build again: finished "
                "rows are kept"
            )
        if response.status_code != 200:
            raise Refused(said)
        try:
            return Completion.model_validate_json(content)
        except ValidationError as error:
            raise BadMoment(f"the answer is not a chat completion: {self._quoted(content)}") from error

    def _quoted(self, content: bytes) -> str:
        """The beginning of the server's response, without the API key, which some servers repeat."""
        text, key = " ".join(content.decode(errors="replace").split()), self.settings.api_key
        return (text.replace(key, "***") if key else text)[:_MAX_QUOTED] or "(nothing)"


async def _bounded(response: httpx2.Response) -> bytes:
    """The body of a response. Refused: it is longer than MAX_REPLY_BYTES, or compressed."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Refused("the server compresses its replies although the request asks it not to")
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > MAX_REPLY_BYTES:
            raise Refused(f"the reply is longer than {MAX_REPLY_BYTES >> 20} MiB")
    return bytes(content)


async def _next(replies: AsyncIterator[TeacherReply]) -> TeacherReply | None:
    return await anext(replies, None)


def _asked_wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after_s if isinstance(error, BadMoment) else 0.0


def retry_after_s(header: str) -> float:
    """The seconds that a Retry-After header, a number or a date, asks for: between 0 and MAX_RETRY_AFTER_S. 0 when the
    header cannot be read."""
    try:
        asked = float(header)
    except ValueError:
        try:
            asked = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 0.0
    return 0.0 if math.isnan(asked) else min(max(asked, 0.0), MAX_RETRY_AFTER_S)
