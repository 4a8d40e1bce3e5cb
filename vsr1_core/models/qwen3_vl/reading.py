"""How the policy reads: all prompts at once, then one input per row on a cache (`PromptReading`), or whole rows with
gradients (`teacher_forced`). `models.decoding` decides what is fed, and uses the hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.qwen3_vl.batching import Batch, language_model_kwargs, left_padded
from vsr1_core.models.qwen3_vl.kv_cache import InPlaceCache, rows_that_fill_holes, same_prompts
from vsr1_core.models.qwen3_vl.policy import Policy
from vsr1_core.models.qwen3_vl.prefix import SharedPrefix, layer_inputs
from vsr1_core.models.qwen3_vl.vision import VideoFeatures


class _HiddenStates:
    """Runs the language model, and keeps the hidden states before the final norm beside those after it."""

    def __init__(self, policy: Policy) -> None:
        self.model = policy.model.language_model
        self.seed_is_pre_norm = policy.soft_query.seed_hidden == "pre_norm"
        self.pre_norm: Tensor | None = None

    def __enter__(self) -> _HiddenStates:
        self._hook = self.model.norm.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep(self, _module: object, args: tuple[Tensor, ...]) -> None:
        self.pre_norm = args[0]

    def run(self, **kwargs: object) -> Tensor:
        return self.model(**kwargs).last_hidden_state

    def seed(self, hidden: Tensor) -> Tensor:
        """The states [B, L, H] from which h_1 is read: `hidden` (post-norm) or, in compat, those before the norm."""
        return hidden if not self.seed_is_pre_norm or self.pre_norm is None else self.pre_norm


class PromptReading:
    """See `protocols.Reading`. Rows are in the order of the cache; mask is [B, L], and positions [B] are those of the
    next input."""

    def __init__(
        self,
        model: _HiddenStates,
        policy: Policy,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        pad_id: int,
        room: int,
    ) -> None:
        """Read the prompts in one pass; rows with the same prompt and video are read once."""
        self._model = model
        self._cache = InPlaceCache(policy.config.text_config.num_hidden_layers, room)
        keys = [(p.token_ids.numpy().tobytes(), id(f)) for p, f in zip(prompts, features, strict=True)]
        different, places = same_prompts(keys)
        batch = left_padded(policy.model, [prompts[i] for i in different], [features[i] for i in different], pad_id)
        hidden = model.run(**language_model_kwargs(batch), past_key_values=self._cache)
        self.rows = list(range(len(hidden)))
        self.mask = batch.mask
        self.positions = batch.positions.amax(dim=(0, 2)) + 1  # padding has position 0
        self.hidden, self.seed = hidden[:, -1], model.seed(hidden)[:, -1]
        if len(different) < len(prompts):
            self._cache.repeat_rows(places.to(batch.mask.device))
            self._select(places.tolist())
            self.rows = list(range(len(prompts)))

    def _select(self, index: Sequence[int]) -> None:
        at = torch.tensor(list(index), device=self.mask.device)
        self.rows = [self.rows[i] for i in index]
        self.mask, self.positions = self.mask[at], self.positions[at]
        self.hidden, self.seed = self.hidden[at], self.seed[at]

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Keep the rows at the places `kept` (ascending); the last rows fill the holes. Returns the old places in the
        new order of the rows."""
        if len(kept) == len(self.rows):
            return list(kept)
        holes, movers = rows_that_fill_holes(kept)
        order = list(range(len(kept)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self._cache.move_rows(holes, movers, len(kept))
        self._select(order)
        return order

    def step(self, embeds: Tensor) -> None:
        """One decoding step: one input embedding per row, [B, H]; append to the key-value cache, advance every row's
        position by 1 on all three rotary axes."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        hidden = self._model.run(
            inputs_embeds=embeds[:, None],
            attention_mask=self.mask,
            position_ids=self.positions[None, :, None].expand(3, -1, -1),
            past_key_values=self._cache,
        )
        self.positions = self.positions + 1
        self.hidden = hidden[:, -1]
        self.seed = self._model.seed(hidden)[:, -1]


@contextmanager
def read_prompts(
    policy: Policy, prompts: Sequence[Prompt], features: Sequence[VideoFeatures | None], pad_id: int, room: int
) -> Iterator[PromptReading]:
    """Read the prompts, and keep the model's hooks while they are continued. `room`: the expected number of steps."""
    with _HiddenStates(policy) as model:
        yield PromptReading(model, policy, prompts, features, pad_id, room)


def teacher_forced(
    policy: Policy,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    *,
    refining: Sequence[int],
    pad_id: int,
    num_soft_tokens: int,
) -> tuple[Tensor, Tensor, Batch]:
    """Hidden states [B, L, H] of whole rows (prompt and answer, left-padded), latents [R, N, D] of the rows
    `refining`, whose last token is <REFINE>, and the batch itself. Gradients flow through everything."""
    batch = left_padded(policy.model, prompts, features, pad_id)
    with _HiddenStates(policy) as model, layer_inputs(model.model) as inputs:
        hidden = model.run(**language_model_kwargs(batch), use_cache=False)
        seed = model.seed(hidden)[list(refining), -1]
    if not refining or not num_soft_tokens:
        return hidden, hidden.new_zeros(0, num_soft_tokens, policy.soft_query.embedding_size), batch
    prefix = SharedPrefix(model.model, inputs, batch, refining)
    tokens = [policy.latent(seed)]
    while len(tokens) < num_soft_tokens:
        # Convert to the precision of the text: autocast would leave the residual stream of the whole step in bf16.
        tokens.append(policy.latent(prefix.step(policy.latent_input(tokens[-1]).to(hidden))))
    return hidden, torch.stack(tokens, dim=1), batch
