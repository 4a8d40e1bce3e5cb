"""Runs passes of random models at reduced depth in a process of its own, and prints their measured and forecast peaks.

    python -m tests.core.pass_peaks

prints JSON: name -> [measured bytes, forecast bytes]. Widths are in the proportions of the 2B model.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3VLConfig

from tests.core.peak_run import status
from vsr1_core.models.memory import Learning, Passes
from vsr1_core.models.protocols import VideoFrames
from vsr1_core.models.qwen3_vl.policy import Policy, with_soft_query
from vsr1_core.models.qwen3_vl.sizes import published_config, size_of
from vsr1_core.models.qwen3_vl.vision import VisionTower, fast_vision
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.training import lora

WIDTH, LAYERS, TOKENS, ANSWER, RANK = 512, 3, 2000, 60, 16


def small_config() -> Qwen3VLConfig:
    config = published_config("Qwen/Qwen3-VL-2B-Instruct")
    assert config is not None
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = WIDTH, 3 * WIDTH, LAYERS
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = WIDTH // 128, WIDTH // 256, 4000
    vision.depth, vision.deepstack_visual_indexes, vision.out_hidden_size = 2, [0, 1], WIDTH
    vision.hidden_size, vision.intermediate_size, vision.num_heads = WIDTH, 4 * WIDTH, WIDTH // 64
    return config


def policy() -> Policy:
    torch.manual_seed(0)
    made = Policy(with_soft_query(small_config(), SoftQueryConfig(WIDTH, WIDTH)))
    fast_vision(made.model)
    return made


def peak_of(work: Callable[[], object]) -> int:
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return status("VmHWM") - before


@torch.no_grad()
def vision() -> tuple[int, float]:
    model = policy().model.eval()
    tower = VisionTower(model)
    video = VideoFrames(np.zeros((16, 256, 256, 3), np.uint8), [float(i) for i in range(16)])
    work = lambda: tower.encode([tower.prepare(video) for _ in range(2)])  # noqa: E731
    work()
    passes, patches = Passes(tower.size, 4), 2 * 8 * 256
    return peak_of(work), passes.vision(patches) + passes.features(patches / 4)


def _read(model: Policy, num_tokens: int, rows: int = 1) -> torch.Tensor:
    ids = torch.randint(0, 4000, (rows, num_tokens))
    embeds = model.model.language_model.embed_tokens(ids).requires_grad_(torch.is_grad_enabled())
    mask = torch.ones(rows, num_tokens, dtype=torch.long)
    mask[0, :3] = 0
    positions = torch.arange(num_tokens).expand(3, rows, -1)
    output = model.model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
    )
    return output.last_hidden_state


@torch.no_grad()
def text() -> tuple[int, float]:
    model = policy().eval()
    _read(model, 64)
    passes = Passes(size_of(model.config, model), 4)
    return peak_of(lambda: _read(model, TOKENS, 2)), passes.text([TOKENS, TOKENS])


def learning(rank: int) -> tuple[int, float]:
    """From the second step on, whose gradients and moments are there already."""
    model = policy()
    size = size_of(model.config, model)
    model.requires_grad_(True)
    model.model.visual.requires_grad_(False)
    if rank:
        model.model.language_model.to(torch.bfloat16)
        lora.attach(model.model.language_model, rank, 0)
    model.gradient_checkpointing_enable()
    model.train()
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "refine" not in name]
    optimizer = torch.optim.AdamW(trained)

    def step(num_tokens: int) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = _read(model, num_tokens)[0, -ANSWER:]
            loss = torch.nn.functional.cross_entropy(model.lm_head(states).float(), torch.zeros(ANSWER).long())
        loss.backward()
        optimizer.step()

    step(ANSWER)
    expected = Learning(size, rank, on_cpu=True)
    held = expected.held + 4 * expected.num_learning
    return peak_of(lambda: step(TOKENS)), expected.peak([TOKENS], ANSWER) - held


def main() -> None:
    works = {"vision": vision, "text": text, "all weights": lambda: learning(0), "adapters": lambda: learning(RANK)}
    print(json.dumps({name: work() for name, work in works.items()}))


if __name__ == "__main__":
    main()
