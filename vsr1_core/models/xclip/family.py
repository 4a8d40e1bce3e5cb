"""The family X-CLIP, which offers embedders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, XCLIPConfig, XCLIPModel

from vsr1_core.models.family_protocols import EmbedderFamily
from vsr1_core.models.insertion import InsertionPlace
from vsr1_core.models.sizes import ModelSize
from vsr1_core.models.weights import LOADING, check_loaded
from vsr1_core.models.xclip.embedder import XCLIPEmbedder, size_of
from vsr1_core.models.xclip.pixels import normalisation


class XCLIP:
    """See `family_protocols.EmbedderFamily`."""

    name = "xclip"

    def load_embedder(self, folder: Path, device: str, dtype: torch.dtype, instruction: str) -> XCLIPEmbedder:
        """See `family_protocols.EmbedderFamily`. X-CLIP reads no instruction."""
        model, info = XCLIPModel.from_pretrained(folder, dtype=dtype, **LOADING)
        # Checkpoints that older versions wrote also contain the numbers 0..L-1.
        info["unexpected_keys"] = {k for k in info["unexpected_keys"] if not k.endswith("embeddings.position_ids")}
        check_loaded(str(folder), info)
        model.requires_grad_(False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return XCLIPEmbedder(model.to(device).eval(), tokenizer, normalisation(folder))

    def insertion_place(self, folder: Path) -> InsertionPlace:
        """Before the closing token, without which no query is read."""
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        ids = tokenizer("a query")["input_ids"]
        has_end_token = ids[-1] == tokenizer.eos_token_id
        return InsertionPlace(tokenizer.convert_ids_to_tokens(ids[-1:]) if has_end_token else (), has_end_token)

    def model_size(self, folder: Path) -> ModelSize:
        config = XCLIPConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = XCLIPModel(config)
        return size_of(model)

    def published_size(self, model_id: str) -> ModelSize | None:
        """None, because no published sizes are recorded here; `model_size` works for a model on this machine."""
        return None

    def embedder_sizes(self, folder: Path) -> tuple[int, int]:
        config = XCLIPConfig.from_pretrained(folder)
        return int(config.text_config.hidden_size), int(config.projection_dim)


FAMILY: EmbedderFamily = XCLIP()
