"""Many processes at one sweep: shards that claim pieces, and Ray, with the rows of one process."""

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

from surge import pipeline
from surge.config import ConfigError, default
from surge.launch import HERE, Launch, mine, ours_first, read_shard
from surge.sweep import plan
from surge.workdir import claim, files, sweeps
from surge.workdir.files import ResultError

ROOT = Path(__file__).parent.parent


def config(grid="dense"):
    config = default()
    config.task = "surge.tasks.quadratic:quadratic"
    config.task_args = {"size": 6, "noise": 2.0}
    config.optimizers = {
        "sgd": {"spec": "sgd", "learning_rates": (0.02, 0.7)},
        "sign": {"spec": "sign_sgd", "learning_rates": (0.005, 0.2)},
    }
    config.measure.optimizer = "sgd"
    config.batch_sizes = (8, 64)
    config.seeds = 2
    config.max_steps = 40
    config.max_examples = 640
    config.evals = 8
    config.grid = grid
    config.fit.objective = "loss"
    return config


def assert_same_rows(one, other):
    names = sorted(path.name for path in (one / "sweep").glob("*.nc"))
    assert names and names == sorted(path.name for path in (other / "sweep").glob("*.nc"))
    for name in names:
        first, second = (sweeps.read_piece(folder / "sweep" / name) for folder in (one, other))
        xr.testing.assert_identical(first, second)


@pytest.fixture(scope="module", params=["dense", "adaptive"])
def alone(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param)
    pipeline.run(config(request.param), workdir, ["sweep", "fit"])
    return request.param, workdir


def test_shards_leave_what_is_claimed_and_one_alone_finishes(alone, tmp_path):
    grid, whole = alone
    given = config(grid)
    taken = "sgd-b64" if grid == "dense" else "search sgd"
    with claim.lock_workdir(tmp_path, shared=True), claim.claimed(tmp_path, taken) as ours:
        assert ours
        pipeline.run(given, tmp_path, ["sweep", "fit"], Launch(shard=(0, 2)))
        names = {path.stem for path in (tmp_path / "sweep").glob("*.nc")}
        left = {"sgd-b64"} if grid == "dense" else {"sgd-b64", "sgd-b8"}
        assert names == {"sgd-b8", "sgd-b64", "sign-b8", "sign-b64"} - left
        assert not (tmp_path / "fit.json").exists()  # another is at work
    pipeline.run(given, tmp_path, ["sweep", "fit"], Launch(shard=(1, 2)))
    assert_same_rows(whole, tmp_path)
    assert files.read_fits(tmp_path) == files.read_fits(whole)


def test_a_claim_is_one_processes(tmp_path):
    piece = plan(pipeline.check(config()))[0]
    with claim.lock_workdir(tmp_path, shared=True), claim.lock_workdir(tmp_path, shared=True):
        with mine(tmp_path, piece) as first, mine(tmp_path, piece) as second:
            assert (first, second) == (True, False)
        path = sweeps.sweep_path(tmp_path, piece.optimizer, piece.batch_size)
        files.write_bytes(path, b"done")
        with mine(tmp_path, piece) as ours:
            assert not ours
        with pytest.raises(ResultError, match=r"in use by process .* others that share it"):
            claim.lock_workdir(tmp_path).__enter__()
    with claim.lock_workdir(tmp_path):
        assert not (tmp_path / claim.CLAIMS).exists()
        with pytest.raises(ResultError, match="in use by"):
            claim.lock_workdir(tmp_path, shared=True).__enter__()


def test_shards_begin_apart_and_help():
    parts = list("abcdefg")
    assert ours_first(parts, (1, 3)) == ["b", "e", "a", "c", "d", "f", "g"]
    starts = [ours_first(parts, (shard, 3))[: len(parts[shard::3])] for shard in range(3)]
    assert sorted(itertools.chain(*starts)) == parts


def test_a_shard_is_read():
    assert HERE.shard is None and read_shard("") is None
    assert read_shard("0/1") == (0, 1) and read_shard("7/8") == (7, 8)
    for text in ("8/8", "-1/2", "1", "a/b", "1/0"):
        with pytest.raises(ConfigError, match=f"--shard={text} must read i/n"):
            read_shard(text)


def test_ray_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(pipeline.UserError, match=r"--launcher=ray needs Ray: pip install"):
        pipeline.run(config(), tmp_path, ["sweep"], Launch("ray"))


SWEEP = (  # twelve pieces of the quick MLP, made smaller
    "--config=configs/mnist1d.py:quick",
    "--config.task_args.widths=(32,)",
    "--config.task_args.examples=1000",
    "--config.task_args.evaluation_examples=800",
    "--config.batch_sizes=(8,16,32,64)",
    "--config.max_steps=600",
    "--config.max_examples=12000",
)
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(second)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def surge(workdir, *arguments):
    command = [sys.executable, "-m", "surge.main", *SWEEP, "--stages=sweep"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
    )


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers_of(root):
    """Processes below one that are at work on a piece, by their titles."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = above = int(path.parent.name)
        try:
            if not path.read_bytes().startswith(b"ray::_work"):
                continue
            while above not in (0, 1, root):
                above = parent(above)
        except OSError:  # it has gone
            continue
        found += [pid] if above == root else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_ray_cluster_that_loses_a_worker_and_a_node_gives_the_same_rows(tmp_path):
    local = surge(tmp_path / "local")
    pipe = subprocess.PIPE
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert cluster.stdin and cluster.stdout
    address = cluster.stdout.readline().strip()
    remote = surge(tmp_path / "ray", "--launcher=ray", f"--ray_address={address}")
    try:
        victims = []
        while not victims and remote.poll() is None:
            time.sleep(0.5)
            victims = workers_of(cluster.pid)
        time.sleep(3)  # in the middle of it
        os.kill(victims[0], signal.SIGKILL)
        while not list((tmp_path / "ray" / "sweep").glob("*.nc")) and remote.poll() is None:
            time.sleep(0.5)
        cluster.stdin.write("remove\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "removed\n"
        assert remote.wait(900) == 0
        assert local.wait(900) == 0
    finally:
        local.kill()
        remote.kill()
        cluster.communicate("\nend\n", timeout=60)
    assert_same_rows(tmp_path / "local", tmp_path / "ray")
