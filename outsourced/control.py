"""The controlled kernel: a network's guess of z_K, with its covariance, integrated over the bridge.

If z_K given z_k has mean rho_k z_k + spread_k * delta and covariance spread_k^2 C, the next state
has innovation mean w_k delta and covariance (1 - w_k^2) I + w_k^2 C. C = 0 is the bridge of a point
mass (the lower DDPM limit), C = I the reference (the upper one). Zero outputs give delta = 0 and C
= I: the untrained sampler *is* the prior.
"""

from typing import Any

import torch
from torch import Tensor, nn

from outsourced.guidance import (
    Conditioning,
    Context,
    GaussNewtonGuidance,
    GradientGuidance,
    evaluate,
)
from outsourced.kernels import (
    Kernel,
    LowRankKernel,
    Mixture,
    rotate,
    strictly_lower,
    within,
)
from outsourced.low_rank import LowRank
from outsourced.networks import FlatNetwork, control_network, is_dense
from outsourced.reference import Reference

INFORMED = ("none", "anchor", "gradient", "gauss_newton")
PATHWISE = ("none", "anchor")  # whose inputs carry the gradient of the path
COVARIANCES = ("fixed", "diagonal", "full")
LOG_SCALE_LIMIT = 6.0  # a learned standard deviation moves by at most e^6 from its base
ANCHOR_GAIN = 10.0  # of gates that training opens before its first step
GATE_GAIN = 30.0  # lets the gates open before the network learns to do without them


