"""Adopt a checkpoint from elsewhere in place of a training: check that it fits the embedder, then record it.

From then on the row of the stage points to this checkpoint, and the stage trains nothing (`stages.adopted`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.home.hub.checkpoints import hub_source
from vsr1_core.home.hub.embedder_check import OwnEmbedder, check_embedder, embedder_name, insertion_sentence
from vsr1_core.models.checkpoints import fetch_model, load_policy, save_policy
from vsr1_core.models.registry import policy_family_of
from vsr1_core.models.soft_query import checkpoint_kind
from vsr1_core.models.weights import digest_weights, stored_dtype
from vsr1_core.stages.adopted import Adopted, write_adopted
from vsr1_core.stages.base import View
from vsr1_core.stages.graph import writing
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.trained import TrainedStage


@dataclass(frozen=True)
class Adoption:
    """What was done. record: the file whose deletion makes the dataset train again. folder: of the checkpoint that the
    dataset uses. found: sentences about it."""

    record: Path
    folder: Path
    found: tuple[str, ...]


def adopt(
    view: View,
    asset: str,
    source: str,
    folder: Path,
    training_file: Path | None = None,
    *,
    wait: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Adoption:
    """Let the checkpoint in `folder` replace the training of `asset`.

    A checkpoint in the authors' form is first saved in this project's form, with its options. The dataset need not be
    built: without a row of `base_models` the configured embedder is fetched.

    Args:
        view: The dataset.
        asset: The trained asset, for example `sft_checkpoint`.
        source: Where the checkpoint comes from: a hub id or a folder.
        folder: The local folder of the checkpoint.
        training_file: The SFT file that contains the prompt; required for the authors' form.
        wait: Wait for a build of the dataset that is going on, instead of raising.
        log: Called with a line about what is waited for.

    Returns:
        The path of the record, and what was found: how the embedders were compared, and where soft tokens go.

    Raises:
        ValueError: The asset is not trained, the folder holds no policy with soft query modules, or the policy was
            trained with another embedder.
        OSError: The configured embedder cannot be downloaded.
        LeaseHeld: Something else writes the dataset.
    """
    with writing(view, f"the adoption of {source}", wait=wait, log=log) as held:
        return _adopt(held, asset, source, folder, training_file)


def _adopt(view: View, asset: str, source: str, folder: Path, training_file: Path | None) -> Adoption:
    if not isinstance(view.stages.get(asset), TrainedStage):
        trained = [name for name, stage in view.stages.items() if isinstance(stage, TrainedStage)]
        raise ValueError(f"{asset!r} is not trained by this pipeline; use one of {', '.join(trained)}")
    kind = checkpoint_kind(folder)
    if kind == "plain":
        raise ValueError(f"{source} has no soft query modules: it is a base model; set it as ModelRecipe(policy=...)")
    embedder, own = _embedder(view), OwnEmbedder(source, folder)
    if kind == "released":
        folder = _with_options(view, asset, source, folder, training_file, embedder)
    load_policy(folder, dtype=stored_dtype(folder))  # refuses missing, unexpected and wrongly shaped tensors
    found = [*check_embedder(own, folder, embedder, view.entry.name), insertion_sentence(embedder)]
    if kind == "released" and not own.exists():
        found.insert(0, f"It does not say which embedder it was trained with: {embedder_name(embedder)} is assumed.")
    record = write_adopted(view, asset, Adopted(str(folder), digest_weights(folder), source))
    return Adoption(record, folder, tuple(found))


def _embedder(view: View) -> Mapping[str, Any]:
    """The dataset's embedder: its row, or the configured model where there is no row yet."""
    name = "" if view.config.models.is_tiny else view.config.models.embedder
    if name and not view.entry.models_from and not view.version("base_models", "embedder"):
        folder = fetch_model(name)
        return {"path": str(folder), "digest": digest_weights(folder), "source": name}
    return one_row(view, "base_models", "embedder")


def _with_options(
    view: View, asset: str, source: str, folder: Path, training_file: Path | None, embedder: Mapping[str, Any]
) -> Path:
    if training_file is None:
        raise ValueError(
            f"{source} is in the authors' form, which does not contain its prompt; give the training file that belongs "
            "to it: --training-file train_oneturn.json"
        )
    policy = policy_family_of(folder).load_released_policy(
        folder,
        training_file=training_file,
        embedder=hub_source(embedder) or embedder["digest"],
        dtype=stored_dtype(folder),  # a wider dtype would double the memory of this check
    )
    target = view.files(asset).absolute() / f"adopted-{digest_weights(folder)[:12]}"
    save_policy(policy, target, {"source": source})
    return target
