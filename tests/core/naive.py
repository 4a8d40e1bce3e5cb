"""The decoding loop in its slowest and plainest form: what the fast code is compared with, by tests and benchmarks.

Written from the paper with plain transformers calls and `torch.nn.functional`; nothing of `vsr1_core` is imported.
Latents: N full multimodal passes, vision tower included, one row at a time. `weights` are a checkpoint's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

REFINE = "<REFINE>"
Weights = Mapping[str, Tensor]


def projector(weights: Weights, hidden: Tensor) -> Tensor:
    """P: Linear(H, D), LayerNorm(D), GELU, Linear(D, D)."""
    inner = F.linear(hidden, weights["refine_projector.0.weight"], weights["refine_projector.0.bias"])
    scale, shift = weights["refine_projector.1.weight"], weights["refine_projector.1.bias"]
    inner = F.gelu(F.layer_norm(inner, scale.shape, scale, shift))
    return F.linear(inner, weights["refine_projector.3.weight"], weights["refine_projector.3.bias"])


def input_projector(weights: Weights, name: str, latent: Tensor) -> Tensor:
    """R (`latent`) and A (`append`): LayerNorm(D), Linear."""
    prefix = f"refine_{name}_input_projector"
    scale, shift = weights[f"{prefix}.0.weight"], weights[f"{prefix}.0.bias"]
    normed = F.layer_norm(latent, scale.shape, scale, shift)
    return F.linear(normed, weights[f"{prefix}.1.weight"], weights[f"{prefix}.1.bias"])


def last_hidden(
    model: Qwen3VLForConditionalGeneration,
    token_ids: Tensor,
    added: Sequence[Tensor],
    pixels: Tensor | None,
    grid: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """One full pass over a row: hidden state of the last position, before and after the final norm.

    `added` are input embeddings after the tokens. Placeholder ids stand for them, so that positions go on as text.
    """
    filler = token_ids.new_full((len(added),), int(token_ids[-1]))
    ids = torch.cat([token_ids, filler])[None]
    embeds = model.get_input_embeddings()(ids)
    if added:
        embeds = torch.cat([embeds[:, : len(token_ids)], torch.stack(list(added))[None]], dim=1)
    video: dict[str, Any] = {}
    positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
    if pixels is not None and grid is not None:
        video = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([list(grid)], device=ids.device)}
        types = (ids == model.config.video_token_id).int() * 2
        positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=types, video_grid_thw=video["video_grid_thw"])
    seen: list[Tensor] = []
    hook = model.model.language_model.layers[-1].register_forward_hook(lambda _m, _a, output: seen.append(output))
    output = model.model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **video)
    hook.remove()
    before = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return before[0, -1], output.last_hidden_state[0, -1]


def latents(
    model: Qwen3VLForConditionalGeneration,
    weights: Weights,
    token_ids: Tensor,
    pixels: Tensor | None,
    grid: Sequence[int] | None,
    num_soft_tokens: int,
    seed_hidden: str = "post_norm",
) -> Tensor:
    """z_1..z_N [N, D] of one row, whose last token is <REFINE>: N full passes."""
    made: list[Tensor] = []
    for k in range(num_soft_tokens):
        added = [input_projector(weights, "latent", z) for z in made]
        before, after = last_hidden(model, token_ids, added, pixels, grid)
        made.append(projector(weights, before if k == 0 and seed_hidden == "pre_norm" else after))
    return torch.stack(made)


def greedy_ids(
    model: Qwen3VLForConditionalGeneration, token_ids: Tensor, pixels: Tensor, grid: Sequence[int], **settings: Any
) -> list[int]:
    """What `generate` writes after the prompt, one row, video read by the model itself."""
    ids = token_ids[None]
    model.model.rope_deltas = None
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.video_token_id).int() * 2,
        pixel_values_videos=pixels,
        video_grid_thw=torch.tensor([list(grid)], device=ids.device),
        do_sample=False,
        **settings,
    )
    return output[0, len(token_ids) :].tolist()


def rendered_query(tokenizer: PreTrainedTokenizerBase, query: str) -> str:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Represent the user's input."}]},
        {"role": "user", "content": [{"type": "text", "text": query}]},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def insertion_point(tokenizer: PreTrainedTokenizerBase, query: str) -> tuple[list[int], int]:
    """Token ids of the rendered query, and how many of them stand before the end of the query's text."""
    text = rendered_query(tokenizer, query)
    end = text.rindex(query) + len(query)
    coded = tokenizer(text, return_offsets_mapping=True)
    # Appended end-of-text tokens have the offsets (0, 0): they stand after everything.
    before = [i for i, (start, stop) in enumerate(coded["offset_mapping"]) if stop > start and start < end]
    return coded["input_ids"], max(before) + 1


def query_vector(
    model: Qwen3VLModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Weights,
    query: str,
    soft_tokens: Tensor | None = None,
) -> Tensor:
    """The unit vector of one query; A(z) goes in right after its text, the head is used where there is one."""
    ids, place = insertion_point(tokenizer, query)
    device = model.get_input_embeddings().weight.device
    embeds = model.get_input_embeddings()(torch.tensor(ids, device=device))
    if soft_tokens is not None:
        added = input_projector(weights, "append", soft_tokens)
        embeds = torch.cat([embeds[:place], added, embeds[place:]])
    positions = torch.arange(len(embeds), device=device).expand(3, 1, -1)
    hidden = model.language_model(inputs_embeds=embeds[None], position_ids=positions).last_hidden_state[0, -1]
    if "query_embedder_head.weight" in weights:
        hidden = F.linear(hidden, weights["query_embedder_head.weight"], weights["query_embedder_head.bias"])
    return hidden.float() / hidden.float().norm()
