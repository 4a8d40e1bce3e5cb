"""Adopt a checkpoint from elsewhere in place of a training: check that it fits the embedder, then record it.

From then on the row of the stage points to this checkpoint, and the stage trains nothing (`stages.adopted`).
"""

from __future__ import annotations

from pathlib import Path

from vsr1_core.home.hub.checkpoints import hub_source
from vsr1_core.models.checkpoints import load_policy, save_policy
from vsr1_core.models.registry import family_of, policy_family_of
from vsr1_core.models.soft_query import checkpoint_kind, own_soft_query
from vsr1_core.models.weights import digest_weights, stored_dtype
from vsr1_core.stages.adopted import Adopted, write_adopted
from vsr1_core.stages.base import View
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.trained import TrainedStage


def adopt(view: View, asset: str, source: str, folder: Path, training_file: Path | None = None) -> Path:
    """Let the checkpoint in `folder` replace the training of `asset`.

    A checkpoint in the authors' form is first saved in this project's form, with its options.

    Args:
        view: The dataset.
        asset: The trained asset, for example `sft_checkpoint`.
        source: Where the checkpoint comes from: a hub id or a folder.
        folder: The local folder of the checkpoint.
        training_file: The SFT file that contains the prompt; required for the authors' form.

    Returns:
        The path of the record. Deleting it makes the dataset train again.

    Raises:
        ValueError: The asset is not trained, the folder holds no policy with soft query modules, or the policy was
            trained with another embedder.
    """
    if not isinstance(view.stages.get(asset), TrainedStage):
        trained = [name for name, stage in view.stages.items() if isinstance(stage, TrainedStage)]
        raise ValueError(f"{asset!r} is not trained by this pipeline; use one of {', '.join(trained)}")
    kind = checkpoint_kind(folder)
    if kind == "plain":
        raise ValueError(f"{source} has no soft query modules: it is a base model; set it as ModelRecipe(policy=...)")
    if kind == "released":
        folder = _with_options(view, asset, source, folder, training_file)
    load_policy(folder, dtype=stored_dtype(folder))  # refuses missing, unexpected and wrongly shaped tensors
    _check_embedder(view, source, folder)
    return write_adopted(view, asset, Adopted(str(folder), digest_weights(folder), source))


def _with_options(view: View, asset: str, source: str, folder: Path, training_file: Path | None) -> Path:
    if training_file is None:
        raise ValueError(
            f"{source} is in the authors' form, which does not contain its prompt; give the training file that belongs "
            "to it: --training-file train_oneturn.json"
        )
    embedder = one_row(view, "base_models", "embedder")
    policy = policy_family_of(folder).load_released_policy(
        folder,
        training_file=training_file,
        embedder=hub_source(embedder) or embedder["digest"],
        dtype=stored_dtype(folder),  # a wider dtype would double the memory of this check
    )
    target = view.files(asset).absolute() / f"adopted-{digest_weights(folder)[:12]}"
    save_policy(policy, target, {"source": source})
    return target


def _check_embedder(view: View, source: str, folder: Path) -> None:
    """Raise ValueError where the policy was trained for another embedder: that one alone understands its latents."""
    soft_query = own_soft_query(folder)
    assert soft_query is not None, "load_policy has read it"
    row = one_row(view, "base_models", "embedder")
    if soft_query.embedder not in (row["digest"], row["source"], row["path"]):
        raise ValueError(
            f"{source} was trained with the embedder {soft_query.embedder}; {view.entry.name} searches with "
            f"{row['source'] or row['digest']}"
        )
    size, _ = family_of(row["path"]).embedder_sizes(Path(row["path"]))
    if soft_query.embedder_hidden_size != size:
        raise ValueError(f"{source} writes into embedders of size {soft_query.embedder_hidden_size}, not {size}")
