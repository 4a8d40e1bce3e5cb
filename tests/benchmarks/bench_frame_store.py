"""What frames kept as JPEGs take and change, against arrays in the same run: room, quality, time, vectors.

    python -m tests.benchmarks.bench_frame_store ../shared/data/clips/videos
    python -m tests.benchmarks.bench_frame_store vsr1_home/data/toy/videos --max-frames 12 --max-pixels 4096 \
        --embedder vsr1_home/lake/files/base_models/toy/embedder-...

Times are processor time of one thread. Vectors are those of an embedder for the arrays and for the JPEGs of each video:
their cosine, beside the highest cosine of two different videos, and for how many videos the nearest array is their own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.measuring import PROCESSOR
from vsr1_core.datasets.folder import find_videos
from vsr1_core.media import jpeg_archive
from vsr1_core.media.decode import Frames, sample_frames
from vsr1_core.media.frame_store import EXACT, read_frames, write_frames
from vsr1_core.models.checkpoints import load_embedder
from vsr1_core.models.protocols import Embedder, VideoFrames
from vsr1_core.recipes import FrameRecipe


@dataclass(frozen=True)
class Stored:
    """One video in one kind of file. psnr: dB, of all values. write_s, read_s: seconds per frame."""

    num_bytes: int
    psnr: float
    write_s: float
    read_s: float
    pixels: np.ndarray


def psnr(pixels: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all values of two arrays, uint8; infinite where they are equal."""
    error = np.mean((pixels.astype(np.float32) - others) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def timed(work: Callable[[], np.ndarray | None], num_frames: int) -> tuple[np.ndarray | None, float]:
    started = PROCESSOR()
    found = work()
    return found, (PROCESSOR() - started) / num_frames


def stored(pixels: np.ndarray, path: Path, quality: int) -> Stored:
    """Write and read frames, uint8 [T, H, W, 3]."""
    _, write_s = timed(lambda: write_frames(path, pixels, quality), len(pixels))
    again, read_s = timed(lambda: np.array(read_frames(path)), len(pixels))
    assert again is not None
    return Stored(path.stat().st_size, psnr(pixels, again), write_s, read_s, again)


def shown(label: str, files: Sequence[Stored], arrays: Sequence[Stored]) -> str:
    ratios = [array.num_bytes / file.num_bytes for file, array in zip(files, arrays, strict=True)]
    total = sum(array.num_bytes for array in arrays) / sum(file.num_bytes for file in files)
    quality = [file.psnr for file in files]
    write_ms, read_ms = (1e3 * float(np.mean([getattr(f, name) for f in files])) for name in ("write_s", "read_s"))
    return (
        f"{label:10} {total:5.1f} times less room ({min(ratios):.1f} to {max(ratios):.1f}); {np.mean(quality):.1f} dB "
        f"(lowest {min(quality):.1f}); {write_ms:.2f} ms to write a frame, {read_ms:.2f} to read one"
    )


@torch.no_grad()
def vectors(embedder: Embedder, sampled: Sequence[Frames], pixels: Sequence[np.ndarray]) -> torch.Tensor:
    """Unit vectors [N, D] of N videos."""
    videos = [VideoFrames(p, f.timestamps_s.tolist()) for p, f in zip(pixels, sampled, strict=True)]
    return torch.cat([embedder.embed_videos([video]) for video in videos]).float()


def compared(exact: torch.Tensor, packed: torch.Tensor) -> str:
    cosines = exact @ packed.T
    own, others = cosines.diagonal(), (exact @ exact.T).fill_diagonal_(-1)
    nearest = int((cosines.argmax(0) == torch.arange(len(exact))).sum())
    return (
        f"{'':10} cosine of a video's two vectors: {own.mean():.5f} (lowest {own.min():.5f}); of two videos at most "
        f"{others.max():.5f}; {nearest} of {len(exact)} are nearest to their own"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--embedder", default="")
    parser.add_argument("--qualities", type=int, nargs="+", default=[80, 90, 95])
    parser.add_argument("--max-frames", type=int, default=FrameRecipe.max_frames)
    parser.add_argument("--max-pixels", type=int, default=FrameRecipe.max_pixels)
    parser.add_argument("--most", type=int, default=300, help="Number of videos.")
    options = parser.parse_args()
    jpeg_archive.THREADS = 1
    torch.set_num_threads(1)
    recipe = FrameRecipe(max_frames=options.max_frames, max_pixels=options.max_pixels)
    paths = sorted(path for found in find_videos(options.videos).values() for path in found)[: options.most]
    sampled = [sample_frames(path, recipe) for path in paths]
    embedder = load_embedder(options.embedder) if options.embedder else None
    print(f"{len(sampled)} videos, {sum(len(f.pixels) for f in sampled):,} frames")
    with tempfile.TemporaryDirectory() as folder:
        arrays = [stored(f.pixels, Path(folder, f"{n}{EXACT}"), 0) for n, f in enumerate(sampled)]
        exact = None if embedder is None else vectors(embedder, sampled, [a.pixels for a in arrays])
        print(shown("arrays", arrays, arrays))
        for quality in options.qualities:
            path = Path(folder, f"packed{jpeg_archive.SUFFIX}")
            files = [stored(f.pixels, path, quality) for f in sampled]
            print(shown(f"JPEG {quality}", files, arrays))
            if embedder is not None and exact is not None:
                print(compared(exact, vectors(embedder, sampled, [file.pixels for file in files])))


if __name__ == "__main__":
    main()
