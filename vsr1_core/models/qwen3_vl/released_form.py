"""Writes a policy as the authors' code and transformers 4.57 read it; `released` reads that form.

The weights are the same in both forms. What differs are spellings: of the rotary settings and the class in
`config.json`, of the tokenizer's class, and files of the processor, which this project does not need.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsr1_core.models.published import FETCHED
from vsr1_core.models.soft_query import SoftQueryConfig, own_soft_query
from vsr1_core.rows.files import read_json, write_json

WEIGHTS_AND_TEXTS = ("*.safetensors", "*.safetensors.index.json", "tokenizer.json", "chat_template.jinja")
OF_BASE = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)
"""Files that are copied from the base policy, if it has them."""
THEIR_SIZE = 2048
"""D, E and the policy's H in the authors' code, whose modules have fixed sizes."""
FRAME_PIXELS = {"shortest_edge": 16 * 32 * 32 * 2, "longest_edge": 768 * 32 * 32 * 2}
"""Pixels of a pair of frames, at least and at most; their scripts give each video its own."""


def write_released_form(folder: Path, target: Path, base: Path) -> list[str]:
    """Write the policy of `folder` (this project's form) to the existing folder `target` in the authors' form.

    Args:
        folder: The policy's checkpoint folder.
        target: An existing folder.
        base: The folder of the base policy, from which files of the processor are copied where it has them.

    Returns:
        What their code will do otherwise than the policy was trained, in sentences.

    Raises:
        ValueError: The folder holds no policy with soft query modules.
    """
    soft = own_soft_query(folder)
    if soft is None:
        raise ValueError(f"{folder} has no soft query modules, so it cannot be written in the authors' form")
    _copy(folder, target, WEIGHTS_AND_TEXTS)
    config = _respelled(folder, target)
    _copy(base, target, OF_BASE)
    return list(_differences(soft, int(config["text_config"]["hidden_size"])))


def write_released_embedder(folder: Path, target: Path) -> None:
    """Write the embedder of `folder` to the existing folder `target`, as their code reads it. A published one is copied
    as it is; the files of one that was saved here, among them its record, are respelled where they have to be."""
    _copy(folder, target, FETCHED)
    if "rope_parameters" in read_json(folder / "config.json")["text_config"]:
        _respelled(folder, target)


def _copy(folder: Path, target: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            shutil.copyfile(path, target / path.name)


def _respelled(folder: Path, target: Path) -> dict[str, Any]:
    """Write config, tokenizer config and the processor's files of the model in `folder`; returns the config."""
    config = released_config(read_json(folder / "config.json"))
    tokenizer = _tokenizer_config(read_json(folder / "tokenizer_config.json"))
    for name, content in {
        "config.json": config,
        "tokenizer_config.json": tokenizer,
        **_processor_files(config),
    }.items():
        write_json(target / name, content)
    return config


def released_config(config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with the rotary settings as `rope_scaling` and `rope_theta`, and without this project's section."""
    kept = {name: value for name, value in config.items() if name not in ("soft_query", "transformers_version")}
    text = dict(config["text_config"])
    rope = dict(text.pop("rope_parameters"))
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    vision = {name: value for name, value in config["vision_config"].items() if name != "rope_parameters"}
    sections = {"text_config": text, "vision_config": vision}
    return {**kept, **sections, "architectures": ["Qwen3VLForConditionalGeneration"]}


def _tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """Special tokens that transformers 5 lists as `extra_special_tokens` are `additional_special_tokens` in 4.57."""
    kept = {
        name: value for name, value in config.items() if name not in ("backend", "is_local", "extra_special_tokens")
    }
    extra = config.get("extra_special_tokens")
    more = {"additional_special_tokens": extra} if isinstance(extra, list) else {}
    return {**kept, **more, "tokenizer_class": "Qwen2Tokenizer", "processor_class": "Qwen3VLProcessor"}


def _processor_files(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The files of the processor, as the published models have them, for the patches of this model."""
    vision = config["vision_config"]
    shared = {
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    image = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    }
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "size": FRAME_PIXELS}
    return {"preprocessor_config.json": {**shared, **image}, "video_preprocessor_config.json": {**shared, **video}}


def _differences(soft: SoftQueryConfig, hidden_size: int) -> list[str]:
    said = []
    sizes = {"D": soft.embedding_size, "E": soft.embedder_hidden_size, "H": hidden_size}
    other = ", ".join(f"{name} = {size}" for name, size in sizes.items() if size != THEIR_SIZE)
    if other:
        said.append(f"Their modules have the size {THEIR_SIZE}, and will not load these: {other}.")
    if soft.seed_hidden != "pre_norm":
        said.append("Their code reads h_1 before the final norm; this policy was trained to have it read after it.")
    if soft.accumulate:
        said.append("Their code gives a query the soft tokens of its last turn only; this policy was trained with all.")
    if soft.num_soft_tokens != 8:
        said.append(f"Set REFINE_ROLLOUT_DEPTH={soft.num_soft_tokens}, the number of its soft tokens.")
    said.append(
        "Their scripts ask with a system prompt of their own; the one it was trained with is in train_oneturn.json."
    )
    return said
