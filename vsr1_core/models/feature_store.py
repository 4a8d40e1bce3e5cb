"""Vision features, which are computed once per video and shared by queries, turns and samples of a group.

In memory the key is the video id, because a store belongs to one model and one set of frames; memory is bounded in
bytes, and the least recently used video is dropped first. On disk the key names everything that a feature depends on
(`feature_key`): only new vision weights, another precision or new frames make a new key. Features of a tower that is
being trained are never kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from vsr1_core.models.batches import Budget
from vsr1_core.models.memory import Passes
from vsr1_core.models.protocols import VideoEncoder, VideoFeatures
from vsr1_core.models.tensor_folder import TensorFolder


def feature_key(weights: str, video_id: str, frames_version: str) -> str:
    """The key of a feature on disk. `weights` is the digest of the encoder, and `frames_version` the row version of the
    video's frames."""
    return f"{video_id}/{frames_version}/{weights}"


@dataclass
class FeatureStore:
    """Features by video id for one vision tower.

    Kept features have the precision of the tower, whether or not the caller has autocast on.

    Example:
        store = FeatureStore(policy.encoder, lambda video_id: policy.encoder.prepare(frames[video_id]))
        features = store.get(["v1", "v2", "v1"])  # two videos are encoded
    """

    encoder: VideoEncoder
    load: Callable[[str], Any]
    """Video id -> the input of the encoder."""
    load_several: Callable[[Sequence[str]], Iterator[Any]] | None = None
    """The inputs of several videos, in order, which may be made ahead of the tower; by default `load`, one by one."""
    max_bytes: int = 2 << 30
    """Bytes of features in memory; at least one video is kept."""
    batch_size: int = 32
    """Videos in one pass of the tower, at most."""
    budget: Budget = field(default_factory=Budget)
    """How many bytes a pass may take: of the tower, which reads a longer video in parts, and of the models that read
    the features."""
    layout_of: Callable[[str], Any] | None = None
    """Video id -> its layout, without reading a frame; needed by `parts`."""
    disk: TensorFolder | None = None
    """Keeps features beyond the life of the process; needs `key_of`."""
    key_of: Callable[[str], str] | None = None
    """Video id -> its `feature_key`."""
    is_learning: bool = False
    """The tower is being trained: every `get` encodes again, with gradients if they are on, and keeps nothing."""
    _kept: OrderedDict[str, VideoFeatures] = field(default_factory=OrderedDict, repr=False)
    num_bytes: int = 0

    def __post_init__(self) -> None:
        if (self.disk is None) != (self.key_of is None):
            raise ValueError("features on disk need both `disk` and `key_of`, or neither")
        if self.is_learning and self.disk is not None:
            raise ValueError("features of a tower that is being trained cannot be kept on disk; leave out `disk`")

    @property
    def num_videos(self) -> int:
        """How many videos have their features in memory."""
        return len(self._kept)

    def get(self, video_ids: Sequence[str]) -> list[VideoFeatures]:
        """Features in the order of `video_ids`; those not in memory are read from disk, or encoded in batches."""
        found: dict[str, VideoFeatures] = {}
        missing = []
        for video_id in dict.fromkeys(video_ids):
            feature = self._recall(video_id)
            if feature is None:
                missing.append(video_id)
            else:
                found[video_id] = feature
        found.update(self._encoded(missing))
        return [found[v] for v in video_ids]

    def parts(self, video_ids: Sequence[str]) -> Iterator[list[int]]:
        """Consecutive places in `video_ids` whose videos have at most `max_bytes` of features together, so that a loop
        over the parts holds no more. All places are one part if no layouts are known."""
        part: list[int] = []
        sizes: dict[str, float] = {}
        for place, video_id in enumerate(video_ids):
            needed = sizes.get(video_id) or self._feature_bytes(video_id)
            if part and sum(sizes.values()) + (video_id not in sizes) * needed > self.max_bytes:
                yield part
                part, sizes = [], {}
            part.append(place)
            sizes[video_id] = needed
        if part:
            yield part

    def _feature_bytes(self, video_id: str) -> float:
        if self.layout_of is None:
            return 0.0
        num_tokens = self.encoder.num_patches(self.layout_of(video_id)) / self._passes.size.patches_per_token
        return self._passes.features(num_tokens)

    @cached_property
    def _passes(self) -> Passes:
        return Passes(self.encoder.size, self.encoder.number_bytes)

    def _encoded(self, video_ids: Sequence[str]) -> dict[str, VideoFeatures]:
        """The features of these videos, encoded in batches that fit into the budget."""
        loaded = map(self.load, video_ids) if self.load_several is None else self.load_several(video_ids)
        videos = zip(video_ids, loaded, strict=True)
        where = self.encoder.device, self.batch_size
        if not self.is_learning:
            made = self.budget.map(videos, self._pass_bytes, self._encode_to_keep, *where)
            return {video_id: feature for (video_id, _), feature in made}
        found: dict[str, VideoFeatures] = {}
        for some in self.budget.batches(videos, self._pass_bytes, *where):
            found.update(zip([v for v, _ in some], self.encoder.encode([video for _, video in some]), strict=True))
        return found

    def _pass_bytes(self, videos: Sequence[tuple[str, Any]]) -> float:
        num_patches = sum(self.encoder.num_patches(video) for _, video in videos)
        return self._passes.vision(num_patches) + self._passes.features(
            num_patches / self._passes.size.patches_per_token
        )

    @torch.no_grad()
    def _encode_to_keep(self, videos: Sequence[tuple[str, Any]]) -> list[VideoFeatures]:
        with torch.autocast(self.encoder.device.type, enabled=False):
            features = self.encoder.encode([video for _, video in videos], self.budget.bytes_on(self.encoder.device))
        made = []
        for (video_id, _), feature in zip(videos, features, strict=True):
            own = feature.copied()  # a view would keep the memory of the whole batch
            if self.disk is not None and self.key_of is not None:
                self.disk.put(self.key_of(video_id), *self.encoder.stored(own))
            made.append(self._keep(video_id, own))
        return made

    def _recall(self, video_id: str) -> VideoFeatures | None:
        if video_id in self._kept:
            self._kept.move_to_end(video_id)
            return self._kept[video_id]
        if self.disk is None or self.key_of is None:
            return None
        entry = self.disk.get(self.key_of(video_id))
        return None if entry is None else self._keep(video_id, self.encoder.restored(*entry))

    def _keep(self, video_id: str, feature: VideoFeatures) -> VideoFeatures:
        self._kept[video_id] = feature
        self.num_bytes += feature.num_bytes
        while self.num_bytes > self.max_bytes and len(self._kept) > 1:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return feature
