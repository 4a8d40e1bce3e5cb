"""Checkpoints keep every tensor: round trips are exact, released ones load whole, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AddedToken, Qwen3VLForConditionalGeneration

from tests.core import naive
from tests.core.tiny_models import (
    random_video,
    small_config,
    spread,
    tiny_embedder,
    tiny_policy,
    tiny_tokenizer,
    write_published,
)
from vsr1_core.models.checkpoints import load_embedder, load_policy, save_embedder, save_policy
from vsr1_core.models.decoding import decode
from vsr1_core.models.protocols import DecodeSettings
from vsr1_core.models.qwen3_vl.inputs import VideoLayout, build_prompts
from vsr1_core.models.qwen3_vl.loaded import LoadedPolicy
from vsr1_core.models.qwen3_vl.loading import load_base_policy
from vsr1_core.models.qwen3_vl.released import load_released_policy, query_sizes
from vsr1_core.models.qwen3_vl.vision import encode_videos
from vsr1_core.models.soft_query import SoftQueryConfig
from vsr1_core.models.weights import digest_weights
from vsr1_core.reasoning.conversation import REFINE_TOKEN, build_messages

H, D, E = 48, 40, 56
EXTRA_ROWS = 11
PROMPT = "Is it shown? End with <REFINE>."


def released_tensors(body: nn.Module, embedder_size: int) -> dict[str, Tensor]:
    """The tensors of the soft query modules by name, from plain modules, beside the usual Qwen3-VL ones."""
    modules = {
        "refine_projector": nn.Sequential(nn.Linear(H, D), nn.LayerNorm(D), nn.GELU(), nn.Linear(D, D)),
        "refine_latent_input_projector": nn.Sequential(nn.LayerNorm(D), nn.Linear(D, H)),
        "refine_append_input_projector": nn.Sequential(nn.LayerNorm(D), nn.Linear(D, embedder_size)),
        "refine_gate": nn.Linear(H, 1),
    }
    if embedder_size != D:
        modules["query_embedder_head"] = nn.Linear(embedder_size, D)
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for name in sorted(tensors):
        tensors[name] = tensors[name] + 0.3 * torch.randn(tensors[name].shape)
    body_tensors = {k: t for k, t in body.state_dict().items() if k != "lm_head.weight"}  # tied, so not stored
    return {k: t.contiguous().clone() for k, t in (tensors | body_tensors).items()}


def write_released(folder: Path, embedder_size: int = E) -> Qwen3VLForConditionalGeneration:
    """A checkpoint folder as the authors write it, and the plain model in it."""
    torch.manual_seed(5)
    config = small_config()
    config.text_config.vocab_size = len(tiny_tokenizer()) + EXTRA_ROWS
    model = Qwen3VLForConditionalGeneration(config).eval()
    spread(model, 7)
    model.tie_weights()
    model.config.save_pretrained(folder)
    save_file(released_tensors(model, embedder_size), folder / "model.safetensors", metadata={"format": "pt"})
    tiny_tokenizer().save_pretrained(folder)
    rows = [{"qid": str(i), "messages": [{"role": "system", "content": PROMPT}, {"role": "user"}]} for i in range(3)]
    (folder / "train_oneturn.json").write_text(json.dumps(rows))
    return model


def edit(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("form", [{}, {"accumulate": True, "seed_hidden": "post_norm"}])
@torch.no_grad()
def test_a_released_checkpoint_gives_the_latents_of_the_naive_method(tmp_path: Path, form: dict[str, Any]) -> None:
    plain = write_released(tmp_path)
    policy = load_released_policy(tmp_path, training_file=tmp_path / "train_oneturn.json", **form)
    soft = policy.model.soft_query
    assert (soft.embedding_size, soft.embedder_hidden_size, soft.num_soft_tokens) == (D, E, 8)
    assert soft.system_prompt == PROMPT
    assert (soft.accumulate, soft.seed_hidden) == ((True, "post_norm") if form else (False, "pre_norm"))
    video = random_video(3, plain.config)
    feature = encode_videos(policy.model.model, [video])[0]
    layout = VideoLayout(video.grid, video.marks_s)
    prompt = build_prompts(policy.tokenizer, policy.model.model, [build_messages("a red bar", PROMPT)], [layout])[0]
    settings = DecodeSettings(max_new_tokens=4)
    row = decode(policy, [prompt], [feature], settings, wants_refine=lambda _t: True)[0]
    ids = torch.cat([prompt.token_ids, torch.tensor([*row.token_ids, tiny_tokenizer().vocab[REFINE_TOKEN]])])
    weights = load_file(tmp_path / "model.safetensors")
    expected = naive.latents(plain, weights, ids, video.patches, video.grid, 8, soft.seed_hidden)
    torch.testing.assert_close(row.latents, expected, atol=1e-5, rtol=1e-5)


def test_every_tensor_of_a_released_checkpoint_is_in_the_model_unchanged(tmp_path: Path) -> None:
    write_released(tmp_path)
    policy = load_released_policy(tmp_path, system_prompt=PROMPT)
    stored, loaded = load_file(tmp_path / "model.safetensors"), policy.model.state_dict()
    assert set(loaded) - set(stored) == {"lm_head.weight"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert policy.model.get_input_embeddings().weight.shape[0] == len(policy.tokenizer) + EXTRA_ROWS
    assert torch.equal(policy.model.lm_head.weight, stored["model.language_model.embed_tokens.weight"])


def test_an_imported_checkpoint_saved_in_our_form_carries_its_options(tmp_path: Path) -> None:
    (tmp_path / "released").mkdir()
    write_released(tmp_path / "released")
    imported = load_released_policy(tmp_path / "released", system_prompt=PROMPT, num_soft_tokens=4)
    save_policy(imported, tmp_path / "ours", {})
    again = load_policy(tmp_path / "ours")
    assert again.model.soft_query == imported.model.soft_query
    assert_same_weights(again, imported)
    with pytest.raises(ValueError, match="already records its options"):
        load_released_policy(tmp_path / "ours", system_prompt=PROMPT)


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def reshape(name: str, *shape: int) -> Any:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("refine_projector.1.bias"), ["missing refine_projector.1.bias"]),
        (drop("model.visual.merger.norm.weight"), ["missing model.visual.merger.norm.weight"]),
        (
            drop("refine_projector.3.weight"),
            ["refine_projector.3.weight", "not a soft query checkpoint in the authors' format"],
        ),
        (reshape("refine_surprise.weight", 2, 2), ["unexpected refine_surprise.weight"]),
        (
            reshape("refine_latent_input_projector.1.weight", H, 7),
            ["refine_latent_input_projector.1.weight", "[48, 7]", "[48, 40]"],
        ),
        (reshape("query_embedder_head.weight", D, E + 1), ["query_embedder_head.weight", "[40, 57]", "[40, 56]"]),
        (reshape("model.language_model.embed_tokens.weight", 9, H), ["embed_tokens.weight", "[9, 48]"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path: Path, change: Any, words: list[str]) -> None:
    write_released(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=r"refine|query|model") as refusal:
        load_released_policy(tmp_path, system_prompt=PROMPT)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_released_checkpoint_is_never_started_anew(tmp_path: Path) -> None:
    write_released(tmp_path)
    with pytest.raises(ValueError, match="already has soft query modules"):
        load_base_policy(str(tmp_path), SoftQueryConfig(D, E))


def test_the_prompt_is_asked_for_and_must_be_one(tmp_path: Path) -> None:
    write_released(tmp_path)
    with pytest.raises(ValueError, match="give either the training file"):
        load_released_policy(tmp_path)
    rows = [{"messages": [{"role": "system", "content": [{"type": "text", "text": t}]}]} for t in ("a", "b")]
    (tmp_path / "train_oneturn.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="must have the same system prompt"):
        load_released_policy(tmp_path, training_file=tmp_path / "train_oneturn.json")


def test_sizes_are_read_off_the_tensors_also_where_they_are_equal(tmp_path: Path) -> None:
    write_released(tmp_path, embedder_size=D)
    assert query_sizes(tmp_path) == (D, D)
    assert load_released_policy(tmp_path, system_prompt=PROMPT).model.query_head is None


def assert_same_weights(a: LoadedPolicy, b: LoadedPolicy) -> None:
    ours, theirs = a.model.state_dict(), b.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_policy_comes_back_exactly_with_its_options_and_tokenizer(tmp_path: Path) -> None:
    policy = tiny_policy(embedding_size=D, embedder_size=E, num_soft_tokens=3, system_prompt=PROMPT, embedder="x")
    digest = save_policy(policy, tmp_path / "policy", {"step": 3})
    again = load_policy(tmp_path / "policy")
    assert_same_weights(again, policy)
    assert again.model.soft_query == policy.model.soft_query
    text = f"a red bar 12.5 {REFINE_TOKEN}<|im_end|>"
    assert again.tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template
    assert digest == digest_weights(tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "record.json").read_text()) == {"step": 3}


@torch.no_grad()
def test_a_saved_embedder_gives_the_same_vectors(tmp_path: Path) -> None:
    embedder = tiny_embedder()
    save_embedder(embedder, tmp_path / "embedder", {})
    again = load_embedder(tmp_path / "embedder")
    assert torch.equal(again.embed_queries(["a red bar"]), embedder.embed_queries(["a red bar"]))
    assert not any(p.requires_grad for p in again.model.parameters())


@torch.no_grad()
def test_an_embedder_may_lie_in_a_checkpoint_with_a_language_head(tmp_path: Path) -> None:
    config = small_config()
    model = Qwen3VLForConditionalGeneration(config)
    spread(model, 4)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_embedder(tmp_path)
    expected = {k.removeprefix("model."): t for k, t in model.state_dict().items() if k.startswith("model.")}
    assert all(torch.equal(t, expected[k]) for k, t in loaded.model.state_dict().items())


def test_a_base_model_gets_the_methods_starting_weights_and_one_more_token(tmp_path: Path) -> None:
    write_published(tmp_path)
    policy = load_base_policy(str(tmp_path), SoftQueryConfig(H, H))
    model = policy.model
    assert not model.refine_projector[3].weight.any()
    assert torch.equal(model.refine_latent_input_projector[1].weight, torch.eye(H))
    assert len(policy.tokenizer) == len(tiny_tokenizer()) + 1 == model.get_input_embeddings().weight.shape[0]
    assert policy.tokenizer(f"a{REFINE_TOKEN}b")["input_ids"].count(len(tiny_tokenizer())) == 1
    assert_same_weights(load_base_policy(str(tmp_path), SoftQueryConfig(H, H)), policy)
    save_policy(policy, tmp_path / "saved", {})
    assert_same_weights(load_policy(tmp_path / "saved"), policy)


def test_spare_embedding_rows_are_used_before_any_are_added(tmp_path: Path) -> None:
    write_published(tmp_path, extra_rows=5)
    policy = load_base_policy(str(tmp_path), SoftQueryConfig(H, H))
    assert policy.model.get_input_embeddings().weight.shape[0] == len(tiny_tokenizer()) + 5


def test_a_missing_head_is_refused_unless_it_is_the_embedding_matrix(tmp_path: Path) -> None:
    write_published(tmp_path, tie=False)
    edit(tmp_path, drop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        load_base_policy(str(tmp_path), SoftQueryConfig(H, H))


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    save_policy(tiny_policy(), tmp_path / "policy", {})
    tokenizer = load_policy(tmp_path / "policy").tokenizer
    tokenizer.add_tokens([AddedToken("<|one_more|>")])
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"tokens, but its model has only \d+ embeddings"):
        load_policy(tmp_path / "policy")


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a checkpoint folder"):
        load_policy(tmp_path)
