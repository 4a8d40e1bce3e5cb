"""An index after videos were added, changed or removed, made from the one before where that is sound. No tables here.

It has the vectors that are given, and no others: what is taken from the index before is the list of each vector (IVF)
or the graph (HNSW), and only of vectors that are the same number for number. So a vector that changed or that is gone
cannot stay, whatever the files before say.

- IVF keeps its centroids, and all vectors lie in the lists in which a new index with these centroids would have them.
  It is trained anew once half as many vectors as it was trained on were added, changed or removed.
- HNSW grows. FAISS can take nothing out of a graph, so it is built anew where a vector changed or is gone.
- A flat index is always written anew: that is copying the vectors, which an update would do as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsr1_core.search.faiss_kinds import is_of_kind, load_faiss
from vsr1_core.search.index import Vectors, VideoIndex, build_index, check_ids, read_faiss_index, unit_vectors

MAX_MOVED = 0.5
"""An IVF index is trained anew where more vectors moved since then, as a share of those that it was trained on."""
COMPARED_AT_ONCE = 4096


@dataclass(frozen=True)
class Training:
    """On how many vectors the lists of an IVF index were trained, and how many were added, changed or removed since."""

    num_vectors: int
    num_moved: int = 0


@dataclass(frozen=True)
class Updated:
    """An index, the training of its lists, and in one phrase what was done."""

    index: VideoIndex
    training: Training
    says: str


def updated_index(
    folder: Path | None, ids: Sequence[str], vectors: NDArray[Any], kind: str, training: Training | None = None
) -> Updated:
    """The index of these vectors: that of `folder` with what differs, or a new one where that is not sound.

    Args:
        folder: Where an index of the same kind may be, made by this code with this recipe; None to build anew.
        ids: Ids of the V segments, in any order.
        vectors: Their unit vectors [V, D].
        kind: `flat` (exact), `ivf` or `hnsw`.
        training: How the lists of an IVF index in `folder` were trained; None where that is not known, and is taken
            to have been on the vectors that it has.

    Raises:
        ValueError: `build_index` refuses ids, vectors or kind.
    """
    checked = unit_vectors(vectors, "video")
    check_ids(ids, len(checked))
    found = _from_before(folder, ids, checked, kind, training) if folder is not None and kind != "flat" else None
    if found is not None:
        return found
    return Updated(build_index(ids, checked, kind), Training(len(checked)), f"{len(checked):,} vectors, built anew")


def _from_before(
    folder: Path, ids: Sequence[str], vectors: Vectors, kind: str, training: Training | None
) -> Updated | None:
    """The index of `folder` with what differs; None where it should be built anew."""
    before = _Before.read(folder, ids, vectors, kind)
    if before is None:
        return None
    try:
        return before.extended(training) if kind == "ivf" else before.grown()
    except IndexError:  # lists of a damaged file name vectors that it does not have
        return None


@dataclass(frozen=True)
class _Before:
    """The FAISS index before, and what it becomes the index of.

    old_ids: the ids of its vectors. rows: for each of them, the row of the same id in `vectors`; -1 where it is gone.
    """

    faiss_index: Any
    old_ids: Sequence[str]
    rows: NDArray[np.int64]
    ids: Sequence[str]
    vectors: Vectors

    @classmethod
    def read(cls, folder: Path, ids: Sequence[str], vectors: Vectors, kind: str) -> _Before | None:
        """The index of `folder`; None where there is none of this kind and size that can be read."""
        try:
            old_ids, index = read_faiss_index(folder)
        except (FileNotFoundError, ValueError):
            return None
        if not is_of_kind(index, kind) or index.d != vectors.shape[1]:
            return None
        row_of = {segment_id: row for row, segment_id in enumerate(ids)}
        rows = np.array([row_of.get(segment_id, -1) for segment_id in old_ids], np.int64)
        return cls(index, old_ids, rows, ids, vectors)

    def extended(self, training: Training | None) -> Updated | None:
        """An IVF index with the centroids of before; None where it should be trained anew."""
        faiss, index, lists = load_faiss(), self.faiss_index, self._lists()
        new = np.flatnonzero(lists < 0)
        trained_on = training.num_vectors if training else index.ntotal
        num_moved = (training.num_moved if training else 0) + self._num_moved(len(new))
        if num_moved > MAX_MOVED * trained_on:
            return None
        if len(new):
            lists[new] = index.quantizer.search(self.vectors[new], 1)[1][:, 0]
        index.reset()
        index.add_core(len(lists), faiss.swig_ptr(self.vectors), None, faiss.swig_ptr(lists))
        found = VideoIndex(tuple(self.ids), self.vectors, index)
        return Updated(found, Training(trained_on, num_moved), self._says(len(new)))

    def _lists(self) -> NDArray[np.int64]:
        """The list in which each of `vectors` lies in the index before: [V]; -1 for one that it does not have."""
        faiss, stored = load_faiss(), self.faiss_index.invlists
        lists = np.full(len(self.vectors), -1, np.int64)
        for number in range(self.faiss_index.nlist):
            if size := stored.list_size(number):
                at = self.rows[faiss.rev_swig_ptr(stored.get_ids(number), size)]
                numbers = faiss.rev_swig_ptr(stored.get_codes(number), size * stored.code_size).view(np.float32)
                is_same = (at >= 0) & (numbers.reshape(size, -1) == self.vectors[at]).all(axis=1)
                lists[at[is_same]] = number
        return lists

    def grown(self) -> Updated | None:
        """An HNSW index with the new vectors behind those of before; None where one of these changed or is gone."""
        faiss, index = load_faiss(), self.faiss_index
        stored = faiss.rev_swig_ptr(faiss.downcast_index(index.storage).get_xb(), index.ntotal * index.d)
        stored = stored.reshape(index.ntotal, index.d)
        parts = [slice(start, start + COMPARED_AT_ONCE) for start in range(0, index.ntotal, COMPARED_AT_ONCE)]
        if (self.rows < 0).any() or not all((stored[p] == self.vectors[self.rows[p]]).all() for p in parts):
            return None
        new = np.setdiff1d(np.arange(len(self.ids)), self.rows)
        if len(new):
            index.add(self.vectors[new])
        order = np.concatenate([self.rows, new])
        found = VideoIndex(tuple(self.ids[row] for row in order), self.vectors[order], index)
        return Updated(found, Training(len(order)), self._says(len(new)))

    def _num_moved(self, num_new: int) -> int:
        """How many vectors were added, changed or removed. num_new: vectors that the index before does not have."""
        return num_new + int((self.rows < 0).sum())

    def _says(self, num_new: int) -> str:
        num_gone = int((self.rows < 0).sum())
        num_added = len(self.ids) - (len(self.rows) - num_gone)
        counts = {"added": num_added, "changed": num_new - num_added, "removed": num_gone}
        return f"{len(self.ids):,} vectors, {', '.join(f'{count:,} {what}' for what, count in counts.items())}"
