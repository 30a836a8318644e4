from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nnunet_topomae.architectures.build import Tasks, build_copretraining_network
from nnunet_topomae.masking import crop_mask, empty_token_mask
from nnunet_topomae.training.schedules import build_adamw


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_shapes_with_a_single_sample(shape, architecture, crop, mask, channels) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(shape, channels, architecture)
    output = network(crop(shape, 1, channels), mask(shape, 1))
    for branch in output:
        assert branch.reconstruction.shape == (1, channels, *shape.patch_size)
        assert branch.key_points.shape == (1, 9, 3)
    assert output.vit is output[0]
    assert output.partner is output[1]


def test_every_task_has_its_own_head_and_outputs(shape, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    tasks = Tasks(key_points=False, vectors=True, boundaries=True)
    network = build_copretraining_network(shape, 2, architecture, tasks=tasks)
    data = crop(shape, 2, 2)
    nothing_hidden = crop_mask(empty_token_mask(2, shape.token_grid), shape.token_size)
    for branch in network(data, nothing_hidden):
        assert branch.key_points is None and branch.reconstruction.shape == branch.boundaries.shape == data.shape
        assert branch.boundaries.min() > 0 and branch.boundaries.max() < 1
        assert (
            branch.vectors.shape == (2, 9, 3) and branch.vectors[..., :2].min() > 0 and branch.vectors.abs().max() < 1
        )
        assert branch.vectors[..., 2].min() < 0
    parts = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert {"vectors", "vit_vectors"} <= parts and not {"key_points", "vit_key_points"} & parts
    assert set(network.partner_prefixes) == {"encoder.", "decoder.", "vectors."}
    alone = build_copretraining_network(shape, 2, architecture, ["partner"], tasks=tasks)
    assert not any(parameter.requires_grad for parameter in alone.vit_vectors.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_hidden_voxels_change_nothing(shape, architecture, crop, mask, training) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(shape, 2, architecture).train(training)
    data, hidden = crop(shape, 2, 2), mask(shape, 2)
    voxels = hidden.hidden
    changed = torch.where(voxels, torch.full_like(data, 1e4), data)
    changed[voxels.expand_as(data) & (data > 0)] = float("nan")
    with torch.no_grad():
        for before, after in zip(network(data, hidden), network(changed, hidden), strict=True):
            assert torch.equal(before.reconstruction, after.reconstruction)
            assert torch.equal(before.key_points, after.key_points)


@pytest.mark.slow
def test_visible_voxels_change_all_outputs(shape, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(shape, 1, architecture)
    data, hidden = crop(shape, 1, 1), mask(shape, 1)
    changed = torch.where(hidden.hidden, data, data + 1)
    with torch.no_grad():
        for before, after in zip(network(data, hidden), network(changed, hidden), strict=True):
            assert not torch.allclose(before.reconstruction, after.reconstruction)
            assert not torch.allclose(before.key_points, after.key_points)


def test_vit_is_handed_over_before_unetrpp_computes(four_stages, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(four_stages, 1, architecture)
    events: list[object] = []
    network.encoder.register_forward_hook(lambda *_: events.append("partner"))
    output = network(crop(four_stages, 1, 1), mask(four_stages, 1), on_vit=events.append)
    assert events[0] is output.vit
    assert events[1:] == ["partner"]


def test_forward_is_its_two_branches(four_stages, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(four_stages, 1, architecture).eval()
    data, hidden = crop(four_stages, 2, 1), mask(four_stages, 2)
    with torch.no_grad():
        output = network(data, hidden)
        branches = network.forward_vit(data, hidden), network.forward_partner(data, hidden)
    for branch, alone in zip(output, branches, strict=True):
        assert torch.equal(branch.reconstruction, alone.reconstruction)
        assert torch.equal(branch.key_points, alone.key_points)


def test_key_point_head_sees_zeros_in_hidden_places(four_stages, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(four_stages, 1, architecture).eval()
    seen: list[torch.Tensor] = []
    network.vit_key_points.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    data, hidden = crop(four_stages, 2, 1), mask(four_stages, 2)
    tokens = network.vit_encoder(data, hidden.visible)
    network.forward_vit(data, hidden)
    features = seen[0].movedim(1, -1)  # (B, E, d, h, w) -> (B, d, h, w, E)
    size = four_stages.token_size
    places = hidden.hidden[:, 0, :: size[0], :: size[1], :: size[2]]
    assert not features[places].any()
    assert torch.equal(features[~places], tokens.flatten(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(four_stages, architecture, crop, mask, dtype) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(four_stages, 1, architecture)
    with torch.autocast("cpu", dtype=dtype):
        output = network(crop(four_stages, 1, 1), mask(four_stages, 1))
    for tensor in [*output.vit[:2], *output.partner[:2]]:
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("branch", "prefixes"),
    [("vit", ("vit_",)), pytest.param("partner", ("encoder.", "decoder.", "key_"), marks=pytest.mark.slow)],
)
def test_a_branch_left_out_neither_computes_nor_changes(
    four_stages, architecture, crop, mask, branch, prefixes
) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    both = build_copretraining_network(four_stages, 1, architecture)
    torch.manual_seed(3)
    network = build_copretraining_network(four_stages, 1, architecture, [branch])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert before.keys() == both.state_dict().keys()
    assert all(torch.equal(value, both.state_dict()[name]) for name, value in before.items())
    called: list[object] = []
    heard: list[object] = []
    left_out = network.encoder if branch == "vit" else network.vit_encoder
    left_out.register_forward_hook(lambda *_: called.append(1))
    optimizer = build_adamw(network, 1e-2, 0.5)
    output = network(crop(four_stages, 2, 1), mask(four_stages, 2), on_vit=heard.append)
    assert [name for name, value in output._asdict().items() if value is not None] == [branch]
    assert list(output.present()) == [branch] and len(heard) == (branch == "vit")
    sum(tensor.square().mean() for tensor in output.present()[branch][:2]).backward()
    optimizer.step()
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    trained = {name for name, _ in network.named_parameters() if name.startswith(prefixes)}
    assert changed == trained and not called
    assert {name for name, value in network.named_parameters() if value.requires_grad} == trained


def test_a_network_of_no_branch_is_refused(four_stages, architecture) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="one or both of vit, partner"):
        build_copretraining_network(four_stages, 1, architecture, [])


@pytest.mark.slow
def test_every_parameter_learns(shape, architecture, crop, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(shape, 1, architecture)
    output = network(crop(shape, 2, 1), mask(shape, 2))
    sum(tensor.square().mean() for branch in output for tensor in branch[:2]).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
def test_overfits_one_batch(four_stages, architecture, mask) -> None:  # type: ignore[no-untyped-def]
    network = build_copretraining_network(four_stages, 1, replace(architecture, depth=1))
    depth = torch.linspace(0, 3, four_stages.patch_size[0])[:, None, None]
    data = (torch.sin(depth) * torch.linspace(0, 1, four_stages.patch_size[2])).expand(1, 1, *four_stages.patch_size)
    hidden = mask(four_stages, 1)
    voxels = hidden.hidden
    points = torch.linspace(-0.9, 0.9, 27).view(1, 9, 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    history = []
    for _ in range(25):
        output = network(data, hidden)
        errors = [F.mse_loss(branch.reconstruction[voxels], data[voxels]) for branch in output]
        errors += [F.mse_loss(branch.key_points, points) for branch in output]
        optimizer.zero_grad()
        torch.stack(errors).sum().backward()
        optimizer.step()
        history.append(torch.stack(errors).detach())
    assert (history[-1] < 0.4 * history[0]).all()
