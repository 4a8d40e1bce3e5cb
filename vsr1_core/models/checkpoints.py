"""Reads and writes policies and embedders of any family. No weight is ever initialised anew without an error.

A checkpoint is a folder: `model.safetensors` with the soft query modules beside the family's own tensors,
`config.json` whose `soft_query` section holds the method's options, the tokenizer, and `record.json` (recipe, parents,
metrics). The registry finds the family that opens it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vsr1_core.input_form import QUERY_INSTRUCTION
from vsr1_core.models.protocols import Embedder, PolicyModel
from vsr1_core.models.published import FETCHED, RECORD, hub_name
from vsr1_core.models.registry import family_of, policy_family_of
from vsr1_core.models.soft_query import own_soft_query, soft_query_of
from vsr1_core.models.weights import digest_weights
from vsr1_core.recipes import MethodOptions
from vsr1_core.rows.files import atomic_folder, write_json
from vsr1_core.rows.whole_folders import read_whole


def save_policy(policy: PolicyModel, folder: Path, record: dict[str, Any]) -> str:
    """Write the policy's checkpoint folder in one rename. Returns the digest of its weights."""
    return _save(policy, folder, record)


def save_embedder(embedder: Embedder, folder: Path, record: dict[str, Any]) -> str:
    """Write the embedder's folder in one rename, with its input form in the record. Returns the digest of its
    weights."""
    return _save(embedder, folder, {**record, **embedder.recorded})


def _save(loaded: Any, folder: Path, record: dict[str, Any]) -> str:
    with atomic_folder(folder) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, record)
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
        ValueError: A tensor is missing, unexpected or of a wrong shape (the message names them), or the tokenizer does
            not belong to the policy.
        FileNotFoundError: The folder has no `config.json`.

    Example:
        >>> import vsr1_core as vsr1
        >>> vsr1.load_policy("checkpoints/sft").model.soft_query.num_soft_tokens   # doctest: +SKIP
        8
    """
    return read_whole(Path(folder), lambda path: policy_family_of(path).load_policy(path, device, dtype))


def open_policy(
    folder: str | Path,
    embedder: str | Path,
    options: MethodOptions | None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PolicyModel:
    """Open a policy checkpoint, or make a policy from a published model.

    A checkpoint has its options in its folder. A published model gets new soft query modules for the vectors of
    `embedder`, made with `options`.

    Args:
        folder: Folder or hub id of the checkpoint or of the published model.
        embedder: Folder or hub id of the embedder that the policy searches with.
        options: The method options for a published model, as recorded in its row of `base_models`; a checkpoint does
            not use them.
        device: A torch device such as `cpu` or `cuda:0`.
        dtype: What the weights are converted to.

    Raises:
        ValueError: A published model without options.
    """
    path = fetch_model(str(folder))
    if own_soft_query(path):
        return load_policy(path, device, dtype)
    if options is None:
        raise ValueError(
            f"{folder} is a published model, and the method options with which it becomes a policy are not recorded; "
            "build base_models again"
        )
    searched_with = fetch_model(str(embedder))
    sizes = family_of(searched_with).embedder_sizes(searched_with)
    soft_query = soft_query_of(options, *sizes, str(embedder))
    seed = options.seed
    return read_whole(path, lambda path: policy_family_of(path).new_policy(path, soft_query, device, dtype, seed))


def load_embedder(
    model_id: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    instruction: str = QUERY_INSTRUCTION,
) -> Embedder:
    """Load an embedder, the frozen search engine, of the family that its config names.

    Args:
        model_id: A hub id or a folder.
        device: A torch device such as `cpu` or `cuda:0`.
        dtype: What the weights are converted to.
        instruction: What the embedder is told with every query, if the family has instructions and the folder does not
            record one.

    Raises:
        ValueError: No family opens the model, or a tensor is missing, unexpected or of a wrong shape; the message names
            them.
        OSError: The hub cannot be reached, and the model is not cached.
    """
    folder = fetch_model(str(model_id))
    return read_whole(folder, lambda path: family_of(path).load_embedder(path, device, dtype, instruction))


LEFT_OUT = ["query_embedder/*.safetensors"]
"""What is not downloaded with a checkpoint: the copy of the embedder in the authors' checkpoints, 4 GB that a dataset
has already. `*` matches `/` as well."""


def fetch_model(model_id: str) -> Path:
    """The local folder of a model: `model_id` itself if it is a folder, otherwise the snapshot that is downloaded from
    the hub (weights as safetensors), in the revision that the name asks for (`ORG/NAME@REVISION`) or `published` has,
    without the weights of a `query_embedder/` in it.

    Raises OSError if the hub cannot be reached and the model is not cached.
    """
    if Path(model_id).is_dir():
        _require_folder(Path(model_id))
        return Path(model_id).absolute()
    from huggingface_hub import snapshot_download

    hub_id, revision = hub_name(model_id)
    try:
        found = snapshot_download(hub_id, revision=revision, allow_patterns=list(FETCHED), ignore_patterns=LEFT_OUT)
        return Path(found)
    except Exception as error:  # the hub client raises errors of its own, of httpx and of the OS, with one meaning here
        raise OSError(
            f"{model_id!r} could not be downloaded from the model hub ({type(error).__name__}); check the network and "
            "HF_TOKEN, or set the model in the configuration to a local folder"
        ) from error


def _require_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is not a checkpoint folder: it has no config.json")
