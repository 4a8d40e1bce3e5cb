"""How the policy reads: all prompts at once, then one input per row on a cache (`PromptReading`), or whole rows with
gradients (`teacher_forced`). `models.decoding` decides what is fed, and uses the hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vsr1_core.models.prompts import Prompt
from vsr1_core.models.qwen3_vl.batching import Batch, language_model_kwargs, left_padded
from vsr1_core.models.qwen3_vl.branches import Branches
from vsr1_core.models.qwen3_vl.captures import capture_on
from vsr1_core.models.qwen3_vl.kv_cache import InPlaceCache, rows_that_fill_holes, same_prompts
from vsr1_core.models.qwen3_vl.latent_steps import LatentSteps, after_batch, after_packed
from vsr1_core.models.qwen3_vl.packed import pack, packs, read
from vsr1_core.models.qwen3_vl.policy import Policy
from vsr1_core.models.qwen3_vl.prefix import layer_inputs
from vsr1_core.models.qwen3_vl.single_steps import SingleSteps
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
    """See `protocols.Reading`. Rows are in the order of the cache."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        features: Sequence[VideoFeatures | None],
        pad_id: int,
        room: int,
    ) -> None:
        """Read the prompts in one pass; rows with the same prompt and video are read once."""
        cache = InPlaceCache(policy.config.text_config.num_hidden_layers, room)
        different, places = _read_once(prompts, features)
        batch = left_padded(policy.model, [prompts[i] for i in different], [features[i] for i in different], pad_id)
        with _HiddenStates(policy) as model:
            hidden = model.run(**language_model_kwargs(batch), past_key_values=cache)
            self.hidden, self.seed = hidden[:, -1], model.seed(hidden)[:, -1]
        self.rows = list(range(len(prompts)))
        mask, positions = batch.mask, batch.positions.amax(dim=(0, 2)) + 1  # padding has position 0
        if len(different) < len(prompts):
            at = places.to(mask.device)
            cache.repeat_rows(at)
            self.hidden, self.seed, mask, positions = (t[at] for t in (self.hidden, self.seed, mask, positions))
        self._seed_is_pre_norm = policy.soft_query.seed_hidden == "pre_norm"
        self._steps = SingleSteps(policy.model.language_model, cache, mask, positions, capture_on(mask.device))

    def keep(self, kept: Sequence[int]) -> list[int]:
        """Keep the rows at the places `kept` (ascending); the last rows fill the holes. Returns the old places in the
        new order of the rows."""
        if len(kept) == len(self.rows):
            return list(kept)
        holes, movers = rows_that_fill_holes(kept)
        order = list(range(len(kept)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self._steps.move_rows(holes, movers, len(kept))
        self.rows = [self.rows[i] for i in order]
        self.hidden, self.seed = self.hidden[order], self.seed[order]
        return order

    def step(self, embeds: Tensor) -> None:
        """One decoding step: one input embedding per row, [B, H]; append to the key-value cache, advance every row's
        position by 1 on all three rotary axes."""
        before_norm, self.hidden = self._steps.step(embeds)
        self.seed = before_norm if self._seed_is_pre_norm else self.hidden


def _read_once(prompts: Sequence[Prompt], features: Sequence[VideoFeatures | None]) -> tuple[list[int], Tensor]:
    """The rows whose prompt and video occur for the first time, and for every row which of these it equals."""
    return same_prompts([(p.token_ids.numpy().tobytes(), id(f)) for p, f in zip(prompts, features, strict=True)])


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
    steps = after_batch(model.model, inputs, batch, refining, num_soft_tokens - 1)
    return hidden, _latents(policy, seed, steps, num_soft_tokens), batch


def _latents(policy: Policy, seed: Tensor, steps: LatentSteps, num_soft_tokens: int) -> Tensor:
    """The latents [R, N, D] that follow the states `seed` [R, H] at the ends of the rows of `steps`."""
    tokens = [policy.latent(seed)]
    while len(tokens) < num_soft_tokens:
        # Convert to the precision of the text: autocast would leave the residual stream of the whole step in bf16.
        tokens.append(policy.latent(steps.step(policy.latent_input(tokens[-1]).to(seed))))
    return torch.stack(tokens, dim=1)


def answer_states(
    policy: Policy,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    *,
    last: Sequence[int],
    refining: Sequence[int],
    pad_id: int,
    num_soft_tokens: int,
) -> tuple[list[Tensor], Tensor]:
    """As `teacher_forced`, where only the hidden states of the last `last[b]` tokens of each row are wanted, one
    [last[b], H] per row. Packed, where the model and the device allow it."""
    model = policy.model.language_model
    if not packs(model):
        kwargs = {"refining": refining, "pad_id": pad_id, "num_soft_tokens": num_soft_tokens}
        hidden, latents, _ = teacher_forced(policy, prompts, features, **kwargs)  # type: ignore[arg-type]
        return [row[-count:] for row, count in zip(hidden, last, strict=True)], latents
    packed = pack(policy.model, prompts, features, last)
    done = read(model, packed)
    if not refining or not num_soft_tokens:
        return done.states, packed.embeds.new_zeros(0, num_soft_tokens, policy.soft_query.embedding_size)
    seeds = done.before_norm if policy.soft_query.seed_hidden == "pre_norm" else done.states
    seed = torch.stack([seeds[row][-1] for row in refining])
    steps = after_packed(model, packed, done, refining, num_soft_tokens - 1)
    return done.states, _latents(policy, seed, steps, num_soft_tokens)


def teacher_forced_answers(
    policy: Policy,
    prompts: Sequence[Prompt],
    features: Sequence[VideoFeatures | None],
    answers: Sequence[Sequence[int]],
    *,
    refining: Sequence[int],
    pad_id: int,
    num_soft_tokens: int,
) -> tuple[list[Tensor], Tensor]:
    """As `teacher_forced`, for answers of which many follow the same prompt; rows with the same prompt and video are
    read once. `answers[b]`: the tokens that follow prompts[b].

    Returns the hidden states [1 + n_b, H] at the end of each prompt and at each token of its answer, and the latents
    [R, N, D] of the rows `refining`. The tokens of all answers are one forward pass, and so is each latent of all rows.
    """
    different, places = _read_once(prompts, features)
    batch = left_padded(policy.model, [prompts[i] for i in different], [features[i] for i in different], pad_id)
    with _HiddenStates(policy) as model, layer_inputs(model.model) as inputs:
        last = model.run(**language_model_kwargs(batch), use_cache=False)[:, -1]
    language_model = policy.model.language_model
    branches = Branches(language_model, inputs, batch, places.tolist())
    device = batch.token_ids.device
    embeds = [language_model.embed_tokens(torch.tensor(ids, dtype=torch.long, device=device)) for ids in answers]
    before_norm = branches.read(embeds)
    normed = [language_model.norm(states) for states in before_norm]
    hidden = [torch.cat([last[place][None], states]) for place, states in zip(places.tolist(), normed, strict=True)]
    if not refining or not num_soft_tokens:
        return hidden, last.new_zeros(0, num_soft_tokens, policy.soft_query.embedding_size)
    seeds = before_norm if policy.soft_query.seed_hidden == "pre_norm" else normed
    seed = torch.stack([seeds[row][-1] for row in refining])
    steps, filled, places_of_rows = branches.steps(refining, num_soft_tokens - 1)
    return hidden, _latents(policy, seed[filled], steps, num_soft_tokens)[places_of_rows]
