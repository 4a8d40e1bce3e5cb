"""Makes folders of the published layout and size with random weights, for trials on a machine without the models.

    python -m vsr1_core.models.qwen3_vl.random_folder DIR

writes DIR/policy and DIR/embedder: for the size 2B one `model.safetensors` of 4.26 GB each, in bf16, with the names of
the published tensors. Weights are drawn and written one tensor at a time, so memory does not grow with the model. Such
models run exactly as long, and take exactly as much memory, as the published ones; what they say is noise.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vsr1_core.models.qwen3_vl.sizes import published_config
from vsr1_core.models.qwen3_vl.tokenizer import train_tokenizer
from vsr1_core.reasoning.conversation import SYSTEM_PROMPT, answer_text
from vsr1_core.rows.files import atomic_folder

DEVIATION = 0.02
"""Standard deviation of the weights of matrices, as published models start with."""
ROWS_AT_ONCE = 4096
TOKEN_IDS = ("image_pad", "video_pad", "vision_start", "vision_end")


def write_random_folder(folder: Path, size: str = "2B", seed: int = 0, num_layers: int = 0) -> Path:
    """Write a model of a published `size` (2B, 4B, 8B) into `folder`. The same seed gives the same weights.

    num_layers: layers of the text model and blocks of the tower; 0 for as many as published. Returns the folder.
    Raises ValueError for a size that is not known.
    """
    config = published_config(f"Qwen/Qwen3-VL-{size}-Instruct")
    if config is None:
        raise ValueError(f"there is no published size {size!r}; use 2B, 4B or 8B")
    tokenizer = _tokenizer()
    _complete(config, tokenizer, num_layers)
    with atomic_folder(folder) as temporary:
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _write_weights(temporary / "model.safetensors", shapes_of(config), torch.Generator().manual_seed(seed))
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    texts = [SYSTEM_PROMPT, answer_text("a person opens a fridge", True, 0.0, 5.5), "Represent the user's input."]
    return train_tokenizer(texts * 4, 1024)


def set_token_ids(config: Qwen3VLConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let `config` use the ids that `tokenizer` has for the tokens around and in place of videos."""
    config.text_config.pad_token_id = tokenizer.pad_token_id
    for name in TOKEN_IDS:
        key = f"{name.removesuffix('_pad')}_token_id" if name.endswith("pad") else f"{name}_token_id"
        setattr(config, key, tokenizer.convert_tokens_to_ids(f"<|{name}|>"))


def _complete(config: Qwen3VLConfig, tokenizer: PreTrainedTokenizerFast, num_layers: int) -> None:
    """Set the token ids and the type of the weights, and cut the model to `num_layers`."""
    set_token_ids(config, tokenizer)
    config.architectures, config.dtype = ["Qwen3VLForConditionalGeneration"], torch.bfloat16
    if num_layers:
        config.text_config.num_hidden_layers = num_layers
        config.vision_config.depth = num_layers
        levels = len(config.vision_config.deepstack_visual_indexes)
        config.vision_config.deepstack_visual_indexes = list(range(min(levels, num_layers)))


def shapes_of(config: Qwen3VLConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the published file; a tied head is not stored."""
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def _write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> None:
    """Write a safetensors file: the length of the header, the header as JSON, then the bytes of all tensors."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            _write_tensor(file, name, shape, generator)


def _write_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
    for rows in _parts(shape[0]):
        part = _start_values(name)((rows, *shape[1:]), generator)
        file.write(part.to(torch.bfloat16).view(torch.int16).numpy().tobytes())


def _parts(num_rows: int) -> Iterator[int]:
    for start in range(0, num_rows, ROWS_AT_ONCE):
        yield min(ROWS_AT_ONCE, num_rows - start)


def _start_values(name: str) -> Callable[[tuple[int, ...], torch.Generator], Tensor]:
    if name.endswith("bias"):
        return lambda shape, _: torch.zeros(shape)
    if "norm" in name:
        return lambda shape, _: torch.ones(shape)
    return lambda shape, generator: torch.empty(shape).normal_(0, DEVIATION, generator=generator)


def main() -> None:
    """Read the command line, and write both folders."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("folder", type=Path, help="where policy/ and embedder/ are written")
    parser.add_argument("--size", default="2B", choices=("2B", "4B", "8B"), help="the policy's size (default: 2B)")
    parser.add_argument("--layers", type=int, default=0, help="cut both models to so many layers")
    options = parser.parse_args()
    for seed, (name, size) in enumerate((("embedder", "2B"), ("policy", options.size))):
        written = write_random_folder(options.folder / name, size, seed, options.layers)
        sys.stdout.write(f"{written}\n")


if __name__ == "__main__":
    main()
