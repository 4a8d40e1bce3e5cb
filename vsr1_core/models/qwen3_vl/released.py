"""Loads checkpoints in the authors' format, which have the tensors of the soft query modules but record no options.

Sizes are read from the tensors. Options that no tensor shows (number of latents, accumulation, where h_1 is read, the
input form) are arguments, whose defaults are what the authors' code does. The system prompt comes from the training
file that belongs to the checkpoint. A policy that is saved with `checkpoints.save_policy` records all of these.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen3VLConfig

from vsr1_core.input_form import AUTHORS, InputForm
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
    form: InputForm = AUTHORS,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedPolicy:
    """Load the policy in `folder`, and put the options with which it was trained into its config.

    Args:
        folder: The checkpoint in the authors' format.
        training_file: The released `train_oneturn.json`, whose system turn is the prompt of stage 1. The prompt of
            stage 2 and of searches is made from it (`search_prompt`).
        system_prompt: The prompt of all stages, in place of `training_file`.
        num_soft_tokens: N, the latents of one refinement.
        accumulate: Whether a query carries the latents of all turns.
        seed_hidden: Where h_1 is read, `pre_norm` or `post_norm`.
        embedder: Hub id or folder of the embedder that the policy searches with.
        form: How the policy is asked.
        device: A torch device such as `cpu` or `cuda:0`.
        dtype: What the weights are converted to.

    Raises:
        FileNotFoundError: The folder has no weights.
        ValueError: A tensor is missing, unexpected or wrongly shaped, the prompt is not known, or the config already
            records options.
    """
    path = Path(folder)
    config = Qwen3VLConfig.from_pretrained(path)
    if getattr(config, "soft_query", None):
        raise ValueError(f"{path} already records its options; load it with load_policy")
    if (training_file is None) == (not system_prompt):
        raise ValueError("give either the training file that belongs to the checkpoint, or its system prompt")
    embedding_size, embedder_size = query_sizes(path)
    if training_file is not None:
        form = replace(form, sft_prompt=system_prompt_of(training_file))
    soft_query = SoftQueryConfig(
        embedding_size=embedding_size,
        embedder_hidden_size=embedder_size,
        num_soft_tokens=num_soft_tokens,
        accumulate=accumulate,
        seed_hidden=seed_hidden,
        system_prompt=system_prompt or search_prompt(form.sft_prompt),
        embedder=embedder,
        form=form,
    )
    return load_configured(path, with_soft_query(config, soft_query), device, dtype)


def query_sizes(folder: Path) -> tuple[int, int]:
    """(D, E): the size of the corpus vectors and the hidden size of the embedder, from the last tensors of P and A."""
    shapes = stored_shapes(folder)
    sizes = []
    for name in ("refine_projector.3.weight", "refine_append_input_projector.1.weight"):
        if len(shapes.get(name, ())) != 2:
            raise ValueError(
                f"{folder} is not a soft query checkpoint in the authors' format: it has no matrix {name!r}"
            )
        sizes.append(shapes[name][0])
    return sizes[0], sizes[1]


_OTHER_WORDS = (
    ("special token <REFINE>", "special token(s) <REFINE>"),
    ("the <REFINE> token is required", "the special token(s) are required"),
)
"""The wording of the training file, and that of the authors' code for stage 2 and evaluation."""


def search_prompt(sft_prompt: str) -> str:
    """The prompt of stage 2 and of searches that belongs to the `sft_prompt` of a training file. The authors' code has
    its own copy of the prompt there, which speaks of "special token(s)"."""
    for words, others in _OTHER_WORDS:
        sft_prompt = sft_prompt.replace(words, others)
    return sft_prompt


def system_prompt_of(training_file: Path) -> str:
    """The system prompt of a `train_oneturn.json`. Raises ValueError if its rows differ or have none."""
    prompts = {_system_text(row) for row in read_json(training_file)}
    if len(prompts) != 1 or not (prompt := prompts.pop()):
        raise ValueError(
            f"{training_file} must have the same system prompt in all rows; it has none, or several of them"
        )
    return prompt


def _system_text(row: dict[str, object]) -> str:
    """The text of the system turn, whose content is a string or a list of text parts; empty if there is none."""
    messages = row.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if message.get("role") == "system":
            content = message["content"]
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""
