"""What a training step of the tiny models costs on one thread: packed, by transformers on padded batches, and the bare
matrix products, attention and optimiser of all tokens of all rows, in turns in one run: `make bench`.

Shapes are those of one of the two processes of `make demo`: 32 videos and captions, of which 16 are told, in base
training; 16 rows, of which 12 refine, in stage 1. Weights are random, which costs the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from tests.benchmarks.measuring import PROCESSOR, interleaved, line, milliseconds
from tests.core.tiny_models import TEXTS, query_text, tiny_embedder, tiny_policy
from vsr1_core.configurations import TINY
from vsr1_core.models.prompts import extended
from vsr1_core.models.qwen3_vl import embedder as embedder_module
from vsr1_core.models.qwen3_vl import reading
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.inputs import VideoPatches, video_patches
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.tiny import tiny_config
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.models.qwen3_vl.vision import encode_videos
from vsr1_core.reasoning.conversation import build_messages
from vsr1_core.stages.launch import KEPT_MEMORY
from vsr1_core.training.attention_backend import training_attention
from vsr1_core.training.contrastive import info_nce
from vsr1_core.training.muon import MuonWithAdamW, is_layer_matrix, orthogonal

REPEATS = 7
ANSWER_TOKENS, SYSTEM = 80, TINY.models.options.system_prompt
WANTED = "at least 1.2"
"""How many times less than padded batches a packed step has to cost; between 1.3 and 1.8 were found."""
MOST_OF_PRODUCTS = "at most 1.3"
TOKENIZER = train_tokenizer(TEXTS * 4, 765)
CONFIG = tiny_config(TINY.models.tiny, TOKENIZER)


@pytest.fixture(autouse=True)
def as_a_training() -> None:
    """One thread, which keeps freed memory as the processes of a training do (glibc alone has this setting)."""
    torch.set_num_threads(1)
    for number, name in ((-1, "MALLOC_TRIM_THRESHOLD_"), (-3, "MALLOC_MMAP_THRESHOLD_")):
        if keep := getattr(ctypes.CDLL(None), "mallopt", None):
            assert keep(number, int(KEPT_MEMORY[name])) == 1


def one_video(seed: int) -> VideoPatches:
    """12 frames of 64 x 64 pixels, as TINY samples them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    return video_patches(pixels, [float(second) for second in range(12)], CONFIG)


@contextmanager
def padded() -> Iterator[None]:
    """The batches of transformers, as all but packed passes run them."""
    with pytest.MonkeyPatch.context() as patch, training_attention("cpu"):
        for module in (reading, embedder_module):
            patch.setattr(module, "packs", lambda model: False)
        yield


