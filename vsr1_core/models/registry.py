"""Finds the family that a checkpoint folder belongs to. There is no list of families: each is a package beside this
module.

A family's package defines MODEL_TYPES in its `__init__` (the `model_type` values of config.json that it opens), and has
a module `family` whose FAMILY implements a protocol of `family_protocols`. So a new family is a new folder, and nothing
else changes.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import vsr1_core.models
from vsr1_core.models.family_protocols import EmbedderFamily, PolicyFamily, TinyFamily
from vsr1_core.models.published import hub_name
from vsr1_core.models.sizes import ModelSize
from vsr1_core.rows.files import read_json


def families() -> dict[str, tuple[str, ...]]:
    """Name of a family (of its folder) -> the `model_type` values that it opens, in alphabetical order of names."""
    names = sorted(found.name for found in pkgutil.iter_modules(vsr1_core.models.__path__) if found.ispkg)
    return {name: tuple(import_module(f"vsr1_core.models.{name}").MODEL_TYPES) for name in names}


def family_of(folder: str | Path) -> EmbedderFamily:
    """The family that opens the checkpoint in the local `folder`.

    Raises:
        FileNotFoundError: The folder has no config.json.
        ValueError: No family opens the model; the message names the families.

    Example:
        embedder = family_of(folder).load_embedder(folder, "cpu", torch.float32, "Represent the user's input.")
    """
    model_type = _model_type(Path(folder))
    for name, model_types in families().items():
        if model_type in model_types:
            return _opened(name)
    known = "; ".join(f"{name} (model_type {', '.join(types)})" for name, types in families().items())
    raise ValueError(
        f"{folder} is a model of the type {model_type!r}, which no model family opens. The families are: {known}"
    )


def policy_family_of(folder: str | Path) -> PolicyFamily:
    """As `family_of`, for a policy. Raises ValueError if the family offers embedders only; the message names the
    families that offer policies."""
    family = family_of(folder)
    if not isinstance(family, PolicyFamily):
        able = [name for name in families() if isinstance(_opened(name), PolicyFamily)]
        raise ValueError(
            f"{folder} is a model of the family {family.name}, which offers embedders only; policies are offered by: "
            f"{', '.join(able)}"
        )
    return family


def tiny_family() -> TinyFamily:
    """The family that makes tiny models. Raises LookupError unless exactly one family makes them."""
    able = [family for family in map(_opened, families()) if isinstance(family, TinyFamily)]
    if len(able) != 1:
        raise LookupError(
            f"exactly one model family must make tiny models, but these do: {', '.join(f.name for f in able) or 'none'}"
        )
    return able[0]


def model_size(name: str) -> ModelSize | None:
    """The size of a model: from its config if it is a folder or cached, otherwise from the known published models; None
    if it is neither."""
    folder = cached_folder(name)
    if folder is None:
        return next((size for own in families() if (size := _opened(own).published_size(name)) is not None), None)
    known = {model_type for types in families().values() for model_type in types}
    return family_of(folder).model_size(folder) if _model_type(folder) in known else None


def cached_folder(name: str) -> Path | None:
    """The folder of a model on this machine: `name` itself, or the cache of the hub client; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    hub_id, revision = hub_name(name)
    found = try_to_load_from_cache(hub_id, "config.json", revision=revision) if hub_id.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None


def _opened(name: str) -> EmbedderFamily:
    family: EmbedderFamily = import_module(f"vsr1_core.models.{name}.family").FAMILY
    return family


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a checkpoint folder: it has no config.json")
    return str(read_json(path).get("model_type", ""))
