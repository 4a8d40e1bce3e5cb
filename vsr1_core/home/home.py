"""A home folder as an object: its datasets, their tables, builds, and searches that keep their models open."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vsr1_core.configuration_files import load_configuration
from vsr1_core.datasets.benchmarks import BENCHMARKS
from vsr1_core.datasets.registry import DatasetEntry, get_entry, load_entries, save_entry
from vsr1_core.home import adding, building
from vsr1_core.home.execution import choose_device, choose_processes
from vsr1_core.home.opened_datasets import OpenedDatasets
from vsr1_core.home.search import SearchRequest, search_by_picture, search_once
from vsr1_core.home.search_result import Found
from vsr1_core.home.status import plan_frame, status_frame
from vsr1_core.stages.base import View
from vsr1_core.stages.execution import Execution
from vsr1_core.stages.graph import open_view, plan_graph, stages_of

if TYPE_CHECKING:
    import polars as pl

    from vsr1_core.home.building import BuiltAsset
    from vsr1_core.home.explain import ExplainedRow
    from vsr1_core.stages.opened import OpenedModels


class Home:
    """A folder that holds datasets, their tables (the lake), and `vsr1.duckdb`; the same that `vsr1` works in.

    Nothing is written until something is built or added, and no model is loaded before the first search. A search keeps
    its models open for the next one; after a build it opens those again whose rows changed.

    Args:
        path: The folder; it may be missing. The command line calls it VSR1_HOME.
        device: A torch device such as `cpu` or `cuda:0`; `auto` is the first GPU where there is one, else the CPU.
        workers: How many processes decode videos; 0 is one per core.
        processes: How many processes train one model together; 0 is one on a GPU, and on a CPU one per core up to 4.
        log: Called with each line about the progress of a build; by default nothing is logged.

    Example:
        >>> import vsr1_core as vsr1
        >>> home = vsr1.Home("vsr1_home", log=print)
        >>> home.build("toy")                                   # doctest: +SKIP
        >>> home.search("a red circle moves left")[0].video     # doctest: +SKIP
        'toy_test_00042'
    """

    def __init__(
        self,
        path: str | Path = "vsr1_home",
        device: str = "auto",
        workers: int = 0,
        processes: int = 1,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.device = device
        self.workers = workers
        self.processes = processes
        self.log = log or (lambda line: None)
        self._opened = OpenedDatasets(self.path, self.execution)

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    def datasets(self) -> dict[str, DatasetEntry]:
        """All datasets of this home by name: the built-in ones and those that were added.

        Returns:
            Name -> entry, with the folders of videos and annotations and the name of the configuration.
        """
        return load_entries(self.path)

    def add_dataset(
        self,
        name: str,
        videos: str | Path | None = None,
        annotations: str | Path | None = None,
        *,
        config: str | None = None,
        models_from: str | None = None,
        toy: bool = False,
        search_only: bool = False,
        window_s: float | None = None,
    ) -> DatasetEntry:
        """Register a dataset, or replace its registration. No video is read and nothing is built yet.

        Args:
            name: Name of the dataset: letters, digits, `-`, `_` and `.`.
            videos: The folder of video files, searched in all subfolders. Required unless `toy` or a public dataset.
            annotations: A CSV with the columns video, start, end, query (start and end in seconds), or a JSONL file in
                the FIG schema; for a public dataset the folder of its files. Without it, videos can only be searched.
            config: Name of the configuration: frames, models, recipes. By default that of `models_from`.
            models_from: The dataset whose models are used; frames are sampled as these models saw them. `""` makes the
                dataset train its own models. By default `toy`, unless `config` names published models.
            toy: Render a corpus of moving shapes instead; `config` says how large.
            search_only: Embed and rank the videos, and nothing else: no policy is fetched, trained or asked.
            window_s: Videos longer than this many seconds are searched in overlapping windows of this length; 0
                searches whole videos. By default 120 for a folder that is not registered yet.

        Returns:
            The entry as it was saved.

        Raises:
            ValueError: The folder has no videos, the annotation file is missing, or the configuration cannot be used or
                names other models than `models_from` has.
            LookupError: `models_from` names no dataset of this home, or `config` names no configuration.

        Example:
            >>> vsr1.Home("vsr1_home").add_dataset("mine", "~/clips", "~/clips.csv")   # doctest: +SKIP
        """
        if models_from:
            get_entry(self.path, models_from)
        folder, annotated = (None if path is None else Path(path).expanduser() for path in (videos, annotations))
        if folder is None and not toy and name not in BENCHMARKS:
            raise ValueError(f"give the folder of videos: add_dataset({name!r}, videos=...)")
        wanted = adding.Wanted(
            name, folder, annotated, models_from, config, toy=toy, search_only=search_only, window_s=window_s
        )
        chosen = adding.base_of(self.path, wanted)
        load_configuration(self.path, chosen)
        entry = adding.entry_of(self.path, wanted, chosen)
        for line in adding.borrowed(self.path, entry):
            self.log(line)
        save_entry(self.path, entry)
        return entry

    def plan(self, dataset: str = "toy") -> pl.DataFrame:
        """What a build would do, asset by asset, and why. Writes nothing.

        Args:
            dataset: A name in `datasets()`.

        Returns:
            One row per asset: asset, new, stale, orphaned, failed, unchanged (numbers of rows), waits_for (the asset
            that has to run before the numbers are known), why (each cause with its number of rows).

        Raises:
            LookupError: There is no such dataset.
        """
        return plan_frame(plan_graph(self.view(dataset)))

    def build(
        self,
        dataset: str = "toy",
        assets: Sequence[str] | None = None,
        *,
        retry_failed: bool = False,
        allow_removals: bool = False,
        wait: bool = False,
    ) -> list[BuiltAsset]:
        """Make the rows that are new or stale, asset after asset, without Dagster.

        Rows, versions and checks are the same as with `vsr1 build`; only Dagster has a run history and pools. A build
        that was stopped continues where it stopped.

        Args:
            dataset: A name in `datasets()`.
            assets: Names of assets or groups, such as `["video_index"]`; the assets that these read are built as well.
                By default all assets.
            retry_failed: Try again to make rows that failed in an earlier build.
            allow_removals: Drop the rows of all files that are gone. By default a build stops where more than a tenth
                of the known videos, or all of them, are gone at once: their folder may not be mounted.
            wait: Wait for another build of the dataset that is going on. By default an error says which one.

        Returns:
            What each asset did, in the order of the build.

        Raises:
            ValueError: An asset is unknown or cannot be built, too many files are gone, or a blocking check failed; the
                message says what to do.
            OSError: Something else writes the dataset; the message says which process.
            LookupError: There is no such dataset.

        Example:
            >>> vsr1.Home("vsr1_home").build("toy", ["first_ranking"])   # doctest: +SKIP
        """
        from vsr1_core.home import warehouse

        view, execution = self.view(dataset), self.execution(retry_failed)
        if allow_removals:
            execution = dataclasses.replace(execution, max_removed=None)
        names = list(stages_of(view)) if assets is None else building.with_upstream(view, assets)
        built = list(building.build(view, execution, names, wait))
        warehouse.refresh(self.path, view.stages)
        return built

    def status(self, dataset: str = "toy") -> pl.DataFrame:
        """What is built of a dataset, and when it was built.

        Returns:
            One row per asset: asset, rows, failed, data_version, changed_at (UTC). The last four are null where the
            asset is not built.

        Raises:
            LookupError: There is no such dataset.
        """
        return status_frame(self.view(dataset))

    def search(
        self,
        text: str,
        dataset: str = "toy",
        split: str = "test",
        top_k: int = 5,
        *,
        method: str | None = None,
        verify: bool = True,
        turns: int | None = None,
    ) -> Found:
        """Find videos for a text, and the moment in each video that the policy was shown.

        The first search loads the models; later ones use them as long as their rows do not change.

        Args:
            text: Description of what happens in the moment.
            dataset: A name in `datasets()`; it has to be built.
            split: Which videos to search. Videos of a plain folder are in `test`.
            top_k: How many videos to return.
            method: Name of the method that searches; by default the last one of the report whose checkpoint is built.
            verify: Whether a policy is shown the videos; False ranks them by the embedder alone.
            turns: Most videos that the policy is shown; by default what the dataset's configuration says.

        Returns:
            The result: a sequence of at most `top_k` hits, best first, with the verdict and every turn.

        Raises:
            ValueError: The text is blank, or a number is out of its range.
            LookupError: There is no such dataset, split or method, or it is not built; the message has the command that
                builds it.

        Example:
            >>> for hit in vsr1.Home("vsr1_home").search("a red circle moves left"):   # doctest: +SKIP
            ...     print(hit.video, hit.start_s, hit.end_s)
        """
        request = SearchRequest(text, split, top_k, method, verify, turns)
        return search_once(self.opened(dataset), request)

    def search_by_picture(
        self, picture: str | Path, dataset: str = "toy", split: str = "test", top_k: int = 5
    ) -> Found:
        """Rank videos by their likeness to a picture, by the embedder alone.

        Args:
            picture: A picture file.
            dataset: A name in `datasets()`; its embedder and index have to be built.
            split: Which videos to search.
            top_k: How many videos to return.

        Returns:
            The result: a sequence of at most `top_k` hits, best first. Nothing is verified.

        Raises:
            ValueError: The file is no picture, or the dataset's embedder takes no pictures.
            FileNotFoundError: There is no such file.
            LookupError: There is no such dataset or split, or it is not built.
        """
        return search_by_picture(self.opened(dataset), Path(picture).expanduser(), split, top_k)

    def sql(self, query: str, is_restricted: bool = True) -> pl.DataFrame:
        """The result of one SQL statement (DuckDB) on the views of this home.

        Args:
            query: For example `from metrics`, or `describe predictions`. A view holds the rows of all datasets.
            is_restricted: Whether the statement may only read, and only the files of this home. Without it, it may also
                write files (COPY) and read files anywhere.

        Returns:
            The result as a polars frame.

        Raises:
            ValueError: The SQL is bad or not allowed; the message has the reason in one line, and the names of the
                views.

        Example:
            >>> vsr1.Home("vsr1_home").sql("select method, value from metrics where metric = 'mrr'")   # doctest: +SKIP
        """
        from vsr1_core.home import warehouse

        return warehouse.query(self.path, query, is_restricted)

    def table(self, name: str, dataset: str = "toy") -> pl.DataFrame:
        """The rows of one view and one dataset, such as `predictions`, `moments` or `metrics`.

        Args:
            name: A view; `home.sql("show tables")` lists them.
            dataset: A name in `datasets()`.

        Returns:
            The rows as a polars frame, failed rows included; empty where nothing is built.

        Raises:
            ValueError: There is no such view.
            LookupError: There is no such dataset.
        """
        from vsr1_core.home import warehouse
        from vsr1_core.home.row_sql import quoted_name, quoted_text

        get_entry(self.path, dataset)
        return warehouse.query(self.path, f"from {quoted_name(name)} where dataset = {quoted_text(dataset)}")

    def explain(self, asset: str, row: str, dataset: str = "toy", max_rows: int = 2) -> ExplainedRow:
        """Follow one row back to its sources: its version, why it has to be made, and what it was made from.

        Args:
            asset: The asset, for example `metrics`.
            row: The row's id, for example `sqr_sft/mrr`.
            dataset: A name in `datasets()`.
            max_rows: Most upstream rows to follow per input.

        Returns:
            The row with its inputs, each with the upstream rows it stands for; `to_json()` returns it as JSON text.

        Raises:
            LookupError: There is no such dataset, asset or row.
        """
        from vsr1_core.home.explain import explain

        return explain(self.view(dataset), asset, row, max_rows)

    def close(self) -> None:
        """Release all models and their memory. The next search loads them again."""
        self._opened.clear()

    def view(self, dataset: str) -> View:
        """The tables of one dataset, for what this class does not offer. LookupError: there is no such dataset."""
        return open_view(self.path, dataset)

    def opened(self, dataset: str) -> OpenedModels:
        """The opened models of one dataset, kept between calls as long as its entry and configuration stay the same."""
        return self._opened.get(dataset)

    def execution(self, retry_failed: bool = False) -> Execution:
        """How the work of this home runs."""
        device = choose_device(self.device)
        processes, fewest = choose_processes(self.processes, device)
        return Execution(
            device=device,
            workers=self.workers or max(1, os.cpu_count() or 1),
            processes=processes,
            min_shared_steps=fewest,
            retry_failed=retry_failed,
            is_caged=True,
            log=self.log,
        )
