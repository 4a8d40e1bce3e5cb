"""The code location itself: what importing it costs, and that what is declared fits the graph."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "trl", "faiss", "av", "decord", "datasets", "peft", "matplotlib", "duckdb")


@pytest.mark.slow
def test_importing_the_definitions_loads_no_heavy_package(tmp_path: Path) -> None:
    """Every step, sensor tick and reload pays for this import; with torch it takes several seconds more."""
    code = "import sys, json\nimport pipelines.definitions\nprint(json.dumps(sorted(sys.modules)))"
    environ = {"VSR1_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert not set(HEAVY) & set(json.loads(out.stdout.splitlines()[-1]))
    assert not list(tmp_path.iterdir()), "importing wrote files"
    assert out.stderr == "", "every command would show this"


def test_only_resources_and_the_command_line_read_the_environment() -> None:
    hand_it_on = {f"vsr1_core/{name}.py" for name in ("__main__", "rows/workers", "stages/launch", "stages/launched")}
    hand_it_on |= {"vsr1_core/rows/ray_actors.py", "vsr1_core/rows/ray_cluster.py", "pipelines/serve_command.py"}
    hand_it_on |= {"vsr1_core/models/qwen3_vl/vllm_writer.py"}  # tells vLLM to stay in this process
    allowed = {"pipelines/settings.py", "pipelines/cli.py", "pipelines/doctor.py", *hand_it_on}
    readers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("assets", "pipelines", "vsr1_core")
        for path in (ROOT / folder).rglob("*.py")
        if _reads_environment(path)
    }
    assert readers <= allowed


def _reads_environment(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in ast.walk(tree))


def test_what_only_dagster_needs_of_a_stage_stands_in_the_module_of_its_group() -> None:
    from pipelines.definitions import GROUPS
    from vsr1_core.stages.graph import all_stages

    listed = {info.stage: group.__name__.removeprefix("assets.") for group in GROUPS for info in group.ASSETS}
    group_of = {stage.name.split(".")[0]: stage.group for stage in all_stages().values()}
    assert listed == {name: group_of[name] for name in listed}


def test_every_stage_says_what_it_is_and_what_each_column_means() -> None:
    from vsr1_core.stages.graph import all_stages

    for stage in all_stages().values():
        assert stage.says.endswith("."), stage.name
        assert all(stage.meaning(name) for name in (stage.key, *stage.columns)), stage.name


def test_assets_that_run_models_or_decode_queue_in_pools_and_all_have_owners() -> None:
    from pipelines.definitions import defs

    nodes = {".".join(node.key.path): node for node in defs.resolve_asset_graph().asset_nodes}
    pools: dict[str, set[str]] = {}
    for name, node in nodes.items():
        assert node.owners or not node.is_executable or not node.is_materializable, name
        for pool in node.pools or ():
            pools.setdefault(pool, set()).add(name.split(".")[0])
    assert pools["decode"] == {"raw_videos", "videos", "frame_tensors"}
    trained = {name for name, node in nodes.items() if node.group_name == "checkpoints"}
    running = {"query_embeddings", "video_embeddings", "predictions", "verification_probe"}
    assert pools["gpu"] == trained | running


def test_every_column_is_described() -> None:
    from pipelines.definitions import defs

    for node in defs.resolve_asset_graph().asset_nodes:
        schema = node.metadata.get("dagster/column_schema")
        columns = schema.columns if schema else ()
        assert all(column.description for column in columns), node.key


@pytest.mark.parametrize("name", ["whole_graph", "corpus", "search", "training", "evaluation"])
def test_jobs_are_partitioned_by_dataset(name: str) -> None:
    from pipelines.definitions import defs

    partitions = defs.resolve_job_def(name).partitions_def
    assert partitions is not None
    assert "toy" in partitions.get_partition_keys()


def test_definitions_are_valid() -> None:
    import dagster as dg

    from assets._keys import asset_key
    from pipelines.definitions import defs
    from vsr1_core.stages.graph import all_stages

    dg.Definitions.validate_loadable(defs)  # raises where they are not
    made = defs.resolve_asset_graph().materializable_asset_keys
    assert made == {*map(asset_key, all_stages()), dg.AssetKey("warehouse")}
