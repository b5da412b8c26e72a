"""The noise-space sampler: draw paths without gradient, score paths with gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outsourced.anchoring import Anchoring
from outsourced.control import PATHWISE, Control
from outsourced.encoders import observation_encoder
from outsourced.guidance import Conditioning, Context, LaplaceTarget
from outsourced.kernels import Mixture
from outsourced.laplace import fit_laplace
from outsourced.networks import control_network, is_dense, zero_
from outsourced.reference import Reference
from outsourced.scoring import Path, PathScores
from outsourced.tasks.base import Observation


class NoiseSampler(PathScores):
    """A diffusion sampler over the noise of a prior, amortised over observations.

    Args:
        noise_shape: Event shape of z, (d,) or (C, H, W).
        feature_shape: Event shape of the observation features that the encoder reads.
        conditioning: The problem; needed where `informed` is not `none`, and for the features.
        steps, schedule, log_snr_min, log_snr_max, late, grid: See `Reference`.
        informed, covariance, width, depth, network, components: See `Control`.
        embedding: Size of the observation embedding.
        lookup: Prior draws that are stored, the best of which is the anchor of an observation;
            `anchor` only. `Lookup.fill` them before use.
        climb: Gradients of log r by which an anchor is improved; `anchor` only, 0 for black boxes.
        anchors: Draws that become anchors of an observation; its paths take turns, so that they
            differ where the observation is silent, or, with a rank, have as many as Laplace's
            evidence of each says; `anchor` only.
        anchor_precision: First log-precision of the Gaussian about an anchor; `anchor` only. With
            a rank, of what is added to its curvature.
        anchor_slope: Whether the control also sees the gradient of log r at the anchor; `anchor`
            only, one gradient an observation.
        rank: Directions of the curvature at an anchor that are found by products with the Jacobian
            of f, 0 for none; `anchor` only. Costs 2 rank + 4 passes of f an anchor and step.
        newton: Gauss-Newton steps in that span; `anchor` only.
        anchor_steps: Most Gauss-Newton steps from the predicted anchor; `gauss_newton` only.
        flow: Also build the state flow log F(z_k, y) - log N(z_k) that sub-trajectory balance
            learns.
        max_rows: Kernels scored at once; longer work is split over steps and recomputed in the
            backward pass, so that memory does not grow with K.
    """

    weighted = True  # paths have a density

    def __init__(
        self,
        noise_shape: tuple[int, ...],
        feature_shape: tuple[int, ...],
        conditioning: Conditioning,
        steps: int = 24,
        schedule: str = "log_snr",
        log_snr_min: float = -3.0,
        log_snr_max: float = 6.0,
        late: float = 1.0,
        informed: str = "none",
        covariance: str = "diagonal",
        width: int = 256,
        depth: int = 2,
        embedding: int = 128,
        network: str = "auto",
        lookup: int = 8192,
        climb: int = 0,
        anchors: int = 1,
        anchor_precision: float = 4.0,
        anchor_slope: bool = False,
        rank: int = 0,
        newton: int = 1,
        anchor_steps: int = 10,
        flow: bool = False,
        max_rows: int = 6400,
        grid: int | None = None,
        components: int = 1,
    ):
        super().__init__()
        self.noise_shape, self.max_rows = tuple(noise_shape), max_rows
        self.anchor_steps = anchor_steps
        self.reference = Reference(steps, schedule, log_snr_min, log_snr_max, late, grid)
        self._conditioning = (conditioning,)  # a tuple hides the frozen prior from state_dict
        self.dense = is_dense(self.noise_shape, network)
        self.encoder = observation_encoder(
            self.noise_shape, tuple(feature_shape), embedding, self.dense
        )
        size = self.encoder.size
        self.anchoring: Anchoring | None = None
        if informed == "anchor":
            shapes = self.noise_shape, conditioning.data_shape
            settings: tuple[Any, ...] = lookup, climb, anchor_precision, anchors, anchor_slope
            if rank and components > 1:
                raise ValueError(f"sampler.rank needs sampler.components=1, got {components}")
            settings = *settings, rank, newton
            self.anchoring = Anchoring(size, *shapes, self.dense, *settings)
            size += self.anchoring.size
        if informed == "gauss_newton":
            self.anchor = zero_(nn.Linear(size, 2 * noise_shape[0]))
            size += 2 * noise_shape[0]
        options = informed, covariance, width, depth, network, components
        self.control = Control(self.reference, self.noise_shape, size, *options)
        self.log_z_head = nn.Sequential(nn.Linear(size, 128), nn.SiLU(), zero_(nn.Linear(128, 1)))
        self.flow: nn.Module | None = None
        if flow:
            channels = self.noise_shape[0]
            self.flow = control_network(
                channels, 1, self.noise_shape, size, self.reference, width, 2, network=network
            )

    @property
    def conditioning(self) -> Conditioning:
        """The problem that this sampler is asked about."""
        return self._conditioning[0]

    def encode(self, obs: Observation, paths: int | None = None) -> Context:
        """Everything that is computed once per observation.

        Args:
            obs: B observations.
            paths: How many will be drawn of each; fewer of them than anchors need fewer anchors.
        """
        embedding = self.embed(obs)
        if self.anchoring is not None:
            most = self.anchoring.anchors
            anchors = most if paths is None else min(most, paths)
            found = self.anchoring(embedding, obs, self.conditioning, anchors)
            anchored, embedding, share = found
            return Context(embedding, obs, None, anchored, anchors, share)
        if self.control.informed != "gauss_newton":
            return Context(embedding, obs)
        start = self.anchor(embedding)[:, : self.noise_shape[0]].detach()
        with torch.no_grad():
            target = LaplaceTarget(self.conditioning, obs)
            laplace = fit_laplace(target, start, self.anchor_steps)
        summary = torch.cat([laplace.anchor, torch.log1p(laplace.curvature) / 5], -1)
        return Context(torch.cat([embedding, summary], -1), obs, laplace)

    def embed(self, obs: Observation) -> Tensor:
        """The encoder's embedding of observations alone."""
        return self.encoder(self.conditioning.features(obs))

    def anchor_loss(self, embedding: Tensor, z: Tensor) -> Tensor:
        """Negative log-likelihood of z (B, d) under the anchor head, (B,); constants left out.

        Args:
            embedding: As returned by `embed`, or the embedding of a context.
            z: Noise behind the observations.
        """
        mean, log_std = self.anchor(embedding[:, : self.anchor.in_features]).chunk(2, -1)
        return (0.5 * ((z - mean) * torch.exp(-log_std)).square() + log_std).sum(-1)

    def transition(
        self,
        z: Tensor,
        k: Tensor,
        context: Context,
        exploration: float,
        eta: Tensor,
        choice: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One kernel: z_{k+1}, its log P_phi / P_ref in nats (N,), and its guidance, if any.

        Args:
            z: States z_k, (N, *noise_shape).
            k: The step, (1,).
            context: Of the N observations.
            exploration: See `forward_path`.
            eta: Standard normal noise, of the shape of z.
            choice: Uniform noise (N,), where a kernel is a mixture.
        """
        guide = self.control.guide(z[None], k, context, self.conditioning)
        kernel = self.control(z[None], k, context, self.conditioning, guide)
        eta = (1 + exploration) * eta[None]
        if isinstance(kernel, Mixture):
            assert choice is not None
            eps = kernel.pick(choice[None]).sample(eta)
            ratio = kernel.log_ratio(eps)
        else:
            eps = kernel.sample(eta)
            ratio = kernel.log_ratio(eps, eta)
        return self.reference.advance(z[None], eps, k)[0], ratio[0], guide

    def choices(self, n: int, generator: torch.Generator | None, like: Tensor) -> Tensor | None:
        """The uniform noise of n rows that `transition` wants, on the device of a tensor; None
        where kernels are no mixtures."""
        if self.control.components == 1:
            return None
        return torch.rand(n, generator=generator, device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def forward_path(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        exploration: float = 0.0,
        context: Context | None = None,
    ) -> Path:
        """Draw n paths for each observation from the sampler, without gradient.

        Args:
            obs: B observations.
            n: Paths for each.
            generator: Source of randomness.
            exploration: Relative increase of the kernels' standard deviation; 0 draws from P_phi.
            context: `encode(obs)`, if at hand.
        """
        context = self.encode(obs, n) if context is None else context
        return self._roll_out(context, n, generator, exploration)

    def differentiable_path(
        self, obs: Observation, n: int, generator: torch.Generator | None = None
    ) -> Path:
        """Draw n paths for each observation, with the path-wise gradient of z and log_ratio.

        Raises:
            ValueError: For a likelihood-informed control, whose inputs carry no gradient, or for
                kernels that are mixtures.
        """
        if self.control.informed not in PATHWISE:
            raise ValueError(
                "a path-wise gradient (objective=reverse_kl) needs sampler.informed=none|anchor, "
                f"got {self.control.informed!r}"
            )
        if self.control.components > 1:
            raise ValueError(
                "a path-wise gradient (objective=reverse_kl) needs sampler.components=1, got "
                f"{self.control.components}: the choice of a part has none"
            )
        return self._roll_out(self.encode(obs, n), n, generator, 0.0)

    def _roll_out(
        self, context: Context, n: int, generator: torch.Generator | None, exploration: float
    ) -> Path:
        batch, device = len(context.obs), context.embedding.device
        repeated = context.repeat(n)
        shape, dtype = (n * batch, *self.noise_shape), context.embedding.dtype

        def noise() -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        z, guides = [noise()], []
        total = torch.zeros(n * batch, device=device, dtype=dtype)
        for step in range(self.steps):
            k = torch.tensor([step], device=device)
            choice = self.choices(n * batch, generator, total)
            arguments = (z[-1], k, repeated, exploration, noise(), choice)
            if torch.is_grad_enabled():
                following, ratio, guide = checkpoint(
                    self.transition, *arguments, use_reentrant=False
                )
            else:
                following, ratio, guide = self.transition(*arguments)
            z.append(following)
            total = total + ratio
            if guide is not None:
                guides.append(guide)
        states = torch.stack(z).unflatten(1, (n, batch))
        return Path(states, torch.cat(guides, 1) if guides else None, total.reshape(n, batch))

    @torch.no_grad()
    def backward_path(self, z: Tensor, generator: torch.Generator | None = None) -> Path:
        """Noise end points z (n, B, *noise_shape) back to z_0 through the reference."""
        n, batch = z.shape[:2]
        return Path(
            self.reference.backward_path(z.flatten(0, 1), generator).unflatten(1, (n, batch))
        )

    def forward(self, obs: Observation, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise z ~ q_phi(z | y): (n, B, *noise_shape)."""
        return self.forward_path(obs, n, generator).end
