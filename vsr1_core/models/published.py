"""Names of models: a local folder, or a hub id with its revision. Nothing is fetched here, and no torch is imported.

A hub id follows its main branch, which its owner may change at any time. So a name may carry a revision
(`ORG/NAME@REVISION`), and the models of the built-in configurations have theirs here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vsr1_core.input_form import InputForm, VideoWrapper
from vsr1_core.rows.files import read_json

REVISIONS: Mapping[str, str] = {
    "Qwen/Qwen3-VL-2B-Instruct": "89644892e4d85e24eaac8bacfd4f463576704203",
    "Qwen/Qwen3-VL-4B-Instruct": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "Qwen/Qwen3-VL-8B-Instruct": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    "Qwen/Qwen3-VL-Embedding-2B": "9f2f7e710d6d81056aa5c0a4f04764fec6bb7bda",
}
"""Hub id -> the commit that is fetched where the name asks for none."""
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Patterns of the files of a model: weights, configuration, tokenizer and chat template, all without code."""
RECORD = "record.json"
"""The file that this project writes into each model folder, and that published models lack: how the model was made."""


def hub_name(name: str) -> tuple[str, str | None]:
    """(hub id, revision) of a name of the form `ORG/NAME` or `ORG/NAME@REVISION`; None where no revision is known."""
    hub_id, _, revision = name.partition("@")
    return hub_id, revision or REVISIONS.get(hub_id)


def content_files(folder: Path) -> Iterator[Path]:
    """The files that decide what the model in `folder` gives, sorted by name. Its record, which says how it was
    made, is not one of them."""
    found = (path for pattern in FETCHED for path in folder.glob(pattern) if path.name != RECORD)
    return iter(sorted(found))


def wrapper_of(name: str) -> VideoWrapper:
    """The video wrapper with which the policy `name` was trained: that which its folder records, if it is a checkpoint
    of this project, otherwise that of the published models."""
    config = Path(name) / "config.json"
    recorded = read_json(config).get("soft_query") if config.is_file() else None
    return InputForm.recorded(recorded.get("form")).video_wrapper if recorded else "published"