class Control(nn.Module):
    """Parametrised kernels of all steps, for vector or spatial noise.

    Args:
        reference: The uncontrolled process.
        noise_shape: Event shape of z: (d,) or (C, H, W).
        context: Size (channels) of the observation embedding.
        informed: `none`, `anchor` (guess from a Gaussian about a given point, of learned width),
            `gradient` (grad log r at a learned guess of z_K) or `gauss_newton` (vector noise only:
            guess, covariance and step from a Laplace approximation).
        covariance: `diagonal`, `full` (vector noise only: a learned triangular factor on top), or
            `fixed`: that of the Gaussian which guides the kernel, or else the reference's.
        width, depth: Size of the network.
        network: `dense`, `convolutional` (spatial noise only), or `auto`, see `is_dense`.
        components: Gaussians that a kernel is a mixture of; more than one for dense networks only.

    Raises:
        ValueError: Unknown option, or one that does not fit the noise.
    """

    opened: Tensor

    def __init__(
        self,
        reference: Reference,
        noise_shape: tuple[int, ...],
        context: int,
        informed: str = "none",
        covariance: str = "diagonal",
        width: int = 256,
        depth: int = 2,
        network: str = "auto",
        components: int = 1,
    ):
        super().__init__()
        self._check(noise_shape, informed, covariance)
        self._check_components(components, is_dense(noise_shape, network))
        self.reference, self.components = reference, components
        self.informed, self.full, self.fixed = informed, covariance == "full", covariance == "fixed"
        d = self.channels = noise_shape[0]
        triangle = d * (d - 1) // 2 if self.full else 0
        gain, shares = d if informed == "gradient" else 0, components if components > 1 else 0
        self.sizes = [components * d, components * d, gain, components * triangle, shares]
        extra = {"none": 0, "anchor": 2 * d, "gradient": 2 * d + 1, "gauss_newton": 3 * d}[informed]
        sizes = (d + extra, sum(self.sizes), noise_shape, context, reference)
        skip = components * d
        self.network = control_network(*sizes, width, depth, skip=skip, network=network)
        if components > 1:
            self._part()
        self.guidance: GradientGuidance | GaussNewtonGuidance | None = None
        if informed == "gradient":
            narrow = max(width // 2, 16)
            sizes = (d, d, noise_shape, context, reference)
            guess = control_network(*sizes, narrow, 1, skip=d, network=network)
            self.guidance = GradientGuidance(guess, reference)
        elif informed == "gauss_newton":
            self.guidance = GaussNewtonGuidance(reference)
        if informed in ("anchor", "gauss_newton"):
            self.gate = nn.Parameter(torch.zeros(2, reference.steps))
        if informed == "anchor":
            self.register_buffer("opened", torch.zeros(()))

    @staticmethod
    def _check_components(components: int, dense: bool) -> None:
        if components < 1 or (components > 1 and not dense):
            raise ValueError(
                "sampler.components must be >= 1, and 1 for a convolutional network, got "
                f"{components}"
            )

    def _part(self) -> None:
        """Shares of their own for the parts, without which all would learn the same.

        They are equal kernels at first, so the untrained sampler still is the prior.
        """
        flat, network = isinstance(self.network, FlatNetwork), self.network
        head: Any = network.dense.head if flat else network.head  # type: ignore[union-attr]
        rows = head.out_features * self.components // sum(self.sizes)
        with torch.no_grad():
            nn.init.normal_(head.weight[-rows:], std=head.in_features**-0.5)

    @staticmethod
    def _check(noise_shape: tuple[int, ...], informed: str, covariance: str) -> None:
        if len(noise_shape) not in (1, 3):
            raise ValueError(f"noise must have shape (d,) or (C, H, W), got {noise_shape}")
        for name, value, known in (
            ("informed", informed, INFORMED),
            ("covariance", covariance, COVARIANCES),
        ):
            if value not in known:
                raise ValueError(f"sampler.{name} must be one of {', '.join(known)}, got {value!r}")
        if len(noise_shape) == 3 and (informed == "gauss_newton" or covariance == "full"):
            raise ValueError(
                f"sampler.informed={informed}, sampler.covariance={covariance} need vector noise; "
                f"for spatial noise {noise_shape} use informed=none|anchor|gradient and "
                "covariance=diagonal"
            )

    def open(self) -> None:
        """Make an untrained anchored control draw from the Gaussian about its anchor.

        Until then it draws from the prior; `anchor` only.
        """
        self.opened.fill_(1.0)

    def guide(
        self, z: Tensor, k: Tensor, context: Context, conditioning: Conditioning | None
    ) -> Tensor | None:
        """The part of the guidance that carries no gradient, (2, S, N, d), or None."""
        if not isinstance(self.guidance, GaussNewtonGuidance):
            return None
        assert conditioning is not None
        return self.guidance(z, k, context, conditioning)

    def forward(
        self,
        z: Tensor,
        k: Tensor,
        context: Context,
        conditioning: Conditioning | None,
        guide: Tensor | None = None,
    ) -> Kernel | Mixture:
        """Kernels from z (S, N, *shape) at steps k (S,); `guide` as returned by `guide`."""
        if isinstance(self.guidance, GradientGuidance):
            assert conditioning is not None
            return self._gradient_kernel(z, k, context, conditioning)
        if self.informed == "anchor":
            return self._anchor_kernel(z, k, context)
        if guide is not None:
            return self._gauss_newton_kernel(z, k, context, guide)
        delta, log_std, _, lower, share = self._outputs([z], k, context)
        return self._kernel(k, delta, 2 * log_std, lower, share)

    def _outputs(self, inputs: list[Tensor], k: Tensor, context: Context) -> tuple[Tensor, ...]:
        """Shift, log standard deviation, gain and triangle, those of parts along the first axis,
        (M S, N, ...), and the shares of the parts, (S, N, M, ...)."""
        joint = torch.cat(inputs, 2) if len(inputs) > 1 else inputs[0]
        out = evaluate(self.network, joint, k, context)
        shift, log_std, gain, lower, share = out.split(self.sizes, 2)
        log_std = LOG_SCALE_LIMIT * torch.tanh(log_std / LOG_SCALE_LIMIT)
        if self.fixed:
            log_std = torch.zeros_like(log_std)
        return self._parts(shift), self._parts(log_std), gain, self._parts(lower), share

    def _parts(self, value: Tensor) -> Tensor:
        """(S, N, M d, ...) to (M S, N, d, ...)."""
        if self.components == 1:
            return value
        return value.unflatten(2, (self.components, -1)).movedim(2, 0).flatten(0, 1)

    def _each(self, value: Tensor) -> Tensor:
        """What all parts share, (S, ...) to (M S, ...)."""
        if self.components == 1:
            return value
        return value.repeat(self.components, *[1] * (value.ndim - 1))

    def _kernel(
        self,
        k: Tensor,
        delta: Tensor,
        log_c: Tensor,
        lower: Tensor,
        share: Tensor,
        basis: Tensor | None = None,
    ) -> Kernel | Mixture:
        w = self.reference.at("information", self._each(k), delta)
        variance = (1 - w**2).clamp_min(0) + w**2 * log_c.exp()
        matrix = w[..., None] ** 2 * strictly_lower(lower, self.channels) if self.full else None
        kernel = Kernel(w * delta, 0.5 * variance.log(), basis, matrix)
        if self.components == 1:
            return kernel
        logits = share.reshape(*share.shape[:3], -1).mean(-1)  # over a grid, if there is one
        return Mixture(kernel, logits.movedim(2, 0).log_softmax(0))

    def _gradient_kernel(
        self, z: Tensor, k: Tensor, context: Context, conditioning: Conditioning
    ) -> Kernel | Mixture:
        assert isinstance(self.guidance, GradientGuidance)
        delta, unit, size = self.guidance(z, k, context, conditioning)
        size = size.reshape(*size.shape, 1, *[1] * (z.ndim - 3)).expand(
            *z.shape[:2], 1, *z.shape[3:]
        )
        shift, log_std, gain, lower, share = self._outputs([z, delta, unit, size], k, context)
        delta = self._each(delta) + shift + self._each(gain * unit)
        return self._kernel(k, delta, 2 * log_std, lower, share)

    def _anchor_kernel(self, z: Tensor, k: Tensor, context: Context) -> Kernel | Mixture:
        anchored = context.anchored
        assert anchored is not None
        if isinstance(anchored, LowRank):
            return self._low_rank_kernel(z, k, context, anchored)
        rho, spread = (self.reference.at(name, k, z) for name in ("rho", "spread"))
        delta, c = anchored.posterior(z, rho, spread)
        inputs = [z, rho * z + spread * delta, delta]
        shift, log_std, _, lower, share = self._outputs(inputs, k, context)
        mean_gate, scale_gate = self._anchor_gates(k, z.ndim)
        log_c = self._each(scale_gate * c.log())
        # The network works in the standard deviations of the Gaussian.
        delta = self._each(mean_gate * delta) + shift * (0.5 * log_c).exp()
        return self._kernel(k, delta, log_c + 2 * log_std, lower, share)

    def _anchor_gates(self, k: Tensor, dims: int) -> Tensor:
        """How far the Gaussian about the anchor counts, (2, S, 1, ...)."""
        gates = self.opened + torch.tanh(ANCHOR_GAIN * self.gate[:, k])
        return gates.reshape(*gates.shape, *[1] * (dims - 1))

    def _low_rank_kernel(
        self, z: Tensor, k: Tensor, context: Context, anchored: LowRank
    ) -> LowRankKernel:
        rho, spread = (self.reference.at(name, k, z) for name in ("rho", "spread"))
        delta, c, c_rest = anchored.posterior(z, rho, spread)
        inputs = [z, rho * z + spread * delta, delta]
        shift, log_std, _, lower, _ = self._outputs(inputs, k, context)
        mean_gate = self._anchor_gates(k, z.ndim)[0]
        scale_gate = self._anchor_gates(k, 3)[1]
        c, c_rest = c**scale_gate, c_rest**scale_gate
        # The network works in the standard deviations of the Gaussian.
        delta = mean_gate * delta + within(anchored.basis, shift, c.sqrt(), c_rest.sqrt())
        kernel = self._kernel(k, delta, 2 * log_std, lower, shift[:, :, :0])
        assert isinstance(kernel, Kernel)
        w = self.reference.at("information", k, c) ** 2
        inside, outside = (0.5 * ((1 - w).clamp_min(0) + w * part).log() for part in (c, c_rest))
        parts = kernel.shift, kernel.log_scale, anchored.basis, kernel.lower
        return LowRankKernel(*parts, inside, outside)

    def _gauss_newton_kernel(
        self, z: Tensor, k: Tensor, context: Context, guide: Tensor
    ) -> Kernel | Mixture:
        laplace = context.laplace
        assert laplace is not None
        rho, spread = (self.reference.at(name, k, z) for name in ("rho", "spread"))
        delta, error = guide
        inputs = [z, rho * z + spread * delta, delta, error]
        shift, log_std, _, lower, share = self._outputs(inputs, k, context)
        mean_gate, scale_gate = GATE_GAIN * self.gate[:, k, None, None]
        log_c = self._each(-scale_gate * torch.log1p(spread**2 * laplace.curvature))
        # The network works in posterior standard deviations, in the coordinates of z.
        step = rotate(laplace.basis, shift, transpose=True) * (0.5 * log_c).exp()
        delta = self._each(mean_gate * delta) + rotate(laplace.basis, step)
        return self._kernel(k, delta, log_c + 2 * log_std, lower, share, laplace.basis)