def with_padded(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def work() -> Tensor:
        with padded():
            return step()

    return work


def optimized(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A step along the gradient of `loss`, with a rate of 0, so that each step is the same."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = MuonWithAdamW([{"named": named, "lr": 0.0}])

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def with_tokenizer(tokenizer: PreTrainedTokenizerFast) -> tuple[LoadedPolicy, Qwen3VLEmbedder]:
    policy, embedder = tiny_policy(embedding_size=128, embedder_size=128, config=CONFIG), tiny_embedder(config=CONFIG)
    return replace(policy, tokenizer=tokenizer), Qwen3VLEmbedder(embedder.model, tokenizer)


# The bare step. A product is (rows, inputs, outputs); attention is (rows of a batch, queries, keys).


def bare_products(shapes: Sequence[tuple[int, int, int]], backward: int) -> Callable[[], None]:
    """Forward products and `backward` of their two gradients each (1 where the weights are frozen)."""
    data = [(torch.randn(n, i), torch.randn(o, i), torch.randn(n, o)) for n, i, o in shapes]

    def work() -> None:
        for inputs, weight, grad in data:
            _ = inputs @ weight.T, grad @ weight
            if backward == 2:
                _ = grad.T @ inputs

    return work


def bare_attention(lengths: Sequence[tuple[int, int]]) -> Callable[[], None]:
    """Attention of 4 heads of 32 within rows, forward and backward; (queries, keys) of each row of each layer."""
    data = [(torch.randn(4, q, 32), torch.randn(4, k, 32), torch.zeros(q, k)) for q, k in lengths]

    def work() -> None:
        for query, key, mask in data:
            weights = torch.baddbmm(mask, query, key.mT).softmax(-1)
            _ = torch.bmm(weights, key), torch.bmm(weights.mT, query)
            of_scores = torch._softmax_backward_data(torch.bmm(query, key.mT), weights, -1, weights.dtype)
            _ = torch.bmm(of_scores, key), torch.bmm(of_scores.mT, query)

    return work


def of_layers(lengths: Sequence[int], last: Sequence[int]) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """The products and the attention of a pass over rows, of which the last layer computes the `last` states."""
    size, layers = TINY.models.tiny.hidden_size, TINY.models.tiny.num_layers
    every, wanted = sum(lengths), sum(last)
    whole = [(every, size, 3 * size), (every, size, size), (every, size, 6 * size), (every, 3 * size, size)]
    ends = [(every, size, 2 * size), (wanted, size, 2 * size), (wanted, size, 6 * size), (wanted, 3 * size, size)]
    attention = [(n, n) for n in lengths] * (layers - 1) + list(zip(last, lengths, strict=True))
    return whole * (layers - 1) + ends, attention


def single_steps(lengths: Sequence[int], steps: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """The products and the attention of `steps` single tokens after rows."""
    size, layers, rows = TINY.models.tiny.hidden_size, TINY.models.tiny.num_layers, len(lengths)
    products = [(rows, size, 3 * size), (rows, size, size), (rows, size, 6 * size), (rows, 3 * size, size)]
    return products * layers * steps, [(1, n) for n in lengths] * layers * steps


def bare_optimizer(model: torch.nn.Module) -> Callable[[], None]:
    matrices: dict[torch.Size, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and is_layer_matrix(name, parameter):
            matrices.setdefault(parameter.shape, []).append(torch.randn(parameter.shape))
    return lambda: [orthogonal(some, (3.4445, -4.775, 2.0315), 5, 1e-7) for some in matrices.values()] and None


def shown(name: str, step: Callable[[], Tensor], bare: Sequence[Callable[[], None]]) -> None:
    measured = interleaved(REPEATS, PROCESSOR, with_padded(step), step, lambda: [work() for work in bare])
    plain, ours, bound = (min(each.seconds) for each in measured)
    print(line(name, *milliseconds(plain, ours), plain / ours, WANTED, against="padded batches of transformers"))
    print(line(name, *milliseconds(bound, ours), ours / bound, MOST_OF_PRODUCTS, against="its bare products"))
    torch.testing.assert_close(measured[1].result, measured[0].result, atol=1e-4, rtol=1e-4)


def test_a_step_of_base_training() -> None:
    _, embedder = with_tokenizer(TOKENIZER)
    embedder.model.requires_grad_(True)
    videos, captions = [one_video(seed) for seed in range(32)], [query_text(seed) for seed in range(32)]
    conversations = [build_messages(query, SYSTEM) for query in captions[:16]]
    answers = [[7 + seed] * 60 for seed in range(16)]
    targets = torch.tensor([token for ids in answers for token in ids])

    def loss() -> Tensor:
        features = embedder.encoder.encode(videos)
        told = F.cross_entropy(embedder.answer_logits(conversations, features[:16], answers), targets)
        return told + info_nce(embedder.embed_queries(captions), embedder.embed_features(features), 0.07)

    layout = encode_videos(embedder.model, videos[:1])[0].layout
    of_video = [len(embedder.video_prompt(layout).token_ids)] * 32
    of_told = [len(ids) + n for ids, n in zip(answers, of_video, strict=False)]
    rows = [(embedder.query_tokens(captions), [1] * 32), (of_video, [1] * 32), (of_told, [61] * 16)]
    parts = [of_layers(*row) for row in rows]
    patches = 32 * 6 * 16
    vision = [(patches, 96, 288), (patches, 96, 96), (patches, 96, 288), (patches, 288, 96)] * 2
    products = [*vision, (patches, 1536, 96), (960, 128, 765), *(shape for shapes, _ in parts for shape in shapes)]
    bare = [bare_products(products, 2), bare_attention([row for _, rows in parts for row in rows])]
    shown("a step of base training", optimized(embedder.model, loss), [*bare, bare_optimizer(embedder.model)])


def test_a_step_of_stage_1() -> None:
    policy, embedder = with_tokenizer(TOKENIZER)
    policy.vision_tower.requires_grad_(False)
    policy.model.refine_gate.requires_grad_(False)
    with torch.no_grad():
        features = encode_videos(policy.model.model, [one_video(seed) for seed in range(16)])
    queries = [query_text(seed) for seed in range(16)]
    prompts = policy.prompts([build_messages(query, SYSTEM) for query in queries], [f.layout for f in features])
    rows = [extended(prompt, [7 + seed] * ANSWER_TOKENS) for seed, prompt in enumerate(prompts)]
    targets = torch.cat([row.token_ids[-ANSWER_TOKENS:] for row in rows])
    last, refining, videos = [ANSWER_TOKENS + 1] * 16, list(range(12)), F.normalize(torch.randn(1500, 128), dim=-1)

    def loss() -> Tensor:
        states, latents = policy.teacher_forced(rows, features, last=last, refining=refining, num_soft_tokens=8)
        soft = list(policy.model.append_input(latents))
        scores = embedder.embed_queries(queries[:12], soft) @ videos.T
        text = F.cross_entropy(policy.model.lm_head(torch.cat([s[:-1] for s in states])), targets)
        return text + scores.logsumexp(-1).mean()

    products, attention = of_layers([len(row.token_ids) for row in rows], last)
    searched, in_search = of_layers([8 + n for n in embedder.query_tokens(queries[:12])], [1] * 12)
    in_steps, of_steps = single_steps([len(row.token_ids) for row in rows[:12]], 7)
    bare = [bare_products([*products, *in_steps, (len(targets), 128, 765)], 2), bare_products(searched, 1)]
    bare += [bare_attention([*attention, *in_search, *of_steps]), bare_optimizer(policy.model)]
    shown("a step of stage 1", optimized(policy.model, loss), bare)
