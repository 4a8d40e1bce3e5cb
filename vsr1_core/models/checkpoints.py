"""Reading and writing policies and embedders: safetensors, a record, and no silent re-initialisation.

A checkpoint is a folder: `model.safetensors` with METHOD 3's names beside Qwen3-VL's, `config.json` whose
`soft_query` section holds the method's options, the tokenizer, and `record.json` (recipe, parents, metrics).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.models.embedder import Embedder
from vsr1_core.models.policy import Policy, SoftQueryConfig, soft_query_modules, soft_query_of, with_soft_query
from vsr1_core.models.vision import batch_vision_attention
from vsr1_core.reasoning.conversation import REFINE_TOKEN
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import atomic_folder, digest_file, write_json

if TYPE_CHECKING:
    from vsr1_core.models.decoding import TextWriter

# Wrong shapes are let through by transformers and refused by `_check_loaded`, which can say which and why.
_SAFE = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with its tokenizer and where it came from. writer: who writes its text in place of the loop, with
    the same weights."""

    model: Policy
    tokenizer: PreTrainedTokenizerBase
    source: str = ""
    writer: TextWriter | None = None


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
    return load_configured(path, Qwen3VLConfig.from_pretrained(path), device, dtype)


def load_configured(
    folder: Path, config: Qwen3VLConfig, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPolicy:
    """The policy that `config` (with its soft_query section) describes, every tensor of it from `folder`.

    Raises ValueError naming every missing, unexpected or wrongly shaped tensor, and for a tokenizer that has no
    <REFINE> or more tokens than the model has embeddings.
    """
    model, info = Policy.from_pretrained(folder, config=config, dtype=dtype, **_SAFE)
    _check_loaded(str(folder), info, allowed_missing=_tied(config))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_tokenizer(str(folder), tokenizer, model)
    batch_vision_attention(model.model)
    return LoadedPolicy(model.to(device).eval(), tokenizer, str(folder))


def load_base_policy(
    model_id: str,
    soft_query: SoftQueryConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 42,
) -> LoadedPolicy:
    """A published Qwen3-VL (hub id or folder) with fresh soft query modules and the <REFINE> token added.

    The same `seed` gives the same fresh weights. Raises ValueError for a checkpoint that brings soft query modules of
    its own: those are weights to load (`load_policy`, `released.load_released_policy`), not to start anew.
    """
    config = with_soft_query(Qwen3VLConfig.from_pretrained(model_id), soft_query)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = Policy.from_pretrained(model_id, config=config, dtype=dtype, **_SAFE)
        fresh = _fresh_modules(model, model_id, info)
        _check_loaded(model_id, info, allowed_missing=(*_tied(config), *fresh))
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
        if REFINE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([REFINE_TOKEN], special_tokens=True)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
    _check_tokenizer(model_id, tokenizer, model)
    batch_vision_attention(model.model)
    return LoadedPolicy(model.to(device).eval(), tokenizer, model_id)


def _fresh_modules(model: Policy, source: str, info: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Give `model`'s soft query modules their starting weights; returns them by name."""
    soft, hidden_size = model.soft_query, model.config.text_config.hidden_size
    modules = soft_query_modules(hidden_size, soft.embedding_size, soft.embedder_hidden_size)
    fresh = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    wrong_shape = {key for key, *_ in info["mismatched_keys"]}
    trained = sorted(set(fresh) - set(info["missing_keys"]) | set(fresh) & wrong_shape)
    if trained:
        raise ValueError(
            f"{source} brings soft query modules of its own ({trained[0]} and {len(trained) - 1} more tensors): load "
            "it as a checkpoint; one in the authors' form is imported with vsr1_core.models.released"
        )
    model.load_state_dict(fresh, strict=False)
    return fresh


def own_soft_query(folder: str | Path) -> SoftQueryConfig | None:
    """What a checkpoint records of its soft query; None for a published Qwen3-VL, which has none. No weight is read."""
    recorded = getattr(Qwen3VLConfig.from_pretrained(folder), "soft_query", None)
    return SoftQueryConfig(**recorded) if recorded else None


def open_policy(
    folder: str | Path,
    embedder: str | Path,
    options: MethodOptions | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedPolicy:
    """A policy checkpoint, which has its options in its own folder, or a published Qwen3-VL, which gets fresh soft
    query modules for `embedder`'s vectors, made with `options`: those that its row says.

    Raises ValueError for a published model without options.
    """
    if own_soft_query(folder):
        return load_policy(folder, device, dtype)
    if options is None:
        raise ValueError(f"nothing says with which options {folder} becomes a policy: build base_models again")
    size = Qwen3VLConfig.from_pretrained(embedder).text_config.hidden_size
    return load_base_policy(str(folder), soft_query_of(options, size, str(embedder)), device, dtype, options.seed)


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


def _tied(config: Qwen3VLConfig) -> tuple[str, ...]:
    """The head may be missing only where it is the embedding matrix."""
    return ("lm_head.weight",) if config.tie_word_embeddings else ()


def _check_loaded(source: str, info: dict[str, Any], allowed_missing: Collection[str]) -> None:
    problems = [f"missing {k}" for k in sorted(set(info["missing_keys"]) - set(allowed_missing))]
    problems += [f"unexpected {k}" for k in sorted(info["unexpected_keys"])]
    problems += [
        f"{name} has the shape {list(stored)}, the config asks for {list(wanted)}"
        for name, stored, wanted in sorted(info["mismatched_keys"])
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"checkpoint {source} does not fit its config: {shown}")


def _check_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase, model: Policy) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if REFINE_TOKEN not in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer of {source} has no {REFINE_TOKEN}: it is not the one the policy was trained with"
        )
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer of {source} has {len(tokenizer)} tokens, its model {rows} embeddings")
