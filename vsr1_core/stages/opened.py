"""What answers a query (policy, embedder, index, vision features), opened once and kept as long as it is current."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsr1_core.stages import loading
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.methods import Method, settings_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vsr1_core.models.feature_store import FeatureStore
    from vsr1_core.models.protocols import Embedder, PolicyModel
    from vsr1_core.models.query_vectors import QueryVectors
    from vsr1_core.search.episodes import Searcher
    from vsr1_core.search.index import VideoIndex

_MADE_WITH = {"embedder": ("plain",), "policy": ("features",)}
"""Name of a piece -> names of the pieces that hold a reference to it."""


@dataclass
class OpenedModels:
    """The models, indexes and vision features of one dataset.

    Each piece is opened when it is first used. It is opened again when the row that it was opened from has a new
    version, so that the next query after a build uses what the build made. Only one policy is held at a time.

    All methods raise LookupError for a row that was not built or that failed; the message has the command that helps.
    """

    view: View
    execution: Execution
    _kept: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, repr=False)

    @property
    def embedder(self) -> Embedder:
        """The frozen embedder of texts and videos."""
        version = (self._version("base_models", "embedder"), self.view.config.models.query_instruction)
        return self._piece("embedder", version, lambda: loading.embedder_of(self.view, self.execution))

    @property
    def plain(self) -> QueryVectors:
        """Unit vectors of query texts without soft tokens, by `embedder`; each text is embedded once."""
        embedder = self.embedder
        return self._piece("plain", embedder, lambda: loading.query_vectors(self.view, embedder, self.execution))

    @property
    def durations_s(self) -> Mapping[str, float]:
        """Segment id -> length in seconds, of every segment that has frames."""
        return self._piece("durations", self._frames_version(), lambda: loading.durations_of(self.view))

    def index(self, split: str) -> VideoIndex:
        """The search index of the videos of `split`."""
        row = loading.one_row(self.view, "video_index", split)
        return self._piece(f"index/{split}", row["row_version"], lambda: self._read_index(row["path"]))

    def _read_index(self, path: str) -> VideoIndex:
        from vsr1_core.search.index import on_gpu_where_it_pays, read_index

        return on_gpu_where_it_pays(read_index(Path(path)), self.execution.device)

    def unrelated_scores(self, split: str) -> NDArray[np.float64] | None:
        """The best score of each unrelated text (`search.unrelated`) on the videos of `split`. The texts are embedded
        once per embedder, as their vectors are kept like those of any query. None where the embedder's own vectors have
        another size than those of the index."""
        if self.embedder.embedding_size != self.index(split).vectors.shape[1]:
            return None
        version = (self._version("video_index", split), self._version("base_models", "embedder"))
        return self._piece(f"unrelated/{split}", version, lambda: _unrelated(self.index(split), self.plain))

    def policy(self, method: Method) -> PolicyModel:
        """The policy that `method` searches with. It is opened again when the embedder changes as well, because a
        published policy gets soft query modules of the embedder's size."""
        asset, row_id = method.model, method.row_id
        embedder = self.view.version("base_models", "embedder")
        version = (asset, self._version(asset, row_id), embedder)
        return self._piece("policy", version, lambda: loading.policy_of(self.view, self.execution, asset, row_id))

    def features(self, policy: PolicyModel) -> FeatureStore:
        """Vision features of the dataset's videos, by the vision tower of `policy`."""
        return self._piece(
            "features",
            (policy, self._frames_version()),
            lambda: loading.frame_store(self.view, policy.encoder, self.execution),
        )

    def checkpoint(self, method: Method) -> str:
        """The digest of the weights that `method` searches with."""
        return str(loading.one_row(self.view, method.model, method.row_id)["digest"])

    def searcher(self, split: str, method: Method) -> Searcher:
        """A searcher that searches the videos of `split` by `method`."""
        from vsr1_core.search.episodes import Searcher

        policy = self.policy(method)
        soft_query, size = policy.model.soft_query, self.execution.batch_size * 2
        return Searcher(
            policy=policy,
            embedder=self.embedder,
            index=self.index(split),
            features=self.features(policy),
            durations_s=self.durations_s,
            settings=settings_of(method, self.view.config.evaluation, soft_query, size),
            plain=self.plain,
        )

    def _version(self, asset: str, row_id: str) -> str:
        return str(loading.one_row(self.view, asset, row_id)["row_version"])

    def _frames_version(self) -> str:
        return str(self.view.table("frame_tensors").manifest()["data_version"])

    def _piece(self, name: str, version: Any, open_it: Callable[[], Any]) -> Any:
        """The piece `name`. It is opened by `open_it` where none is kept, or one of another version."""
        if name not in self._kept or self._kept[name][0] != version:
            for old in (name, *_MADE_WITH.get(name, ())):  # free their memory before the new one is opened
                self._kept.pop(old, None)
            self._kept[name] = (version, open_it())
        return self._kept[name][1]


def _unrelated(index: VideoIndex, plain: QueryVectors) -> NDArray[np.float64]:
    from vsr1_core.search.unrelated import UNRELATED, best_scores

    return best_scores(index, plain.get(UNRELATED).float().cpu().numpy())
