"""Folders of the published layout with random weights: the same tensors, names and bytes, and they load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.core.tiny_models import small_config
from vsr1_core.models.qwen3_vl import random_folder
from vsr1_core.models.qwen3_vl.loading import load_base_policy, load_body
from vsr1_core.models.qwen3_vl.random_folder import shapes_of, write_random_folder
from vsr1_core.models.qwen3_vl.sizes import published_config
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.models.weights import stored_dtype, stored_shapes


def test_the_2b_model_has_the_tensors_and_bytes_that_are_published() -> None:
    config = published_config("Qwen/Qwen3-VL-2B-Instruct")
    assert config is not None
    shapes = shapes_of(config)
    assert len(shapes) == 625
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 2_127_532_032
    assert shapes["model.visual.patch_embed.proj.weight"] == (1024, 3, 2, 16, 16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(_name: str) -> object:
        made = small_config()
        made.text_config.vocab_size = 1100  # more rows than the tokenizer has tokens, as published
        return made

    monkeypatch.setattr(random_folder, "published_config", config)


@pytest.mark.usefixtures("small")
def test_a_folder_loads_as_an_embedder_and_as_a_policy(tmp_path: Path) -> None:
    folder = write_random_folder(tmp_path / "model")
    assert stored_dtype(folder) == torch.bfloat16
    embedder = load_body(folder, dtype=torch.bfloat16)
    policy = load_base_policy(str(folder), SoftQueryConfig(48, 48))
    assert embedder.embed_queries(["a ring"]).shape == (1, 48)
    assert len(policy.prompts([[{"role": "user", "content": "hello"}]], [None])[0].token_ids) > 3
    layer = policy.model.model.language_model.layers[0]
    assert torch.all(layer.input_layernorm.weight == 1)
    assert float(layer.mlp.up_proj.weight.detach().std()) == pytest.approx(random_folder.DEVIATION, rel=0.1)


@pytest.mark.usefixtures("small")
def test_a_seed_decides_the_weights_and_layers_can_be_cut(tmp_path: Path) -> None:
    first, again, other = (write_random_folder(tmp_path / f"{i}", seed=seed) for i, seed in enumerate((0, 0, 1)))
    read = lambda folder: (folder / "model.safetensors").read_bytes()  # noqa: E731
    assert read(first) == read(again) != read(other)
    cut = stored_shapes(write_random_folder(tmp_path / "cut", num_layers=1))
    assert len(cut) < len(stored_shapes(first))
    with pytest.raises(ValueError, match="2B, 4B or 8B"):
        random_folder.published_config = lambda _name: None  # type: ignore[assignment]
        write_random_folder(tmp_path / "none", "3B")
