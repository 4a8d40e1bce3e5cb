"""The decoding loop: text, then soft query tokens, on one key-value cache, for all rows of a batch together.

The next input of a row is either the embedding of a sampled token or R(z_{k-1}). A row that is complete leaves the
batch at once. The model family implements how prompts are read and how a step is taken (`protocols.Reading`), and the
differentiable form of both (`PolicyModel.teacher_forced`). Text may also come from a `TextWriter`: then the loop reads
prompt and text in one pass and continues with the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vsr1_core.models.answer_tokens import before_latents, decision_tokens, written_text
from vsr1_core.models.prompts import Prompt, extended
from vsr1_core.models.protocols import Decoded, DecodeSettings, PolicyModel, Reading
from vsr1_core.reasoning.conversation import REFINE_TOKEN


@torch.no_grad()
def decode(
    policy: PolicyModel,
    prompts: Sequence[Prompt],
    features: Sequence[Any],
    settings: DecodeSettings,
    *,
    wants_refine: Callable[[str], bool],
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """Decode every row: its text and, if it refines, N latents.

    Args:
        policy: The model that writes. If it has a `writer`, the writer makes the texts, and the latents come from a
            pass over prompt and text.
        prompts: One prompt per row.
        features: features[b] are the features of the video in prompts[b]; None for a prompt without a video.
        settings: Limit of the text, temperature, and N.
        wants_refine: Called with the text of a row when it has ended (stop token, <REFINE>, or the limit). If it
            returns True, <REFINE> is fed, whether the model wrote it or not, and N latents follow.
        generator: Draws tokens at a temperature above 0.

    Returns:
        One result per row, in the order of `prompts`. The text excludes the stop token and includes a <REFINE> that the
        model wrote.

    Example:
        rows = decode(policy, prompts, features, DecodeSettings(256), wants_refine=lambda text: "not_" in text)
    """
    if policy.writer is None:
        rows = _Rows(policy, settings, len(prompts), wants_refine, generator)
        # The limit is rarely reached: the cache has room for half of it at first, and grows if that is too little.
        return rows.run(prompts, features, room=min(settings.max_new_tokens, 32 + settings.max_new_tokens // 2))
    written = policy.writer.write(prompts, features, settings, generator)
    refining = [i for i, row in enumerate(written) if settings.num_soft_tokens and wants_refine(row.text)]
    ends = policy.end_tokens
    read = [extended(prompts[i], before_latents(policy.tokenizer, written[i].token_ids, ends)) for i in refining]
    latents = latents_after(policy, read, [features[i] for i in refining], settings.num_soft_tokens)
    for i, z in zip(refining, latents, strict=True):
        written[i].latents = z
    return written


@torch.no_grad()
def latents_after(
    policy: PolicyModel, prompts: Sequence[Prompt], features: Sequence[Any], num_soft_tokens: int
) -> list[Tensor]:
    """The latents z_1..z_N, [N, D] for each row, of rows that end with <REFINE>: one pass over prompt and text, then
    N - 1 single steps."""
    if not prompts or not num_soft_tokens:
        return []
    settings = DecodeSettings(num_soft_tokens=num_soft_tokens)
    rows = _Rows(policy, settings, len(prompts), wants_refine=lambda _text: True, generator=None)
    rows.latents = {row: [] for row in range(len(prompts))}
    return [row.latents for row in rows.run(prompts, features) if row.latents is not None]


class _Rows:
    """The state of each row: the tokens and latents so far, and the next input. A row writes text, then latents."""

    def __init__(
        self,
        policy: PolicyModel,
        settings: DecodeSettings,
        num_rows: int,
        wants_refine: Callable[[str], bool],
        generator: torch.Generator | None,
    ) -> None:
        self.policy, self.settings = policy, settings
        self.wants_refine, self.generator = wants_refine, generator
        self.decoded = [Decoded() for _ in range(num_rows)]
        self.latents: dict[int, list[Tensor]] = {}
        self.decision = decision_tokens(policy.tokenizer)
        self.refine_id = policy.tokenizer.convert_tokens_to_ids(REFINE_TOKEN)
        self.ends = policy.end_tokens
        self.embedding = policy.model.get_input_embeddings()

    def run(self, prompts: Sequence[Prompt], features: Sequence[Any], room: int = 0) -> list[Decoded]:
        """Read the prompts, then one input per row and step until no row is left. `room`: expected tokens of a text."""
        reading = self.policy.reading(prompts, features, room + self.settings.num_soft_tokens + 1)
        while reading.rows:
            embeds, kept = self.next_inputs(reading)
            if not kept:
                break
            reading.step(_at(embeds, reading.keep(kept)))
        for row, tokens in self.latents.items():
            self.decoded[row].latents = torch.stack(tokens)
        return self.decoded

    def next_inputs(self, reading: Reading) -> tuple[Tensor, list[int]]:
        """The next inputs [B, H] of the rows of `reading`, and the places of the rows that continue (ascending)."""
        thinking = [i for i, row in enumerate(reading.rows) if row in self.latents]
        writing = [i for i, row in enumerate(reading.rows) if row not in self.latents]
        if not writing:
            return self._think(reading, thinking)
        if not thinking:
            return self._write(reading, writing)
        embeds, kept = torch.empty_like(reading.hidden), []
        for places, act in ((thinking, self._think), (writing, self._write)):
            embeds[places], going_on = act(reading, places)
            kept += going_on
        return embeds, sorted(kept)

    def _think(self, reading: Reading, places: list[int]) -> tuple[Tensor, list[int]]:
        """Append each row's next soft token. Returns the inputs that follow, and the places that continue."""
        rows = [reading.rows[i] for i in places]
        first = [not self.latents[row] for row in rows]
        states = _at(reading.seed if any(first) else reading.hidden, places)
        if any(first) and not all(first):
            is_first = torch.tensor(first, device=states.device)
            states = torch.where(is_first[:, None], states, _at(reading.hidden, places))
        z = self.policy.model.latent(states)
        for row, token in zip(rows, z, strict=True):
            self.latents[row].append(token)
        wanted = self.settings.num_soft_tokens
        kept = [i for i, row in zip(places, rows, strict=True) if len(self.latents[row]) < wanted]
        return self.policy.model.latent_input(z).to(reading.hidden), kept  # R is float32

    def _write(self, reading: Reading, places: list[int]) -> tuple[Tensor, list[int]]:
        """Sample each row's next token; a row whose text ends continues with <REFINE> or leaves. Returns the inputs
        that follow, and the places that continue."""
        tokens, token_ids = self._sample(reading, places)
        embeds = self.embedding(tokens)
        kept = []
        for number, (i, token) in enumerate(zip(places, token_ids, strict=True)):
            row = reading.rows[i]
            if self._goes_on(row, token):
                kept.append(i)
                continue
            result = self.decoded[row]
            result.text = written_text(self.policy.tokenizer, result.token_ids, self.ends)
            if self.settings.num_soft_tokens and self.wants_refine(result.text):
                self.latents[row] = []
                embeds[number] = self.embedding.weight[self.refine_id]
                kept.append(i)
        return embeds, kept

    def _sample(self, reading: Reading, places: list[int]) -> tuple[Tensor, list[int]]:
        """Draw the next token of each row, on the device and here, and record its log-probability and the probability
        of a match."""
        log_probs = self.policy.model.lm_head(_at(reading.hidden, places)).float().log_softmax(-1)
        if self.settings.temperature > 0:
            weights = (log_probs / self.settings.temperature).softmax(-1)
            tokens = torch.multinomial(weights, 1, generator=self.generator)[:, 0]
        else:
            tokens = log_probs.argmax(-1)
        # One transfer for both, as the host waits for each. Single precision is exact for ids up to 16 million.
        pair = torch.stack([tokens.float(), log_probs.gather(-1, tokens[:, None])[:, 0]]).tolist()
        for place, i in enumerate(places):
            result = self.decoded[reading.rows[i]]
            is_kept = len(result.token_ids) < self.settings.max_new_tokens
            if is_kept and result.matched_probability is None and self.decision.is_decision_next(result.token_ids):
                both = log_probs[place, [self.decision.matched, self.decision.not_matched]]
                result.matched_probability = float(both.softmax(-1)[0])
            result.log_probs.append(pair[1][place])
        return tokens, [int(token) for token in pair[0]]

    def _goes_on(self, row: int, token: int) -> bool:
        """Record the token. Returns False if the row's text is complete. Stop tokens are counted but are not text.

        A token beyond the limit is not kept: every kept token has been fed to the model, so <REFINE> follows directly.
        """
        result = self.decoded[row]
        if len(result.token_ids) >= self.settings.max_new_tokens:
            result.log_probs.pop()
            return False
        result.token_ids.append(token)
        return token not in self.ends


def _at(states: Tensor, places: Sequence[int]) -> Tensor:
    """`states[places]`. If these are all places in their order, nothing is sent to the device or copied there."""
    return states if list(places) == list(range(len(states))) else states[list(places)]
