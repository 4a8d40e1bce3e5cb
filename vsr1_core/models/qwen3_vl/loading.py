"""Loads policies and embedders from Qwen3-VL checkpoints, and checks every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from vsr1_core.input_form import QUERY_INSTRUCTION, EmbedderForm
from vsr1_core.models.published import RECORD
from vsr1_core.models.qwen3_vl.embedder import Qwen3VLEmbedder
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.policy import Policy, with_soft_query
from vsr1_core.models.qwen3_vl.vision import fast_vision
from vsr1_core.models.soft_query import SoftQueryConfig, is_soft_query, soft_query_modules
from vsr1_core.models.weights import check_loaded, load_quietly
from vsr1_core.reasoning.conversation import REFINE_TOKEN
from vsr1_core.rows.files import read_json


def load_configured(
    folder: Path, config: Qwen3VLConfig, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedPolicy:
    """Load the policy that `config` (with its soft_query section) describes, with every tensor from `folder`.

    Raises ValueError, which names every missing, unexpected or wrongly shaped tensor; also if the tokenizer has no
    <REFINE>, or more tokens than the model has embeddings.
    """
    model, info = load_quietly(Policy, folder, _is_head, config=config, dtype=dtype)
    check_loaded(str(folder), info, allowed_missing=_tied(config))
    tokenizer = _tokenizer(folder, config)
    _check_tokenizer(str(folder), tokenizer, model)
    fast_vision(model.model)
    return LoadedPolicy(model.to(device).eval(), tokenizer)


def load_base_policy(
    model_id: str,
    soft_query: SoftQueryConfig,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 42,
) -> LoadedPolicy:
    """Load a published Qwen3-VL (hub id or folder), and add new soft query modules and the <REFINE> token.

    The same `seed` gives the same new weights. Raises ValueError for a checkpoint that already has soft query modules:
    these have to be loaded (`load_configured`, `released.load_released_policy`), not replaced.
    """
    config = with_soft_query(Qwen3VLConfig.from_pretrained(model_id), soft_query)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = lambda key: _is_head(key) or is_soft_query(key)  # noqa: E731
        model, info = load_quietly(Policy, model_id, expected, config=config, dtype=dtype)
        fresh = _fresh_modules(model, model_id, info)
        check_loaded(model_id, info, allowed_missing=(*_tied(config), *fresh))
        tokenizer = _tokenizer(model_id, config)
        if REFINE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([REFINE_TOKEN], special_tokens=True)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
    _check_tokenizer(model_id, tokenizer, model)
    fast_vision(model.model)
    return LoadedPolicy(model.to(device).eval(), tokenizer)


def _fresh_modules(model: Policy, source: str, info: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Set the soft query modules of `model` to their starting weights, and return these by name."""
    modules = soft_query_modules(model.config.text_config.hidden_size, model.soft_query)
    fresh = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    wrong_shape = {key for key, *_ in info["mismatched_keys"]}
    trained = sorted(set(fresh) - set(info["missing_keys"]) | set(fresh) & wrong_shape)
    if trained:
        raise ValueError(
            f"{source} already has soft query modules ({trained[0]} and {len(trained) - 1} more tensors); load it as a "
            "checkpoint, or, if it has the authors' format, with the training file that belongs to it: "
            "vsr1 pull ... --training-file FILE"
        )
    for name in modules:
        model.get_submodule(name).float()  # transformers keeps float32 only what it loads
    model.load_state_dict(fresh, strict=False)
    return fresh


def load_body(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, instruction: str = QUERY_INSTRUCTION
) -> Qwen3VLEmbedder:
    """Load the frozen search engine from a folder of a Qwen3-VL body, with or without a language head.

    Its form is the one that the folder's record has. A published model has no record: it gets the published form, and
    `instruction` with every query.
    """
    model, info = load_quietly(Qwen3VLModel, folder, _is_head, dtype=dtype)
    info["unexpected_keys"] = {k for k in info["unexpected_keys"] if not _is_head(k)}
    check_loaded(str(folder), info)
    model.requires_grad_(False)
    tokenizer = _tokenizer(folder, model.config)
    return Qwen3VLEmbedder(fast_vision(model).to(device).eval(), tokenizer, _form_of(folder, instruction))


def _tokenizer(source: str | Path, config: Qwen3VLConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint whose config was read already; without it, transformers reads that once more."""
    return AutoTokenizer.from_pretrained(source, config=config, trust_remote_code=False)


def _form_of(folder: str | Path, instruction: str) -> EmbedderForm:
    """The form of an embedder. Records that are older than forms are those of tiny models, which were all trained with
    the vision tokens of the template."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return EmbedderForm(instruction=instruction)
    return EmbedderForm(**{"video_wrapper": "template", **read_json(path).get("input_form", {})})


def _is_head(key: str) -> bool:
    """Whether this is a tensor of the language head, which is tied to the embeddings or, for an embedder, not used."""
    return key.startswith("lm_head.")


def _tied(config: Qwen3VLConfig) -> tuple[str, ...]:
    """Tensors that may be missing: the language head, if it is tied to the embedding matrix."""
    return ("lm_head.weight",) if config.tie_word_embeddings else ()


def _check_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase, model: Policy) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if REFINE_TOKEN not in tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer of {source} has no {REFINE_TOKEN}, so it is not the tokenizer with which the policy was "
            "trained; put that one into the folder"
        )
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, but its model has only {rows} embeddings; put the "
            "tokenizer that belongs to the model into the folder"
        )
