"""The patch embedding of the published vision towers as a matrix product, against its convolution: `make bench`."""

from __future__ import annotations

import torch

from tests.benchmarks.measuring import PROCESSOR, interleaved, line, milliseconds
from vsr1_core.models.qwen3_vl.sizes import published_config
from vsr1_core.models.qwen3_vl.vision import PatchProduct, Qwen3VLVisionPatchEmbed

NUM_PATCHES, REPEATS = 2048, 5
WANTED = "at least 2"


@torch.no_grad()
def test_the_product_is_faster_than_the_convolution() -> None:
    config = published_config("Qwen/Qwen3-VL-2B-Instruct")
    assert config is not None
    plain = Qwen3VLVisionPatchEmbed(config.vision_config)
    ours = PatchProduct(config.vision_config)
    ours.load_state_dict(plain.state_dict())
    patches = torch.randn(NUM_PATCHES, 1536)
    slow, fast = interleaved(REPEATS, PROCESSOR, lambda: plain(patches), lambda: ours(patches))
    ratio = slow.median / fast.median
    times = milliseconds(slow.median, fast.median)
    print(line(f"embedding {NUM_PATCHES:,} patches", *times, ratio, WANTED, against="the convolution"))
    torch.testing.assert_close(fast.result, slow.result, atol=1e-5, rtol=1e-5)
