"""The real Qwen3 tokenizer, built from the byte ranks that the PyPI package `dashscope` ships; no hub needed."""

from __future__ import annotations

import base64
import functools
import importlib.util
import itertools
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vsr1_core.models.qwen3_vl.tokenizer import CHAT_TEMPLATE

# Qwen3's 26 added tokens, ids 151643 to 151668, in order.
ADDED = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
NOT_SPECIAL = {
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
}
"""Of the added tokens: 12 of the 26, as published."""
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _ranks() -> dict[bytes, int]:
    spec = importlib.util.find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real Qwen ranks are not installed: pip install -c constraints.txt dashscope")
    path = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def _pieces(ranks: dict[bytes, int], token: bytes, limit: int) -> tuple[bytes, ...]:
    """`token` as byte pair encoding spells it with the merges of rank below `limit`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, place = min(found)
        if rank >= limit:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return tuple(parts)


@functools.cache
def _model() -> models.BPE:
    """The vocabulary and its merges, which take seconds to find."""
    ranks = _ranks()
    letters = dict(zip(sorted(range(256), key=_byte_order), _byte_alphabet(), strict=True))
    spell = functools.partial(_spelled, letters)
    merges = [
        (spell(pair[0]), spell(pair[1]))
        for token, rank in ranks.items()
        if len(token) > 1 and len(pair := _pieces(ranks, token, rank)) == 2
    ]
    return models.BPE({spell(t): r for t, r in ranks.items()}, merges)


@functools.cache
def qwen_tokenizer(appends_end_of_text: bool = False) -> PreTrainedTokenizerFast:
    """With Qwen3-VL's chat form and <REFINE>; `appends_end_of_text` as Qwen's embedding models do."""
    tokenizer = Tokenizer(_model())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=t not in NOT_SPECIAL, normalized=False) for t in (*ADDED, "<REFINE>")])
    if appends_end_of_text:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def _is_printed(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255


def _byte_order(byte: int) -> tuple[bool, int]:
    return not _is_printed(byte), byte


def _byte_alphabet() -> list[str]:
    """GPT-2's letters for bytes: printed ones stand for themselves, the others follow from U+0100 on."""
    printed = [chr(b) for b in range(256) if _is_printed(b)]
    return printed + [chr(256 + i) for i in range(256 - len(printed))]


def _spelled(letters: dict[int, str], token: bytes) -> str:
    return "".join(letters[b] for b in token)
