"""Networks: zero at initialisation, one observation and one step per row, any grid."""

import pytest
import torch

from outsourced.encoders import ImageEncoder, SpatialEncoder, VectorEncoder
from outsourced.networks import (
    FlatNetwork,
    SpatialNetwork,
    StepEmbedding,
    VectorNetwork,
    is_dense,
)
from outsourced.reference import Reference

TIMES = Reference(5)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def randomise(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.2 * draw(*parameter.shape, seed=i))


def vector(skip: int = 2) -> VectorNetwork:
    torch.manual_seed(0)
    return VectorNetwork(3, 5, 4, TIMES, width=16, depth=2, skip_outputs=skip).double()


def spatial(levels: int = 2) -> SpatialNetwork:
    torch.manual_seed(0)
    return SpatialNetwork(2, 3, (7, 5), 4, TIMES, width=16, levels=levels).double()


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=atol)


def test_heads_are_exactly_zero_at_initialisation():
    """Mutant: a head bias, or a skip, with the default initialisation: the untrained sampler would
    not be the prior."""
    k = torch.tensor([0, 3])
    assert vector()(draw(2, 3, 3), k, draw(3, 4)).count_nonzero() == 0
    assert spatial()(draw(2, 3, 2, 7, 5), k, draw(3, 4, 7, 5)).count_nonzero() == 0


def test_vector_rows_depend_on_their_own_step_and_observation():
    """Mutant: observations broadcast along the steps, or a normalisation over the batch."""
    network, x, e, k = vector(), draw(3, 3, 3), draw(3, 4, seed=1), torch.tensor([4, 0, 2])
    randomise(network)
    together = network(x, k, e)
    for s in range(3):
        for n in range(3):
            alone = network(x[s, n][None, None], k[s : s + 1], e[n : n + 1])
            close(together[s, n], alone[0, 0])


@pytest.mark.parametrize("levels", [1, 2])
def test_spatial_rows_depend_on_their_own_step_and_observation(levels):
    """Mutant: `repeat` of the time where `repeat_interleave` belongs, or a batch norm."""
    network, k = spatial(levels), torch.tensor([4, 1])
    randomise(network)
    x, e = draw(2, 3, 2, 7, 5), draw(3, 4, 7, 5, seed=1)
    together = network(x, k, e)
    assert together.shape == (2, 3, 3, 7, 5)
    for s in range(2):
        for n in range(3):
            alone = network(x[s, n][None, None], k[s : s + 1], e[n : n + 1])
            close(together[s, n], alone[0, 0])


def test_flat_network_keeps_channels_and_pixels_in_their_places():
    """Its linear skip, set to the identity on the first channel of the input, returns that channel.
    Mutant: channels last while flattening, or height and width exchanged while unflattening."""
    torch.manual_seed(0)
    network = FlatNetwork(2, 3, (2, 5), 4, TIMES, width=16, skip=1).double()
    skip = network.dense.skip[1]
    with torch.no_grad():
        skip.bias.copy_(torch.eye(10, 24, dtype=torch.float64).flatten())
    x, e, k = draw(2, 3, 2, 2, 5), draw(3, 4, seed=1), torch.tensor([4, 1])
    out = network(x, k, e)
    assert out.shape == (2, 3, 3, 2, 5)
    close(out[:, :, 0], x[:, :, 0])
    assert out[:, :, 1:].count_nonzero() == 0
    randomise(network)
    together = network(x, k, e)
    for s in range(2):
        for n in range(3):
            alone = network(x[s, n][None, None], k[s : s + 1], e[n : n + 1])
            close(together[s, n], alone[0, 0])


@pytest.mark.parametrize(
    ("shape", "network", "dense"),
    [
        ((4096,), "auto", True),
        ((4096,), "dense", True),
        ((4, 16, 16), "auto", True),
        ((4, 16, 17), "auto", False),
        ((4, 64, 64), "dense", True),
        ((1, 2, 2), "convolutional", False),
    ],
)
def test_small_noise_gets_a_dense_network(shape, network, dense):
    """Mutant: the limit compared with the pixels instead of the entries of the noise."""
    assert is_dense(shape, network) is dense


def test_networks_that_do_not_fit_are_refused():
    """Mutant: an unknown name that silently means one of the known ones."""
    with pytest.raises(ValueError, match=r"sampler.network must be one of .* got 'unet'"):
        is_dense((4,), "unet")
    with pytest.raises(ValueError, match=r"network=convolutional needs spatial noise .* \(4,\)"):
        is_dense((4,), "convolutional")


