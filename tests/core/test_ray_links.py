"""Model workers on a cluster of three machines, which are network namespaces, while a link between them is cut."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.network import HEAD, NODES, Network, three_machines

pytestmark = [pytest.mark.slow, pytest.mark.sweep]

pytest.importorskip("ray", reason="needs the extra `ray`")
NUM_ROWS = 60
PATIENCE_S = 15.0
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
NOTICES_NOTHING = {"RAY_health_check_failure_threshold": "10000"}
"""So that Ray itself does not notice that a node is gone, and this project's deadline has to."""

DRIVER = f"""
import json, sys
from pathlib import Path
from tests.waiting import until
from tests.workers import slow_shard_maker
from vsr1_core.rows import ray_shares
from vsr1_core.rows.ray_actors import ModelWorkers, map_shards_on_ray
from vsr1_core.rows.ray_cluster import connected
ray_shares.SLACK_S = {PATIENCE_S}
address, folder = sys.argv[1], Path(sys.argv[2])
say = lambda **what: print(json.dumps(what), flush=True)
with connected(address) as ray:
    until(lambda: ray.cluster_resources().get("CPU", 0) == 2, 300)
    workers = ModelWorkers(2, on_gpu=False, shard_size=10)
    rows = range({NUM_ROWS})
    for result in map_shards_on_ray(slow_shard_maker, rows, address, [folder], workers, log=lambda line: say(log=line)):
        say(row=result.item, node=result.value, error=result.error)
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Network]:
    with three_machines() as network:
        options = ["--block", "--object-store-memory", str(80 << 20), "--disable-usage-stats"]
        head = [*RAY, "start", "--head", "--port", "6379", "--num-cpus", "0", "--include-dashboard=false"]
        network.start(HEAD, *head, "--node-ip-address", HEAD, *options, **NOTICES_NOTHING)
        before = f"{HEAD}/6379"
        for node in NODES:
            start = [*RAY, "start", "--address", f"{HEAD}:6379", "--num-cpus", "1", "--node-ip-address", node]
            port = ["--node-manager-port", "7000", *options]
            network.start(node, *_after(before), *start, *port, **NOTICES_NOTHING)
            before = f"{node}/7000"  # two nodes that start at once choose the same name for their socket
        yield network


def _after(port: str) -> list[str]:
    """The beginning of a command that waits until somebody listens to HOST/PORT."""
    wait = f"until (exec 3<>/dev/tcp/{port}); do sleep 0.3; done 2>/dev/null"
    return ["bash", "-c", f'{wait}; exec "$@"', "bash"]


@pytest.mark.parametrize("seconds", [5.0, math.inf], ids=["mended", "cut-for-ever"])
def test_a_cut_link_costs_no_row(machines: Network, tmp_path: Path, seconds: float) -> None:
    program = [sys.executable, "-c", DRIVER, f"{HEAD}:6379", str(tmp_path)]
    driver = machines.start(HEAD, *_after(f"{HEAD}/6379"), *program)
    said = [json.loads(line) for line in _lines_cutting(machines, driver, seconds)]
    rows = [line for line in said if "row" in line]
    assert sorted(line["row"] for line in rows) == list(range(NUM_ROWS))
    assert [line for line in rows if line["error"]] == []
    log = [line["log"] for line in said if "log" in line]
    if seconds < PATIENCE_S:
        assert log == []
    else:
        assert f"a node said nothing for {PATIENCE_S:g} s" in log[0]
        assert Counter(line["node"] for line in rows)[NODES[0]] > NUM_ROWS / 2


def _lines_cutting(network: Network, driver: Any, seconds: float) -> Iterator[str]:
    """The lines that the driver writes. Once both nodes have made rows, the link of the second is cut for so long."""
    nodes, is_cut, other = set[str](), False, list[str]()
    for line in driver.stdout:
        if line.startswith("{"):
            yield line
            nodes.add(json.loads(line).get("node") or "")
        else:
            other.append(line)
        if set(NODES) <= nodes and not is_cut:
            is_cut = True
            network.set_link(2, "down")
            if seconds < math.inf:
                threading.Timer(seconds, network.set_link, (2, "up")).start()
    assert is_cut, "".join(other)
    assert driver.wait() == 0, "".join(other)
