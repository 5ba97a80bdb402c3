"""Claims about several processes in a loop of one's own: torch's DDP and FSDP2 on two gloo processes.

Random bits belong to data: the same element of a weight has the same bits everywhere, other data has other bits. What
casts recorded is one after `commit`, whoever saw it.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nn.process_job import NEAREST, batch, network, train

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("process_job.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, str(JOB), str(folder)]
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate()[1] for process in started]
    assert not any(process.returncode for process in started), "".join(said)[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_processes_draw_other_bits_for_other_data_and_the_same_for_a_weight(found: list[dict[str, Any]]) -> None:
    first, second = (one["ddp"]["bits"] for one in found)
    assert torch.equal(first["weight"], second["weight"])
    assert not torch.equal(first["input"], second["input"])
    assert not torch.equal(first["grad_output"], second["grad_output"])


def test_what_each_process_recorded_is_one_after_commit(found: list[dict[str, Any]]) -> None:
    first, second = (one["ddp"] for one in found)
    assert first["scales"].keys() == second["scales"].keys() and len(first["scales"]) == 6
    assert all(torch.equal(first["scales"][site], second["scales"][site]) for site in first["scales"])
    assert all(bool(history.any()) for history in first["scales"].values())
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))


@pytest.mark.parametrize("by", ["norm", "amax"])
def test_columns_kept_apart_are_those_of_all_processes_rows(found: list[dict[str, Any]], by: str) -> None:
    first, second = (one["ddp"]["chosen"][by] for one in found)
    assert [int(chosen.sum()) for chosen in first] == [2, 2]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    rows = torch.cat([batch(step, 0, 1) for step in range(2)])  # what both saw of the first layer's input
    seen = rows.square().sum(0) if by == "norm" else rows.abs().amax(0)
    assert by == "norm" or set(first[0].nonzero().view(-1).tolist()) == set(seen.topk(2).indices.tolist())


@pytest.mark.parametrize("case", ["fsdp", "checkpointed"])
def test_sharded_parameters_train_as_whole_ones(found: list[dict[str, Any]], case: str) -> None:
    """FSDP2, with and without activation checkpointing: within float sums of one process on the whole batch.

    Casts to nearest of a delayed scale see the same whole weights; the first step's scale is that of the rows present,
    so inputs of the two halves may round on grids a power of two apart.
    """
    net, begun = network(NEAREST), network(NEAREST)
    outputs = train(net, net, 0, 1)
    assert all("Quantized" in name for name in found[0][case]["classes"])
    for one in found:
        for ours, whole, before in zip(one[case]["weights"], net.parameters(), begun.parameters(), strict=True):
            assert (ours - whole).norm() < 0.1 * (whole - before).norm(), "of what training changed"
    both = [torch.cat([one[case]["outputs"][step] for one in found]) for step in range(3)]
    assert all(torch.allclose(a, b, atol=0.1) for a, b in zip(both, outputs, strict=True))
    same = found[0]["fsdp"]["weights"], found[0]["checkpointed"]["weights"]
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))


def test_monitors_see_whole_weights_of_a_sharded_model(found: list[dict[str, Any]]) -> None:
    first, second = (one["watched"] for one in found)
    assert {key.partition("/")[0] for key in first} == {"range", "shadow", "gradient", "updates", "stall"}
    shared = [key for key in first if not key.startswith("range/")]
    assert len(shared) > 20 and all(first[key] == second[key] or first[key] != first[key] for key in shared)
    assert 0.9 < first["shadow/0.weight/cosine"] < 1
