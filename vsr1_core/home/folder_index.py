"""An index over a folder of videos: search it without annotations and without Dagster."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from vsr1_core.datasets.registry import DatasetEntry, save_entry
from vsr1_core.home.adding import new_window_s, require_videos, with_frame_store
from vsr1_core.home.home import Home
from vsr1_core.home.model_source import ModelSource, model_source
from vsr1_core.home.search import SearchRequest, search_once
from vsr1_core.home.search_result import Found
from vsr1_core.rows.versions import fingerprint
from vsr1_core.segments import video_of

if TYPE_CHECKING:
    from vsr1_core.home.building import BuiltAsset

CACHE_HOME = Path("~/.cache/videosearch-r1")
SPLIT = "test"
"""The split that videos without annotations belong to."""
MAX_LISTED = 5
"""Most unreadable videos that one error or log line names."""


class Index:
    """The videos of one folder: sampled, embedded, and ready to be searched. Made by `Index.from_folder`.

    Attributes:
        folder: The folder of videos.
        home: The home that keeps frames, embeddings and the index.
        dataset: Name of the folder's dataset in that home.
        built: What the last refresh did, asset by asset.

    Example:
        >>> import vsr1_core as vsr1
        >>> index = vsr1.Index.from_folder("~/clips", models="vsr1_home/toy")   # doctest: +SKIP
        >>> for hit in index.search("a person opens a fridge"):                # doctest: +SKIP
        ...     print(hit.video, hit.start_s, hit.end_s, hit.reasoning)
    """

    def __init__(self, folder: Path, home: Home, dataset: str, source: ModelSource) -> None:
        self.folder = folder
        self.home = home
        self.dataset = dataset
        self.built: Sequence[BuiltAsset] = ()
        self._source = source

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        models: str | Path | Mapping[str, str | Path],
        *,
        home: str | Path | None = None,
        config: str | None = None,
        device: str = "auto",
        workers: int = 0,
        log: Callable[[str], None] | None = None,
    ) -> Index:
        """Sample, embed and index all videos of a folder. A second call processes only what changed.

        A video that cannot be read is left out and listed in `failures`.

        Args:
            folder: The folder of video files (mp4, mkv, webm, mov, avi, ...), searched in all subfolders.
            models: What to search with: `"toy"` (trained first, which takes several minutes; it has seen nothing but
                moving shapes); a built dataset of `home`, or `"HOME/DATASET"` of another home; a folder that holds
                `embedder/` and `policy/`; a folder or hub id of an embedder alone, which ranks videos and verifies
                none (`Hit.start_s` is None); or `{"embedder": FOLDER_OR_ID, "policy": FOLDER_OR_ID}`.
            home: The folder that stores frames, embeddings and the index; by default `~/.cache/videosearch-r1`. It
                may be deleted.
            config: Name of the configuration that says how frames are sampled, where `models` is not a dataset; by
                default `qwen3-vl-2b`.
            device: A torch device; `auto` is the first GPU where there is one, else the CPU.
            workers: How many processes decode videos; 0 is one per core.
            log: Called with each line about the progress; by default nothing is logged.

        Returns:
            The index, ready to be searched.

        Raises:
            ValueError: The folder has no videos, or none that can be read; or `models` names nothing.
            FileNotFoundError: The folder does not exist.
            LookupError: `models` names a dataset that is not built.
            OSError: A model cannot be downloaded from the hub.

        Example:
            >>> models = {"embedder": "Qwen/Qwen3-VL-Embedding-2B", "policy": "Qwen/Qwen3-VL-2B-Instruct"}
            >>> index = vsr1.Index.from_folder("~/clips", models, log=print)   # doctest: +SKIP
        """
        place = Home(CACHE_HOME if home is None else home, device, workers, log=log)
        path = Path(folder).expanduser().resolve()
        name = _dataset_name(path)
        require_videos(path)
        source = model_source(models, place, config)
        policy = "" if source.stands_for else source.policy
        own = DatasetEntry(name, "folder", str(path), config=source.config, embedder=source.embedder, policy=policy)
        own = dataclasses.replace(own, window_s=new_window_s(place.path, name, source.config))
        save_entry(place.path, with_frame_store(place.path, own))
        index = cls(path, place, name, source)
        index.refresh()
        return index

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {len(self)} videos)"

    def __len__(self) -> int:
        """The number of videos that can be searched."""
        return len(self.videos)

    @property
    def videos(self) -> list[str]:
        """The ids of the videos that can be searched: their paths below the folder, without the suffix."""
        segments = self.home.view(self.dataset).rows("video_embeddings", ["video_id"])["video_id"]
        return list(dict.fromkeys(map(video_of, segments)))

    @property
    def failures(self) -> dict[str, str]:
        """Video id -> why the video cannot be searched."""
        view, found = self.home.view(self.dataset), dict[str, str]()
        for asset in ("raw_videos", "videos", "frame_tensors", "video_embeddings"):
            rows = view.table(asset).rows(["video_id", "status", "error"]).filter(pl.col("status") != "ok")
            found |= {row["video_id"]: row["error"] for row in rows.to_dicts() if row["video_id"] not in found}
        return found

    def refresh(self) -> None:
        """Update the index to the present content of the folder: new, changed and deleted videos.

        Raises:
            ValueError: No video of the folder can be read any more.
        """
        try:
            self.built = self.home.build(self.dataset, ["video_index"])
        except ValueError as error:
            self._refuse_unreadable(self.failures, error)
            raise
        failures = self.failures
        self._refuse_unreadable(failures)
        if failures:
            self.home.log(f"{len(failures)} of {len(failures) + len(self)} videos cannot be searched: {_few(failures)}")
        if self._source.stands_for:
            self._adopt_policy(self._source)

    def search(self, text: str, top_k: int = 5) -> Found:
        """Find videos for a text, and the moment in each video that the policy was shown.

        The first search loads the models; later ones use them again.

        Args:
            text: Description of what happens in the moment.
            top_k: How many videos to return.

        Returns:
            The result: a sequence of at most `top_k` hits, best first, with the verdict and every turn.

        Raises:
            ValueError: The text is blank, or `top_k` is less than 1.

        Example:
            >>> index.search("a dog jumps over a fence", top_k=1)[0].video   # doctest: +SKIP
            'garden/monday'
        """
        method = self._source.method
        request = SearchRequest(text, SPLIT, top_k, method.name if method else None, verify=method is not None)
        return search_once(self.home.opened(self.dataset), request)

    def _refuse_unreadable(self, failures: Mapping[str, str], error: ValueError | None = None) -> None:
        """Raise ValueError that names the videos where none can be read; it may be the cause of `error` in a build."""
        if failures and not len(self):
            told = f"none of the {len(failures)} videos in {self.folder} can be read: {_few(failures)}"
            raise ValueError(told) from error

    def _adopt_policy(self, source: ModelSource) -> None:
        """Adopt the policy in place of the training that it comes from. Its weights are checked once."""
        from vsr1_core.home.hub.adoption import adopt
        from vsr1_core.stages.adopted import adopted

        view = self.home.view(self.dataset)
        known = adopted(view, source.stands_for)
        if known is None or known.path != source.policy:
            adopt(view, source.stands_for, source.policy, Path(source.policy))
        view.stages[source.stands_for].build(view, self.home.execution())


def _dataset_name(folder: Path) -> str:
    """The folder's name and a digest of its path, so that two folders of the same name are two datasets."""
    readable = re.sub(r"[^a-zA-Z0-9_-]+", "-", folder.name).strip("-_") or "videos"
    return f"{readable[:40]}-{fingerprint(str(folder))[:8]}"


def _few(failures: Mapping[str, str]) -> str:
    shown = [f"{video_id}: {error}" for video_id, error in list(failures.items())[:MAX_LISTED]]
    return "; ".join(shown) + (f"; and {len(failures) - MAX_LISTED} more" if len(failures) > MAX_LISTED else "")