def test_odd_grids_are_the_corner_of_the_zero_padded_even_grid():
    """Mutant: padding on one side and cropping on the other, which shifts the field by a pixel."""
    network, k = spatial(), torch.tensor([2])
    randomise(network)
    x, e = draw(1, 1, 2, 7, 5), draw(1, 4, 7, 5, seed=1)
    wide, wide_e = torch.zeros(1, 1, 2, 8, 6).double(), torch.zeros(1, 4, 8, 6).double()
    wide[..., :7, :5], wide_e[..., :7, :5] = x, e
    close(network(x, k, e), network(wide, k, wide_e)[..., :7, :5])


@pytest.mark.parametrize("network", [vector(), spatial(1), spatial(2)], ids=["v", "s1", "s2"])
def test_all_steps_are_told_apart(network):
    """Mutant: a group norm of one channel a group after the step embedding was added: it subtracts
    the embedding again. Or the embedding looked up at the wrong index."""
    randomise(network)
    shape = (1, 1, 3) if isinstance(network, VectorNetwork) else (1, 1, 2, 7, 5)
    x = draw(*shape).expand(5, *shape[1:])
    e = draw(1, 4, *shape[3:], seed=1)
    out = network(x, torch.arange(5), e).flatten(1)
    assert torch.cdist(out, out).fill_diagonal_(1).min() > 1e-3


@pytest.mark.parametrize("reference", [Reference(64), Reference(64, "cosine"), Reference(1)])
def test_step_features_are_distinct_and_finite(reference):
    """Mutant: log-SNR features alone: rho_0 = 0 is infinite, and clipping it merges steps."""
    embedding = StepEmbedding(reference, 16)
    features = embedding.features
    assert torch.isfinite(features).all()
    assert features.abs().max() <= 1.5
    distance = torch.cdist(features, features).fill_diagonal_(1)
    assert distance.min() > 0.01
    assert embedding().shape == (reference.steps, 16)


def test_linear_skip_is_the_exact_linear_map_of_its_step():
    """With a zero trunk head the output is M(k) x + N(k) e. Mutant: one matrix for all steps, the
    blocks of x and e exchanged, or outputs beyond `skip_outputs` fed too."""
    network, x, e, k = vector(), draw(2, 3, 3), draw(3, 4, seed=1), torch.tensor([4, 1])
    with torch.no_grad():
        network.skip[1].weight.copy_(draw(*network.skip[1].weight.shape, seed=2))
        network.skip[1].bias.copy_(draw(*network.skip[1].bias.shape, seed=3))
    out = network(x, k, e)
    matrices = network.skip(network.step()[k]).reshape(2, 2, 7)
    assert not torch.allclose(*matrices)
    for s in range(2):
        for n in range(3):
            close(out[s, n, :2], matrices[s] @ torch.cat([x[s, n], e[n]]))
    assert out[..., 2:].count_nonzero() == 0
    # It is added to the trunk, not put in its place.
    with torch.no_grad():
        network.head.bias.copy_(torch.arange(5.0))
    close(network(x, k, e) - out, torch.arange(5.0).double().expand(2, 3, 5))


def test_vector_encoder_keeps_the_observation_itself():
    """Mutant: only the MLP, of whose output a linear-Gaussian mean is no linear map."""
    torch.manual_seed(0)
    encoder, y = VectorEncoder((3,), 8).double(), draw(4, 3)
    out = encoder(y)
    assert out.shape == (4, encoder.size)
    assert torch.equal(out[:, :3], y)
    close(encoder(y[1:2])[0], out[1])
    assert torch.linalg.matrix_rank(out[:, 3:] - out[:, 3:].mean(0)) == 3


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 9, 5), (3, 1, 17)])
def test_image_encoder_reads_every_pixel_of_any_size(shape):
    """Mutant: sizes rounded down, which crops the last rows or fails on odd images."""
    torch.manual_seed(0)
    encoder, image = ImageEncoder(shape, 6, channels=4).double(), draw(2, *shape).requires_grad_()
    out = encoder(image)
    assert out.shape == (2, encoder.size)
    (gradient,) = torch.autograd.grad(out[0].sum(), image)
    assert (gradient[0] != 0).all()
    assert gradient[1].count_nonzero() == 0


def test_spatial_encoder_keeps_places_on_the_grid_of_the_noise():
    """The cells that a changed corner moves are its own and their neighbours by two convolutions.
    Mutant: the grid's sides exchanged, or pooling everything into every cell."""
    torch.manual_seed(0)
    encoder, image = SpatialEncoder((2, 48, 24), (12, 4), 5).double(), draw(1, 2, 48, 24)
    changed = image.clone()
    changed[..., :2, -2:] += 1  # within grid cell (0, 3), away from its neighbours
    moved = (encoder(changed) - encoder(image)).abs().sum(1)[0] > 1e-6
    expected = torch.zeros(12, 4, dtype=torch.bool)
    expected[:3, 1:] = True
    assert torch.equal(moved, expected)
