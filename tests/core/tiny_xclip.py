"""An X-CLIP of random weights and tiny size, with a tokenizer in CLIP's form, written as a checkpoint folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XCLIPConfig, XCLIPModel

E, D = 24, 16
"""The text tower's width and the vectors' size."""
NUM_FRAMES, SIZE, POSITIONS = 4, 32, 77


def clip_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """`<|startoftext|> text <|endoftext|>`; the closing token has the highest number, by which X-CLIP finds it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.add_special_tokens([start, end])
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end)


def write_xclip(folder: Path, texts: Sequence[str], seed: int = 0) -> Path:
    """The checkpoint folder, as `save_pretrained` leaves it."""
    tokenizer = clip_tokenizer(texts)
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.2, "initializer_factor": 4.0}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": E,
        "intermediate_size": 2 * E,
        "max_position_embeddings": POSITIONS,
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": SIZE, "patch_size": 8, "num_frames": NUM_FRAMES}
    mit = {"mit_hidden_size": D, "mit_intermediate_size": 2 * D, "mit_num_attention_heads": 2}
    config = XCLIPConfig(
        text_config={**shared, **text, "max_position_embeddings": POSITIONS},
        vision_config={**shared, **vision, **mit},
        projection_dim=D,
        prompt_num_attention_heads=2,
        initializer_factor=4.0,
    )
    torch.manual_seed(seed)
    XCLIPModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
