"""Export a dataset for FiftyOne: annotated and predicted spans as temporal detections, in its own JSON format.

The format is that of `fo.types.FiftyOneTemporalDetectionDataset`, as the importer of FiftyOne 1.22 reads it; FiftyOne
itself is not needed. `data.json` says where each video is, and there is one file of labels for each source of spans.
FiftyOne turns seconds into frame numbers when it imports them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsr1_core.home.warehouse_views import PREDICTIONS
from vsr1_core.rows.files import atomic_folder, write_json
from vsr1_core.stages.base import View

ANNOTATED = "annotated"
Labels = dict[str, list[dict[str, Any]]]


def export_fiftyone(view: View, folder: Path) -> dict[str, int]:
    """Write the dataset to the new folder `folder`. Videos are not copied.

    Returns:
        Name of each field -> its number of spans: `annotated`, and one for each method that has predictions.

    Raises:
        FileExistsError: `folder` exists.
        FileNotFoundError: The dataset has no videos or no moments yet; the message has the command that builds them.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; give the name of a new folder")
    for asset in ("videos", "moments"):
        view.table(asset).manifest()  # raises where the table is not built
    paths = {video_id: path for video_id, path in view.rows("videos", ["video_id", "path"]).iter_rows() if path}
    labels = {ANNOTATED: _annotated(view)} | dict(_predicted(view))
    with atomic_folder(folder) as target:
        write_json(target / "data.json", {f"{i}{Path(path).suffix}": path for i, path in paths.items()})
        for name, of_video in labels.items():
            write_json(target / f"{name}.json", {"labels": {i: found for i, found in of_video.items() if i in paths}})
        (target / "README.md").write_text(_readme(view.entry.name, list(labels)), encoding="utf-8")
    return {name: sum(map(len, of_video.values())) for name, of_video in labels.items()}


def field_of(method: str) -> str:
    """The name of the field of a method: FiftyOne's names of fields are identifiers."""
    return method.replace("+", "_")


def _annotated(view: View) -> Labels:
    found: Labels = {}
    for row in view.rows("moments").iter_rows(named=True):
        span = [row["start_s"], row["end_s"]]
        facts = {"query_id": row["query_id"], "split": row["split"]}
        found.setdefault(row["video_id"], []).append({"label": row["query"], "timestamps": span, "attributes": facts})
    return found


def _predicted(view: View) -> Iterator[tuple[str, Labels]]:
    for asset in view.stages:
        if asset.startswith(PREDICTIONS) and (rows := view.rows(asset)).height:
            found: Labels = {}
            for row in rows.iter_rows(named=True):
                if row["start_s"] is not None:
                    found.setdefault(row["video_id"], []).append(_prediction(row))
            yield field_of(asset.removeprefix(PREDICTIONS)), found


def _prediction(row: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: row[name] for name in ("query_id", "split", "gt_video_id", "iou", "rank", "first_rank")}
    return {
        "label": row["query"],
        "timestamps": [row["start_s"], row["end_s"]],
        "confidence": row["matched_probability"],
        "attributes": {**facts, "is_right_video": row["video_id"] == row["gt_video_id"]},
    }


def _readme(name: str, fields: list[str]) -> str:
    return f"""# {name} for FiftyOne

Temporal detections of {", ".join(fields)}. With FiftyOne 1.22, in this folder:

```python
import fiftyone as fo

dataset = fo.Dataset({name!r})
for field in {fields!r}:
    dataset.merge_dir(
        dataset_dir=".",
        dataset_type=fo.types.FiftyOneTemporalDetectionDataset,
        data_path="data.json",
        labels_path=f"{{field}}.json",
        label_field=field,
    )
fo.launch_app(dataset)
```
"""
