"""Which family a checkpoint folder belongs to. Families are found, not listed: each is a package beside this module.

A family's package has, in its `__init__`, MODEL_TYPES (the `model_type` values of config.json that it opens), and a
module `family` whose FAMILY implements `protocols.EmbedderFamily`, `PolicyFamily` or `TinyFamily`. So a new family is a
new folder and no change elsewhere.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

import vsr1_core.models
from vsr1_core.models.protocols import EmbedderFamily, PolicyFamily, TinyFamily
from vsr1_core.models.sizes import ModelSize
from vsr1_core.rows.files import read_json


def families() -> dict[str, tuple[str, ...]]:
    """Family name (its folder's) -> the `model_type` values that it opens, in alphabetical order of names."""
    names = sorted(found.name for found in pkgutil.iter_modules(vsr1_core.models.__path__) if found.ispkg)
    return {name: tuple(import_module(f"vsr1_core.models.{name}").MODEL_TYPES) for name in names}


def family_of(folder: str | Path) -> EmbedderFamily:
    """The family that opens the checkpoint in the local `folder`.

        embedder = family_of(folder).load_embedder(folder, "cpu", torch.float32)

    Raises FileNotFoundError without a config.json, ValueError for a model of no family, which names those there are.
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
    """As `family_of`, for a policy. ValueError where the family offers embedders only, naming those that do more."""
    family = family_of(folder)
    if not isinstance(family, PolicyFamily):
        able = [name for name in families() if isinstance(_opened(name), PolicyFamily)]
        raise ValueError(
            f"{folder} is a model of the family {family.name}, which offers embedders only; policies are offered by: "
            f"{', '.join(able)}"
        )
    return family


def tiny_family() -> TinyFamily:
    """The family that tiny models are made of. LookupError unless exactly one makes them."""
    able = [family for family in map(_opened, families()) if isinstance(family, TinyFamily)]
    if len(able) != 1:
        raise LookupError(
            f"tiny models are made by exactly one model family, not by {', '.join(f.name for f in able) or 'none'}"
        )
    return able[0]


def model_size(name: str) -> ModelSize | None:
    """The size of a folder's or a cached model by its config, else of a known published one; None for any other."""
    folder = cached_folder(name)
    if folder is None:
        return next((size for own in families() if (size := _opened(own).published_size(name)) is not None), None)
    known = {model_type for types in families().values() for model_type in types}
    return family_of(folder).model_size(folder) if _model_type(folder) in known else None


def cached_folder(name: str) -> Path | None:
    """Where a model lies on this machine: the folder itself, or the hub client's cache. None where it does not."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    found = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None


def _opened(name: str) -> EmbedderFamily:
    family: EmbedderFamily = import_module(f"vsr1_core.models.{name}.family").FAMILY
    return family


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a checkpoint folder: it has no config.json")
    return str(read_json(path).get("model_type", ""))
