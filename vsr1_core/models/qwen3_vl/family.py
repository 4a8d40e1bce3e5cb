"""The family Qwen3-VL, which offers policies and embedders, published or tiny."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.protocols import TinyFamily
from vsr1_core.models.qwen3_vl.embedder import INSTRUCTION, Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.loading import load_base_policy, load_body, load_configured
from vsr1_core.models.qwen3_vl.released import load_released_policy
from vsr1_core.models.qwen3_vl.sizes import published_config, size_of
from vsr1_core.models.qwen3_vl.tiny import tiny_config
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.models.qwen3_vl.vision import fast_vision
from vsr1_core.models.qwen3_vl.vllm_writer import open_writer
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.recipes import TinyRecipe


class Qwen3VL:
    """See `protocols.TinyFamily`."""

    name = "qwen3_vl"
    query_instruction = INSTRUCTION

    def model_size(self, folder: Path) -> ModelSize:
        return size_of(Qwen3VLConfig.from_pretrained(folder))

    def published_size(self, model_id: str) -> ModelSize | None:
        config = published_config(model_id)
        return None if config is None else size_of(config)

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype) -> Qwen3VLEmbedder:
        return load_body(folder, device, dtype)

    def embedder_sizes(self, folder: Path) -> tuple[int, int]:
        size = int(Qwen3VLConfig.from_pretrained(folder).text_config.hidden_size)
        return size, size

    def load_policy(self, folder: Path, device: str, dtype: torch.dtype) -> LoadedPolicy:
        return load_configured(folder, Qwen3VLConfig.from_pretrained(folder), device, dtype)

    def new_policy(
        self, folder: Path, soft_query: SoftQueryConfig, device: str, dtype: torch.dtype, seed: int = 42
    ) -> LoadedPolicy:
        return load_base_policy(str(folder), soft_query, device, dtype, seed)

    def load_released_policy(
        self, folder: Path, *, training_file: Path, embedder: str, dtype: torch.dtype
    ) -> LoadedPolicy:
        return load_released_policy(folder, training_file=training_file, embedder=embedder, dtype=dtype)

    def with_text_writer(self, policy: LoadedPolicy, name: str, folder: Path) -> LoadedPolicy:
        """See `protocols.PolicyFamily`. Raises ValueError for an engine other than vLLM, and ModuleNotFoundError, which
        says how to install vLLM, if it is missing."""
        if name != "vllm":
            raise ValueError(f"there is no text writer {name!r}; use in-process or vllm")
        return policy.with_writer(open_writer(policy, folder))

    def new_tiny(self, recipe: TinyRecipe, texts: Sequence[str]) -> Qwen3VLEmbedder:
        tokenizer = train_tokenizer(texts, recipe.vocab_size)
        return Qwen3VLEmbedder(fast_vision(Qwen3VLModel(tiny_config(recipe, tokenizer))), tokenizer)


FAMILY: TinyFamily = Qwen3VL()
