"""Reading and writing policies and embedders of any family: safetensors, a record, and no silent re-initialisation.

A checkpoint is a folder: `model.safetensors` with the soft query modules beside the family's own tensors,
`config.json` whose `soft_query` section holds the method's options, the tokenizer, and `record.json` (recipe, parents,
metrics). Which family opens it is the registry's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vsr1_core.models.protocols import Embedder, PolicyModel
from vsr1_core.models.registry import family_of, policy_family_of
from vsr1_core.models.soft_query import own_soft_query, soft_query_of
from vsr1_core.models.weights import digest_weights
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import atomic_folder, write_json


def save_policy(policy: PolicyModel, folder: Path, record: dict[str, Any]) -> str:
    """Write the policy's checkpoint folder in one rename. Returns the digest of its weights."""
    return _save(policy, folder, record)


def save_embedder(embedder: Embedder, folder: Path, record: dict[str, Any]) -> str:
    """Write the embedder's folder in one rename. Returns the digest of its weights."""
    return _save(embedder, folder, record)


def _save(loaded: Any, folder: Path, record: dict[str, Any]) -> str:
    with atomic_folder(folder) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        write_json(temporary / "record.json", record)
    return digest_weights(folder)


def load_policy(folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PolicyModel:
    """Load a policy whose checkpoint has the soft query modules.

    Args:
        folder: The checkpoint's folder: `model.safetensors`, `config.json` with a `soft_query` section, the tokenizer.
        device: A torch device such as `cpu` or `cuda:0`.
        dtype: What the weights are converted to.

    Returns:
        The model, in evaluation mode on `device`, with its tokenizer and the folder.

    Raises:
        ValueError: A tensor is missing, unexpected or of a wrong shape; each is named. Or the tokenizer is another one.
        FileNotFoundError: The folder has no `config.json`.

    Example:
        >>> import vsr1_core as vsr1
        >>> vsr1.load_policy("checkpoints/sft").model.soft_query.num_soft_tokens   # doctest: +SKIP
        8
    """
    return policy_family_of(folder).load_policy(Path(folder), device, dtype)


def open_policy(
    folder: str | Path,
    embedder: str | Path,
    options: MethodOptions | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PolicyModel:
    """A policy checkpoint, which has its options in its own folder, or a published model, which gets fresh soft query
    modules for `embedder`'s vectors, made with `options`: those that its row says.

    Raises ValueError for a published model without options.
    """
    path = fetch_model(str(folder))
    if own_soft_query(path):
        return load_policy(path, device, dtype)
    if options is None:
        raise ValueError(f"nothing says with which options {folder} becomes a policy: build base_models again")
    searched_with = fetch_model(str(embedder))
    sizes = family_of(searched_with).embedder_sizes(searched_with)
    soft_query = soft_query_of(options, *sizes, str(embedder))
    return policy_family_of(path).new_policy(path, soft_query, device, dtype, options.seed)


def load_embedder(model_id: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Embedder:
    """The frozen search engine: a hub id or a folder, of whichever family its config names.

    Raises ValueError for a model of no family, and naming every missing, unexpected or wrongly shaped tensor.
    """
    folder = fetch_model(str(model_id))
    return family_of(folder).load_embedder(folder, device, dtype)


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


def _require_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is not a checkpoint folder: it has no config.json")
