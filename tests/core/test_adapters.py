"""Low-rank adapters: what they share with the frozen network, what is theirs, refusals."""

import pytest
import torch
from diffusers import UNet2DModel

from outsourced.conditional import widened


def network(dtype: torch.dtype = torch.float32) -> UNet2DModel:
    """A small U-Net with attention; its last layer is none of zeros."""
    torch.manual_seed(0)
    channels = {"in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16)}
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    net = UNet2DModel(8, **channels, **blocks, layers_per_block=1, norm_num_groups=4)
    return net.to(dtype).requires_grad_(False).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    normal = torch.Generator().manual_seed(1)
    return torch.randn(3, 5, 8, 8, generator=normal), torch.tensor([1, 400, 900])


def test_an_adapted_copy_is_the_network_at_first_and_shares_its_weights():
    """Only adapters, first and last layer are its own; the original knows nothing of them.

    Mutants: a deep copy of the frozen weights, adapters put into the original, B not 0, layers
    that no adapter reaches, frozen weights in state_dict.
    """
    net = network()
    names = [name for name, _ in net.named_modules()]
    found = widened(net, 3, 2, adapters=2)
    x, time = inputs()
    output = found(x, time, return_dict=False)[0]
    torch.testing.assert_close(output[:, :2], net(x[:, :2], time, return_dict=False)[0])
    assert not output[:, 2:].any()
    assert [name for name, _ in net.named_modules()] == names
    shared = {p.data_ptr() for p in net.parameters()}
    inside = [p for p in found.network.parameters() if not p.requires_grad]
    outer = {"conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias"}
    assert {p.data_ptr() for p in inside} == {
        p.data_ptr() for name, p in net.named_parameters() if name not in outer
    }
    assert not shared & {p.data_ptr() for p in found.parameters()}
    layers = [
        name
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    assert len(list(found.parameters())) == 2 * (len(layers) - 2) + 4
    assert len(found.state_dict()) == len(list(found.parameters()))
    assert all(p.requires_grad for p in found.parameters())


def test_training_changes_the_copy_alone_and_weights_come_back():
    """Mutants: a frozen weight that is trained, a parameter without gradient, weights that another
    instance does not find."""
    net, other = network(), network()
    found, again = widened(net, 3, 2, adapters=2), widened(other, 3, 2, adapters=2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, time = inputs()
    optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
    first = found(x, time, return_dict=False)[0].detach()
    for _ in range(2):  # A has no gradient as long as B is 0
        optimizer.zero_grad()
        found(x, time, return_dict=False)[0].square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in found.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    output = found(x, time, return_dict=False)[0]
    assert not torch.allclose(output, first, atol=1e-3)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(x, time, return_dict=False)[0], output)


def test_half_precision_of_the_frozen_weights_is_that_of_the_calls():
    """bfloat16 within, float32 outside, and for the trained weights.

    Mutants: a call in another type than the prior's, trained weights in bfloat16, whose steps
    rounding would swallow.
    """
    found, full = widened(network(torch.bfloat16), 3, 2, 2), widened(network(), 3, 2, 2)
    x, time = inputs()
    output = found(x, time, return_dict=False)[0]
    assert output.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in found.parameters())
    exact = full(x, time, return_dict=False)[0]
    error = (output - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-4 < error < 0.05
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in found.parameters())


@pytest.mark.parametrize("adapters", [None, 2])
def test_checkpoints_change_memory_alone(adapters):
    """The same gradients, for a second call of the blocks. Mutant: an option without effect."""
    found = {}
    for checkpointing in (False, True):
        torch.manual_seed(3)
        net = widened(network(), 3, 2, adapters, checkpointing)
        calls, inner = [], net if adapters is None else net.network
        block = inner.down_blocks[0].resnets[0]
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        x, time = inputs()
        net(x, time, return_dict=False)[0].square().mean().backward()
        found[checkpointing] = len(calls), [p.grad for p in net.parameters()]
    assert (found[False][0], found[True][0]) == (1, 2)
    for plain, again in zip(found[False][1], found[True][1], strict=True):
        torch.testing.assert_close(again, plain)


def test_refuses_ranks_and_types_that_do_not_train():
    """Each with the way out."""
    with pytest.raises(ValueError, match=r"sampler\.adapters must be >= 1 or null, got 0"):
        widened(network(), 3, 2, adapters=0)
    with pytest.raises(ValueError, match=r"needs prior\.dtype=bfloat16 or float32, got float16"):
        widened(network(torch.float16), 3, 2, adapters=2)
