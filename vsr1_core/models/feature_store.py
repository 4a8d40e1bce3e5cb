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
from typing import Any

import torch

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
    max_bytes: int = 2 << 30
    """Bytes of features in memory; at least one video is kept."""
    batch_size: int = 32
    """Videos in one pass of the tower, at most."""
    max_patches: int = 131_072
    """Patches in one pass of the tower, at most, unless a single video has more."""
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
        for some in self._batches(missing):
            if self.is_learning:
                found.update(zip(some, self.encoder.encode(list(some.values())), strict=True))
            else:
                found.update(self._encode_to_keep(some))
        return [found[v] for v in video_ids]

    @torch.no_grad()
    def _encode_to_keep(self, videos: dict[str, Any]) -> dict[str, VideoFeatures]:
        with torch.autocast(self.encoder.device.type, enabled=False):
            features = self.encoder.encode(list(videos.values()))
        made = {}
        for video_id, feature in zip(videos, features, strict=True):
            own = feature.copied()  # a view would keep the memory of the whole batch
            if self.disk is not None and self.key_of is not None:
                self.disk.put(self.key_of(video_id), *self.encoder.stored(own))
            made[video_id] = self._keep(video_id, own)
        return made

    def _recall(self, video_id: str) -> VideoFeatures | None:
        if video_id in self._kept:
            self._kept.move_to_end(video_id)
            return self._kept[video_id]
        if self.disk is None or self.key_of is None:
            return None
        entry = self.disk.get(self.key_of(video_id))
        return None if entry is None else self._keep(video_id, self.encoder.restored(*entry))

    def _batches(self, video_ids: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The inputs of the videos, in groups that fit in one pass."""
        group: dict[str, Any] = {}
        size = 0
        for video_id in video_ids:
            video = self.load(video_id)
            patches = self.encoder.num_patches(video)
            if group and (len(group) == self.batch_size or size + patches > self.max_patches):
                yield group
                group, size = {}, 0
            group[video_id] = video
            size += patches
        if group:
            yield group

    def _keep(self, video_id: str, feature: VideoFeatures) -> VideoFeatures:
        self._kept[video_id] = feature
        self.num_bytes += feature.num_bytes
        while self.num_bytes > self.max_bytes and len(self._kept) > 1:
            self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return feature
