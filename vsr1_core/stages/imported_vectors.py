"""Imported query vectors, compared with those of the embedder that the dataset searches with.

Vectors of another embedder look like any others, and a search with them finds nothing. The comparison is made once for
each import and embedder, by whatever opens the embedder first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from vsr1_core.rows.files import read_json, write_json
from vsr1_core.stages.base import View

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vsr1_core.models.protocols import Embedder

NUM_COMPARED = 4
CHECKED = "embedder.json"
"""File of an import that names the embedder with which its vectors were last compared."""


def check_imported(view: View, embedder: Embedder, row: Mapping[str, Any]) -> None:
    """Raise ValueError where the dataset's imported query vectors are not those of `embedder`.

    row: the embedder's row of `base_models`.
    """
    if view.imported is None:
        return
    path = view.imported.folder / CHECKED
    if path.exists() and read_json(path) == {"embedder": row["digest"]}:
        return
    is_imported = pl.col("row_inputs").str.contains('"imported"', literal=True)
    rows = view.rows("query_embeddings", ["query_id", "row_inputs", "vector"]).filter(is_imported).sort("query_id")
    texts = dict(view.rows("moments", ["query_id", "query"]).iter_rows())
    some = [(texts[i], vector) for i, vector in spread(rows.select("query_id", "vector").rows()) if i in texts]
    if some:
        vectors = np.asarray([vector for _, vector in some], np.float32)
        made_by, source = view.imported.record.get("embedder", ""), view.imported.record["source"]
        queries, command = [text for text, _ in some], f"import-prepared {source}"
        compare(embedder, row, queries, vectors, made_by, command, view.entry.name)
    write_json(path, {"embedder": row["digest"]})


def compare(
    embedder: Embedder,
    row: Mapping[str, Any],
    queries: Sequence[str],
    vectors: NDArray[np.float32],
    made_by: str,
    command: str,
    dataset: str,
) -> None:
    """Raise ValueError where `vectors` [n, D] are not those that the embedder makes of `queries`.

    made_by: name of the model that made the vectors; empty where it is not known. command: the import, for the message.
    """
    from vsr1_core.models.agreement import SAME_COSINE, lowest_cosine, query_vectors

    cosine = lowest_cosine(query_vectors(embedder, queries), vectors)
    if cosine < SAME_COSINE:
        raise ValueError(
            f"the imported vectors were made by {made_by or 'another embedder, which the import does not name'}, and "
            f"{dataset} searches with {row['source'] or row['digest']}: vectors of the same queries have a cosine of "
            f"only {cosine:.3f}. Search with the embedder that made them (vsr1 dataset add {dataset} --embedder "
            f"DIR_OR_ID), or leave the vectors out of the import: vsr1 {command} --dataset {dataset} --without-vectors"
        )


def spread(rows: Sequence[Any]) -> list[Any]:
    """NUM_COMPARED of the rows, evenly spread; all of them where there are no more."""
    return list(rows[:: max(1, len(rows) // NUM_COMPARED)])[:NUM_COMPARED]
