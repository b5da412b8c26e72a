"""The network of a transport: its untrained copy, its encoder's Gaussian, refusals."""

import pytest
import torch
from torch import nn

from outsourced.conditional import ObservationEncoder, gaussian_loss, widened


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 2, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(torch.tanh(self.conv_in(x)))


def test_a_widened_copy_is_the_network_at_first():
    """Mutants: weights that are shared with the frozen one, new channels with random weights,
    a lost stride or padding, a frozen copy."""
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    copy = widened(net, 3, 4)
    x = torch.randn(2, 2, 6, 6)
    found = copy(torch.cat([x, torch.randn(2, 3, 6, 6)], 1))
    torch.testing.assert_close(found[:, :2], net(x))
    assert found.shape == (2, 6, 3, 3)
    assert not found[:, 2:].any()
    assert all(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        copy.conv_in.weight.add_(1)
        copy.conv_out.weight.add_(1)
    assert not torch.allclose(copy(torch.cat([x, torch.zeros(2, 3, 6, 6)], 1))[:, :2], net(x))


def test_the_loss_is_the_density_of_the_gaussian():
    """Mutants: a variance for its logarithm, a sum for the mean over entries."""
    mean, log_variance, value = torch.randn(
        3, 4, 2, 5, 5, generator=torch.Generator().manual_seed(0)
    )
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    wanted = -normal.log_prob(value).flatten(1).mean(1) - 0.5 * torch.log(
        torch.tensor(2 * torch.pi)
    )
    torch.testing.assert_close(gaussian_loss(mean, log_variance, value), wanted)


def test_the_encoder_starts_at_the_estimate():
    """Unit variance about it, or about 0 without one; features lie where they are in the image.

    Mutants: the estimate among the features only, patches in another order than the grid's.
    """
    torch.manual_seed(0)
    features, estimate = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    encoder = ObservationEncoder((3, 8, 8), (4, 4, 4), True, 16)
    embedding = encoder(features, estimate)
    assert embedding.shape == (2, encoder.size, 4, 4)
    mean, log_variance = encoder.gaussian(embedding)
    assert torch.equal(mean, estimate)
    assert not log_variance.any()
    assert torch.equal(embedding[:, -12:, 1, 2], features[:, :, 2:4, 4:6].flatten(1))
    plain = ObservationEncoder((3, 8, 8), (4, 4, 4), False, 16)
    assert plain.size == encoder.size - 4
    assert not plain.gaussian(plain(features, None))[0].any()


def test_refusals_name_the_way_out():
    """Mutants: features that do not tile the grid, widths that no normalisation divides."""
    with pytest.raises(ValueError, match=r"grid \(3, 4\), got features \(2, 4, 4\)"):
        ObservationEncoder((2, 4, 4), (1, 3, 4), False, 8)
    with pytest.raises(ValueError, match=r"grid \(4, 4\), got features \(16,\)"):
        ObservationEncoder((16,), (1, 4, 4), False, 8)
    with pytest.raises(ValueError, match=r"sampler\.width must be a multiple of 8, got 12"):
        ObservationEncoder((2, 4, 4), (1, 4, 4), False, 12)
