"""Where the models of a folder index come from: what a person passes as `models`, as an embedder and a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vsr1_core.configuration_files import (
    load_configuration,
    own_names,
    read_configuration_file,
    write_configuration,
)
from vsr1_core.datasets.registry import REAL_CONFIG, models_owner
from vsr1_core.home.hub.remote import HUB_ID
from vsr1_core.home.search import best_method
from vsr1_core.rows.versions import fingerprint
from vsr1_core.settings import differences, nested
from vsr1_core.stages.loading import one_row
from vsr1_core.stages.methods import BASIC, Method

if TYPE_CHECKING:
    from vsr1_core.home.home import Home

TOY_POLICY = "sft_checkpoint"
WHAT_MODELS_MAY_BE = (
    'models may be "toy" (trained here first), a dataset of this home, "HOME/DATASET" (a built dataset of another '
    "home), a folder that holds embedder/ and policy/, a folder or hub id of an embedder alone (videos are then ranked "
    'and none is verified), or {"embedder": FOLDER_OR_ID, "policy": FOLDER_OR_ID}'
)


@dataclass(frozen=True)
class ModelSource:
    """An embedder and a policy, each a folder or a hub id. Where the policy is empty, videos are only ranked.

    method: how the policy searches; None without a policy. config: name of the configuration whose frames the models
    were made for.
    """

    embedder: str
    policy: str
    method: Method | None
    config: str

    @property
    def stands_for(self) -> str:
        """The asset whose training the policy replaces; empty for a base policy and where there is no policy."""
        asset = self.method.model if self.method else ""
        return "" if asset == "base_models" else asset


def model_source(models: str | Path | Mapping[str, str | Path], home: Home, config: str | None) -> ModelSource:
    """The embedder and policy that `models` names. `toy` is first built in `home` where it is not built yet.

    Raises:
        ValueError: `models` names nothing; the message lists what it may be.
        OSError: `models` is a hub id, and the model cannot be downloaded.
        LookupError: `models` is a dataset that is not built.
    """
    if config is not None:
        load_configuration(home.path, config)
    if isinstance(models, Mapping):
        return _from_parts(models, config or REAL_CONFIG)
    name, path = str(models), Path(models).expanduser()
    if name == "toy":
        home.build("toy", [TOY_POLICY])
    if name in home.datasets():
        return _from_dataset(home, name)
    if path.is_dir():
        return _from_folder(path.resolve(), config or REAL_CONFIG)
    if (path.parent / "lake").is_dir():
        found = _from_dataset(type(home)(path.parent, home.device), path.name)
        return replace(found, config=configuration_here(home.path, path.parent, found.config))
    if HUB_ID.fullmatch(name.partition("@")[0]):
        return _from_hub(name, config or REAL_CONFIG)
    raise ValueError(f"models={name!r} names no models: {WHAT_MODELS_MAY_BE}")


def _from_dataset(home: Home, dataset: str) -> ModelSource:
    """The models that a built dataset is searched with by default."""
    view = home.view(dataset)
    method = best_method(view)
    policy = str(one_row(view, method.model, method.row_id)["path"]) if method else ""
    embedder = str(one_row(view, "base_models", "embedder")["path"])
    return ModelSource(embedder, policy, method, models_owner(home.path, view.entry).config)


def configuration_here(here: Path, there: Path, name: str) -> str:
    """The name in home `here` of a configuration of home `there`. A configuration that the user wrote is copied under a
    new name, because `here` may have a different one of the same name, and frames must be as the models saw them."""
    if name not in own_names(there):
        return name
    config, root = load_configuration(there, name), name
    while root in own_names(there):
        root = read_configuration_file(there, root).base
    differing = differences(load_configuration(there, root), config)
    settings = {key: value for key, (_, value) in differing.items() if value is not None}
    copy = f"{name[:40]}-{fingerprint([root, settings])[:8]}"
    if copy not in own_names(here):
        write_configuration(here, copy, root, nested(settings), f"the configuration {name} of {there}")
    return copy


def _from_folder(folder: Path, config: str) -> ModelSource:
    if (folder / "embedder").is_dir():
        parts = {name: folder / name for name in ("embedder", "policy") if (folder / name).is_dir()}
        return _from_parts(parts, config)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has neither a config.json nor a folder embedder/: {WHAT_MODELS_MAY_BE}")
    return _from_parts({"embedder": folder}, config)


def _from_hub(model_id: str, config: str) -> ModelSource:
    from vsr1_core.models.checkpoints import fetch_model

    folder = fetch_model(model_id)
    return _from_folder(folder, config)


def _from_parts(parts: Mapping[str, str | Path], config: str) -> ModelSource:
    from vsr1_core.models.checkpoints import fetch_model
    from vsr1_core.models.soft_query import checkpoint_kind

    if "embedder" not in parts or set(parts) - {"embedder", "policy"}:
        raise ValueError(f"models={dict(parts)!r} has to name an embedder, and may name a policy: {WHAT_MODELS_MAY_BE}")
    folders = {name: fetch_model(str(Path(str(part)).expanduser())) for name, part in parts.items()}
    if checkpoint_kind(folders["embedder"]) != "plain":
        raise ValueError(
            f"{parts['embedder']} is a policy with soft query modules; to search, also name the embedder that it was "
            'trained with: models={"embedder": ..., "policy": ...}'
        )
    policy = folders.get("policy")
    kind = None if policy is None else checkpoint_kind(policy)
    if kind == "released":
        raise ValueError(
            f"{parts['policy']} is a policy in the authors' form, which does not contain its prompt. Take it over with "
            "the training file that belongs to it, and then name that dataset as the models: "
            "vsr1 pull NAME --dataset DATASET --as sft_checkpoint --training-file train_oneturn.json"
        )
    method = None if kind is None else BASIC["sqr_sft" if kind == "own" else "zero_shot"]
    return ModelSource(str(folders["embedder"]), str(policy or ""), method, config)
