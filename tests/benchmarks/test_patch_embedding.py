"""The patch embedding of the published vision towers as a matrix product, against its convolution: `make bench`."""

from __future__ import annotations

import torch

from tests.benchmarks.measuring import Clock, interleaved, line, milliseconds
from vsr1_core.models.qwen3_vl.sizes import published_config
from vsr1_core.models.qwen3_vl.vision import PatchProduct, Qwen3VLVisionPatchEmbed

NUM_PATCHES, REPEATS = 2048, 5
WANTED = 2.0


@torch.no_grad()
def test_the_product_is_faster_than_the_convolution() -> None:
    config = published_config("Qwen/Qwen3-VL-2B-Instruct")
    assert config is not None
    plain = Qwen3VLVisionPatchEmbed(config.vision_config)
    ours = PatchProduct(config.vision_config)
    ours.load_state_dict(plain.state_dict())
    patches = torch.randn(NUM_PATCHES, 1536)
    slow, fast = interleaved(REPEATS, Clock("cpu", "cpu"), lambda: plain(patches), lambda: ours(patches))
    ratio = slow.median / fast.median
    print(f"\n{line('embed 2,048 patches, ms', *milliseconds(slow.median, fast.median), ratio, f'at least {WANTED}')}")
    torch.testing.assert_close(fast.result, slow.result, atol=1e-5, rtol=1e-5)
    assert ratio > WANTED
