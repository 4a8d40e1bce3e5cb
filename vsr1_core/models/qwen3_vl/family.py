"""The family Qwen3-VL, which offers policies and embedders, published or tiny."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.input_form import EmbedderForm
from vsr1_core.models.family_protocols import TinyFamily
from vsr1_core.models.insertion import InsertionPlace
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.loading import load_base_policy, load_body, load_configured
from vsr1_core.models.qwen3_vl.released import load_released_policy
from vsr1_core.models.qwen3_vl.released_form import write_released_embedder, write_released_form
from vsr1_core.models.qwen3_vl.sizes import published_config, size_of
from vsr1_core.models.qwen3_vl.tiny import tiny_config
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.models.qwen3_vl.vision import fast_vision
from vsr1_core.models.qwen3_vl.vllm_writer import open_writer
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.recipes import TinyRecipe

MEMORY_BESIDE_SEARCH, MEMORY_BESIDE_TRAINING = 0.5, 0.25
"""Shares of the GPU's memory for vLLM. Beside training, the policy needs 16 bytes per parameter and its activations."""


class Qwen3VL:
    """See `family_protocols.TinyFamily`."""

    name = "qwen3_vl"

    def model_size(self, folder: Path) -> ModelSize:
        return size_of(Qwen3VLConfig.from_pretrained(folder))

    def published_size(self, model_id: str) -> ModelSize | None:
        config = published_config(model_id)
        return None if config is None else size_of(config)

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype, instruction: str) -> Qwen3VLEmbedder:
        return load_body(folder, device, dtype, instruction)

    def embedder_sizes(self, folder: Path) -> tuple[int, int]:
        size = int(Qwen3VLConfig.from_pretrained(folder).text_config.hidden_size)
        return size, size

    def insertion_place(self, folder: Path) -> InsertionPlace:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        after = Qwen3VLEmbedder(None, tokenizer).split_query("a query").after  # the split reads the tokenizer alone
        plain = tokenizer("a query", add_special_tokens=False)["input_ids"]
        return InsertionPlace(tokenizer.convert_ids_to_tokens(after), tokenizer("a query")["input_ids"] != plain)

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

    def write_released_form(self, folder: Path, target: Path, base: Path) -> list[str]:
        return write_released_form(folder, target, base)

    def write_released_embedder(self, folder: Path, target: Path) -> None:
        write_released_embedder(folder, target)

    def with_text_writer(self, policy: LoadedPolicy, name: str, folder: Path, learns: bool = False) -> LoadedPolicy:
        """See `family_protocols.PolicyFamily`. Raises ValueError for an engine other than vLLM, and
        ModuleNotFoundError, which says how to install vLLM, if it is missing."""
        if name != "vllm":
            raise ValueError(f"there is no text writer {name!r}; use in-process or vllm")
        memory = MEMORY_BESIDE_TRAINING if learns else MEMORY_BESIDE_SEARCH
        return policy.with_writer(open_writer(policy, folder, gpu_memory_utilization=memory, learns=learns))

    def new_tiny(self, recipe: TinyRecipe, texts: Sequence[str], instruction: str) -> Qwen3VLEmbedder:
        tokenizer = train_tokenizer(texts, recipe.vocab_size)
        model = fast_vision(Qwen3VLModel(tiny_config(recipe, tokenizer)))
        return Qwen3VLEmbedder(model, tokenizer, EmbedderForm("template", instruction))


FAMILY: TinyFamily = Qwen3VL()
