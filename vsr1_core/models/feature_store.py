"""Vision features: computed once a video, shared over queries, turns and group samples.

In memory the key is the video id, because a store belongs to one model and one set of frames; it is bounded by bytes
and forgets the least recently used video. On disk the key names all that a feature depends on (`feature_key`): new
vision weights, another precision or new frames make a new key, nothing else does. A tower that learns is never kept.
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
    """The key on disk: `weights` is an encoder's digest, `frames_version` the row version of the video's frames."""
    return f"{video_id}/{frames_version}/{weights}"


@dataclass
class FeatureStore:
    """Features by video id for one vision tower, at most `max_bytes` of them in memory.

    load: video id -> the encoder's input. key_of: video id -> `feature_key`; with it, features outlive the process in
    `disk`. One pass of the tower takes at most `batch_size` videos and `max_patches` patches (at least one video).
    is_learning: the tower is being trained, so every `get` encodes anew, with gradients where they are on; nothing is
    kept. What is kept is in the tower's own precision, whatever autocast is on where it is asked for.

        store = FeatureStore(policy.encoder, lambda video_id: policy.encoder.prepare(frames[video_id]))
        features = store.get(["v1", "v2", "v1"])  # two videos are encoded
    """

    encoder: VideoEncoder
    load: Callable[[str], Any]
    max_bytes: int = 2 << 30
    batch_size: int = 32
    max_patches: int = 131_072
    disk: TensorFolder | None = None
    key_of: Callable[[str], str] | None = None
    is_learning: bool = False
    _kept: OrderedDict[str, VideoFeatures] = field(default_factory=OrderedDict, repr=False)
    num_bytes: int = 0

    def __post_init__(self) -> None:
        if (self.disk is None) != (self.key_of is None):
            raise ValueError("features on disk need both the folder and the keys")
        if self.is_learning and self.disk is not None:
            raise ValueError("features of a tower that learns are not kept on disk")

    @property
    def num_videos(self) -> int:
        """How many are kept in memory."""
        return len(self._kept)

    def get(self, video_ids: Sequence[str]) -> list[VideoFeatures]:
        """Features in the order of `video_ids`; what is not kept is read from disk, or encoded in batches."""
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
            own = feature.copied()  # or it would hold the whole batch's memory
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
        """The videos' inputs in groups that one pass may take."""
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
