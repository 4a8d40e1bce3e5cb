"""Checkpoints in the form the authors release: the soft query modules' tensors, but no record of the method's options.

Sizes are read off the tensors; what no tensor tells (number of latents, accumulation, where h_1 is read) is given and
defaults to what the authors' code does; the system prompt comes from the training file that belongs to the
checkpoint. Save the result with `checkpoints.save_policy`, and it carries all of it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3VLConfig

from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.loading import load_configured
from vsr1_core.models.qwen3_vl.policy import with_soft_query
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.models.weights import stored_shapes
from vsr1_core.rows.files import read_json


def load_released_policy(
    folder: str | Path,
    *,
    training_file: Path | None = None,
    system_prompt: str = "",
    num_soft_tokens: int = 8,
    accumulate: bool = False,
    seed_hidden: str = "pre_norm",
    embedder: str = "Qwen/Qwen3-VL-Embedding-2B",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedPolicy:
    """The policy in `folder`, with the options it was trained with in its config.

    `training_file` is the released `train_oneturn.json`, whose system turn is the prompt; or give `system_prompt`.
    Raises FileNotFoundError for no weights, ValueError where a tensor is missing, unexpected or wrongly shaped, where
    the prompt cannot be told, and where the config records other options already.
    """
    path = Path(folder)
    config = Qwen3VLConfig.from_pretrained(path)
    if getattr(config, "soft_query", None):
        raise ValueError(f"{path} records its options already: load it with load_policy")
    if (training_file is None) == (not system_prompt):
        raise ValueError("give the training file that belongs to the checkpoint, or its system prompt: one of the two")
    embedding_size, embedder_size = query_sizes(path)
    soft_query = SoftQueryConfig(
        embedding_size=embedding_size,
        embedder_hidden_size=embedder_size,
        num_soft_tokens=num_soft_tokens,
        accumulate=accumulate,
        seed_hidden=seed_hidden,
        system_prompt=system_prompt or system_prompt_of(training_file),
        embedder=embedder,
    )
    return load_configured(path, with_soft_query(config, soft_query), device, dtype)


def query_sizes(folder: Path) -> tuple[int, int]:
    """(D, E): the corpus vectors' size and the embedder's hidden size, off the tensors P ends and A ends with."""
    shapes = stored_shapes(folder)
    sizes = []
    for name in ("refine_projector.3.weight", "refine_append_input_projector.1.weight"):
        if len(shapes.get(name, ())) != 2:
            raise ValueError(f"{folder} has no matrix {name!r}: it is no released soft query checkpoint")
        sizes.append(shapes[name][0])
    return sizes[0], sizes[1]


def system_prompt_of(training_file: Path | None) -> str:
    """The one system prompt of a `train_oneturn.json`. ValueError when rows differ or have none."""
    if training_file is None:
        raise ValueError("no training file is given")
    prompts = {_system_text(row) for row in read_json(training_file)}
    if len(prompts) != 1 or not (prompt := prompts.pop()):
        raise ValueError(f"{training_file} does not hold one system prompt for all rows, but {len(prompts)}")
    return prompt


def _system_text(row: dict[str, object]) -> str:
    """The system turn's text; its content is a string or a list of text parts."""
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if message.get("role") == "system":
            content = message["content"]
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""
