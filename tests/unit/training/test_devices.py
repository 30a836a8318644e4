"""Several processes that train one network: two gloo processes on this machine's processor."""

import multiprocessing
from pathlib import Path
from typing import Any

import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as nnunet_module
import pytest
import torch
from torch import distributed, nn

from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.config import TopologyConfig
from nnunet_topomae.losses.copretraining import build_topological_loss
from nnunet_topomae.topology import workers
from nnunet_topomae.training import devices
from nnunet_topomae.training.devices import decided_by_first, first_sample, parallel_on_own_device

DATA = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(1))


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.GELU(), nn.Conv3d(4, 2, 3))


def _train(rank: int, meeting: str, results: Any) -> None:
    """As a trainer's `initialize` and its first step do it."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    network = _network(seed=rank)
    with parallel_on_own_device():
        parallel = nnunet_module.DDP(network, device_ids=[rank])
    use_channels_last(network)
    parallel(DATA[rank : rank + 1]).square().mean().backward()
    # Lists, because tensors would be shared through files of a process that ends.
    results.put(
        (rank, first_sample(2), decided_by_first(7 + rank), [p.grad.flatten().tolist() for p in network.parameters()])
    )
    distributed.barrier()
    distributed.destroy_process_group()


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_train, args=(rank, str(tmp_path / "meeting"), results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    alone = _network(seed=0)  # the first process's weights
    alone(DATA).square().mean().backward()
    for rank, place, agreed, gradients in found:
        assert (place, agreed) == (rank, 7)
        for gradient, parameter in zip(gradients, alone.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(gradient), parameter.grad.flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "processes"), [(2, 2), (5, 3), (7, 3), (8, 3), (9, 4)])
def test_places_are_those_of_nnunets_shares(batch_size: int, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class _Trainer:
        is_ddp, oversample_foreground_percent = True, 0.33

        class configuration_manager:
            pass

    monkeypatch.setattr(devices, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: processes)
    _Trainer.configuration_manager.batch_size = batch_size  # type: ignore[attr-defined]
    end = 0
    for rank in range(processes):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        trainer: Any = _Trainer()
        nnunet_module.nnUNetTrainer._set_batch_size_and_oversample(trainer)
        assert first_sample(batch_size) == end
        end += trainer.batch_size
    assert end == batch_size


@pytest.mark.parametrize(
    ("local", "world", "threads"), [(None, 1, 6), (None, 2, 3), ("2", 4, 3), ("4", 4, 1), ("16", 32, 1)]
)
def test_processes_share_the_cores_for_persistent_homology(
    local: str | None, world: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 6)
    monkeypatch.setattr(devices, "is_distributed", lambda: world > 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    loss = build_topological_loss(TopologyConfig(), devices.processes_of_this_machine())
    assert loss is not None and loss.pool.threads == threads


@pytest.mark.parametrize(
    ("asked", "processes", "threads", "said"),
    [
        (5, 1, 5, None),
        (9, 1, 9, None),  # alone, a process has what it asks for
        (3, 2, 3, None),
        (5, 2, 3, "topology.threads = 5, but 2 processes share 6 cores: 3 for each"),
        (5, 4, 1, "topology.threads = 5, but 4 processes share 6 cores: 1 for each"),
        (2, 16, 1, "topology.threads = 2, but 16 processes share 6 cores: 1 for each"),
    ],
)
def test_several_processes_get_no_more_threads_than_their_share_of_the_cores(
    asked: int, processes: int, threads: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 6)
    lines: list[str] = []
    loss = build_topological_loss(TopologyConfig(threads=asked), processes, lines.append)
    assert loss is not None and loss.pool.threads == threads
    assert lines == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("variable", "device", "expected"),
    [("2", "cpu", 2), ("2,1", "cpu", 2), ("2", "cuda", 3), ("8", "cpu", 3), ("", "cpu", 3), ("x", "cpu", 3)],
)
def test_a_training_on_a_cpu_takes_no_more_threads_than_it_may(
    variable: str, device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in nnU-Net's command, which takes all cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        devices.keep_to_thread_limit(torch.device(device))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
