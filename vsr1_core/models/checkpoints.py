"""Reading and writing policies and embedders: safetensors, a record, and no silent re-initialisation.

A checkpoint is a folder: `model.safetensors` with METHOD 3's names beside Qwen3-VL's, `config.json` whose
`soft_query` section holds the method's options, the tokenizer, and `record.json` (recipe, parents, metrics).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.lake import atomic_folder, digest_file, write_json
from vsr1_core.models.embedder import Embedder
from vsr1_core.models.policy import Policy, SoftQueryConfig, soft_query_modules, with_soft_query
from vsr1_core.models.vision import batch_vision_attention
from vsr1_core.reasoning.conversation import REFINE_TOKEN

_SAFE = {"use_safetensors": True, "output_loading_info": True}


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with its tokenizer and where it came from."""

    model: Policy
    tokenizer: PreTrainedTokenizerBase
    source: str = ""


def save_policy(policy: LoadedPolicy, folder: Path, record: dict[str, Any]) -> str:
    """Write the checkpoint folder in one rename. Returns the digest of its weights."""
    with atomic_folder(folder) as temporary:
        policy.model.save_pretrained(temporary)
        policy.tokenizer.save_pretrained(temporary)
        write_json(temporary / "record.json", record)
    return digest_weights(folder)


def save_embedder(embedder: Embedder, folder: Path, record: dict[str, Any]) -> str:
    """Write the embedder's folder in one rename. Returns the digest of its weights."""
    with atomic_folder(folder) as temporary:
        embedder.model.save_pretrained(temporary)
        embedder.tokenizer.save_pretrained(temporary)
        write_json(temporary / "record.json", record)
    return digest_weights(folder)


def digest_weights(folder: Path) -> str:
    """One digest over all weight files and the config of a checkpoint folder."""
    paths = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    return "-".join(digest_file(path)[:12] for path in paths)


def load_policy(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LoadedPolicy:
    """Load a policy whose checkpoint has the soft query modules.

    Raises ValueError naming every missing, unexpected or wrongly shaped tensor.
    """
    path = Path(folder)
    _require_folder(path)
    model, info = Policy.from_pretrained(path, dtype=dtype, **_SAFE)
    _check_loaded(str(path), info, allowed_missing=("lm_head.weight",))
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    batch_vision_attention(model.model)
    return LoadedPolicy(model.to(device).eval(), tokenizer, str(path))


def load_base_policy(
    model_id: str, soft_query: SoftQueryConfig, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPolicy:
    """A published Qwen3-VL (hub id or folder) with fresh soft query modules and the <REFINE> token added."""
    config = with_soft_query(Qwen3VLConfig.from_pretrained(model_id), soft_query)
    model, info = Policy.from_pretrained(model_id, config=config, dtype=dtype, **_SAFE)
    fresh = soft_query_modules(
        config.text_config.hidden_size, soft_query.embedding_size, soft_query.embedder_hidden_size
    )
    names = tuple(f"{name}.{key}" for name, module in fresh.items() for key in module.state_dict())
    _check_loaded(model_id, info, allowed_missing=("lm_head.weight", *names))
    for name, module in fresh.items():
        model.get_submodule(name).load_state_dict(module.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
    if REFINE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [REFINE_TOKEN]})
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    batch_vision_attention(model.model)
    return LoadedPolicy(model.to(device).eval(), tokenizer, model_id)


def open_policy(
    folder: str | Path, embedder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPolicy:
    """A policy checkpoint, or a published Qwen3-VL that gets fresh soft query modules for `embedder`'s vectors."""
    if getattr(Qwen3VLConfig.from_pretrained(folder), "soft_query", None):
        return load_policy(folder, device, dtype)
    size = Qwen3VLConfig.from_pretrained(embedder).text_config.hidden_size
    return load_base_policy(str(folder), SoftQueryConfig(size, size, embedder=str(embedder)), device, dtype)


def fetch_model(model_id: str) -> Path:
    """The local folder of a model: `model_id` itself when it is one, else the hub's snapshot (weights as safetensors).

    Raises OSError when the hub cannot be reached and nothing is cached.
    """
    if Path(model_id).is_dir():
        _require_folder(Path(model_id))
        return Path(model_id).absolute()
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors; all mean the same to a user
        raise OSError(
            f"the model hub did not give {model_id!r} ({type(error).__name__}); check the network and HF_TOKEN, or "
            "set the recipe's model to a local folder"
        ) from error


def load_embedder(model_id: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Embedder:
    """The frozen search engine: a hub id or a folder of a Qwen3-VL body (with or without a language head)."""
    model, info = Qwen3VLModel.from_pretrained(model_id, dtype=dtype, **_SAFE)
    info["unexpected_keys"] = {k for k in info["unexpected_keys"] if not k.startswith("lm_head")}
    _check_loaded(str(model_id), info, allowed_missing=())
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
    return Embedder(batch_vision_attention(model).to(device).eval(), tokenizer)


def _require_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is not a checkpoint folder: it has no config.json")


def _check_loaded(source: str, info: dict[str, Any], allowed_missing: tuple[str, ...]) -> None:
    problems = [f"missing {k}" for k in sorted(set(info["missing_keys"]) - set(allowed_missing))]
    problems += [f"unexpected {k}" for k in sorted(info["unexpected_keys"])]
    problems += [f"wrong shape {k}" for k in sorted(map(str, info["mismatched_keys"]))]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"checkpoint {source} does not fit its config: {shown}")
