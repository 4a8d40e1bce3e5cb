"""The embedder of a checkpoint that is adopted, compared with the one that the dataset searches with.

A policy's soft tokens are understood by the embedder that it was trained with, and by no other. The authors'
checkpoints have a copy of it in `query_embedder/`; ours record its digest, hub id or folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr1_core.home.hub.remote import QUERY_EMBEDDER, fetch_query_embedder, query_embedder_checksums
from vsr1_core.models.agreement import SAME_COSINE, embedders_cosine
from vsr1_core.models.registry import family_of
from vsr1_core.models.soft_query import own_soft_query


@dataclass(frozen=True)
class OwnEmbedder:
    """The `query_embedder/` of a checkpoint.

    source: where the checkpoint comes from, a hub id or a folder. folder: the local folder of the checkpoint.
    checksums, fetch: how its weights are looked up and downloaded where only the hub has them.
    """

    source: str
    folder: Path
    checksums: Callable[[str], set[str]] = query_embedder_checksums
    fetch: Callable[[str], Path] = fetch_query_embedder

    @property
    def path(self) -> Path:
        return self.folder / QUERY_EMBEDDER

    @property
    def name(self) -> str:
        return f"{self.source}/{QUERY_EMBEDDER}"

    def exists(self) -> bool:
        return (self.path / "config.json").is_file()

    def compare(self, embedder: Path) -> str:
        """How it was found to be the embedder in the folder `embedder`, in words.

        Raises:
            Differs: It is another embedder.
            OSError: Its weights are neither here nor can they be looked up.
            ValueError: It cannot be opened.
        """
        path = self.path
        if not any(path.glob("*.safetensors")):
            listed = self.checksums(self.source)
            if listed and listed == {_sha256(file) for file in embedder.glob("*.safetensors")}:
                return "its weight files are the same, so they were not downloaded"
            path = self.fetch(self.source)
        cosine = embedders_cosine(path, embedder)
        if cosine < SAME_COSINE:
            raise Differs(f"the vectors of one query have a cosine of only {cosine:.3f}")
        return f"the vectors of a few queries agree, with a cosine of at least {cosine:.4f}"


class Differs(ValueError):
    """Two embedders are not the same; the message says how that shows."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embedder_name(row: Mapping[str, Any]) -> str:
    """The name of the embedder in a row of `base_models`."""
    return str(row["source"] or row["digest"])


def check_embedder(own: OwnEmbedder, policy: Path, row: Mapping[str, Any], dataset: str) -> Iterator[str]:
    """Compare the embedder that the policy in the folder `policy` was trained with, with the dataset's.

    Args:
        own: The `query_embedder/` beside the policy, which need not exist.
        policy: The folder of the policy in this project's form, which records a name of its embedder.
        row: The dataset's embedder, a row of `base_models`.
        dataset: The dataset's name, for messages.

    Yields:
        What was found, in sentences.

    Raises:
        ValueError: The policy was trained with another embedder; the message has both names.
    """
    soft_query, folder = own_soft_query(policy), Path(row["path"])
    assert soft_query is not None, "the policy was loaded"
    size, _ = family_of(folder).embedder_sizes(folder)
    if soft_query.embedder_hidden_size != size:
        raise ValueError(f"{own.source} writes into embedders of size {soft_query.embedder_hidden_size}, not {size}")
    if own.exists():
        try:
            yield f"Its {QUERY_EMBEDDER}/ is the embedder {embedder_name(row)}: {own.compare(folder)}."
            return
        except Differs as error:
            raise ValueError(
                f"{own.source} was trained with the embedder in {own.name}, and {dataset} searches with "
                f"{embedder_name(row)}: {error}. To search with the former: vsr1 dataset add ... --embedder DIR_OR_ID"
            ) from error
        except (OSError, ValueError) as error:
            yield f"Its {QUERY_EMBEDDER}/ was not compared with {embedder_name(row)}: {error}."
    if soft_query.embedder not in (row["digest"], row["source"], row["path"]):
        raise ValueError(
            f"{own.source} was trained with the embedder {soft_query.embedder}; {dataset} searches with "
            f"{embedder_name(row)}"
        )


def found_in(source: str, folder: Path) -> Iterator[str]:
    """Sentences about the `query_embedder/` of a checkpoint that was pulled into `folder`, if it has one."""
    own = OwnEmbedder(source, folder)
    if own.exists() and not any(own.path.glob("*.safetensors")):
        yield f"The weights of its {QUERY_EMBEDDER}/ were left on the hub: a dataset has its own embedder."
    if own.exists() and (own.path / "tokenizer.json").is_file():
        yield insertion_sentence({"path": str(own.path), "source": own.name})


def insertion_sentence(row: Mapping[str, Any]) -> str:
    """Where the dataset's embedder takes soft tokens, in words, and whether its tokenizer lacks an end token."""
    folder = Path(row["path"])
    place = family_of(folder).insertion_place(folder)
    after = "".join(place.tokens_after).replace("Ċ", "\\n")
    count = len(place.tokens_after)
    said = f"Soft tokens are inserted right after the query text, before its last {count} tokens: {after}"
    return "\n".join(filter(None, (said, place.notice(embedder_name(row)))))
