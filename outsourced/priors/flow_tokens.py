"""An autoregressive flow of token sequences whose terms a causal transformer predicts."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A block stretches an entry by at most e^3: it bounds the condition number of the flow and with it
# the rounding error of the inverse.
SCALE_LIMIT = 3.0


class Cache:
    """Keys and values of the tokens so far.

    Where gradients are not recorded they are written into one buffer; elsewhere every step needs
    tensors of its own.

    Args:
        tokens: longest sequence.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.count = tokens, 0
        self.pair: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Add key and value of a token, (B, heads, 1, size) each; returns those of all."""
        self.count += 1
        if torch.is_grad_enabled():
            old = self.pair or tuple(part[:, :, :0] for part in new)
            self.pair = tuple(torch.cat(both, 2) for both in zip(old, new, strict=True))
            return self.pair
        if not self.pair:
            self.pair = tuple(p.new_empty(*p.shape[:2], self.tokens, p.shape[3]) for p in new)
        for buffer, part in zip(self.pair, new, strict=True):
            buffer[:, :, self.count - 1] = part[:, :, 0]
        return tuple(buffer[:, :, : self.count] for buffer in self.pair)


class CausalLayer(nn.Module):
    """Pre-normalised self-attention and a two-layer network, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def _heads(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split = self.qkv(self.norm_in(h)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return query, key, value

    def _rest(self, h: Tensor, seen: Tensor) -> Tensor:
        h = h + self.merge(seen.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norm_out(h))))

    def forward(self, h: Tensor) -> Tensor:
        """All tokens at once, each seeing itself and those before it: (B, T, width)."""
        seen = F.scaled_dot_product_attention(*self._heads(h), is_causal=True)
        return self._rest(h, seen)

    def step(self, h: Tensor, cache: Cache) -> Tensor:
        """The next token, (B, 1, width), given keys and values of those before it."""
        query, *pair = self._heads(h)
        key, value = cache.append(*pair)
        return self._rest(h, F.scaled_dot_product_attention(query, key, value))


class TokenBlock(nn.Module):
    """One affine autoregressive map of a token sequence (Papamakarios et al., 2017).

    Token t of the data is noise_t · exp(s) + m, where s and m depend on the tokens before it:
    data to noise is one pass of the transformer, noise to data one short pass a token.

    Args:
        tokens: length of the sequence.
        size: entries of a token.
        width: width of the transformer.
        layers: its layers.
        heads: its attention heads.
        backwards: whether the sequence runs from the last token to the first.
    """

    def __init__(
        self, tokens: int, size: int, width: int, layers: int, heads: int, backwards: bool
    ) -> None:
        super().__init__()
        self.backwards = backwards
        self.reader = nn.Linear(size, width)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2 * size)
        # An untrained block is the identity.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _terms(self, h: Tensor) -> tuple[Tensor, Tensor]:
        # The transformer may run in bfloat16; the terms never do.
        raw = self.head(self.norm(h)).to(torch.promote_types(h.dtype, torch.float32))
        log_scale, shift = raw.chunk(2, -1)
        return SCALE_LIMIT * torch.tanh(log_scale / SCALE_LIMIT), shift

    def _turn(self, tokens: Tensor) -> Tensor:
        return tokens.flip(1) if self.backwards else tokens

    def inverse(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Noise behind data (B, T, size), and the log-determinant of dnoise/ddata, (B,)."""
        data = self._turn(data)
        h = torch.cat([self.start.expand(len(data), -1, -1), self.reader(data[:, :-1])], 1)
        h = h + self.places
        for layer in self.layers:
            h = layer(h)
        log_scale, shift = self._terms(h)
        noise = (data - shift) * (-log_scale).exp()
        return self._turn(noise), -log_scale.flatten(1).sum(1)

    def forward(self, noise: Tensor) -> Tensor:
        """Data from noise, (B, T, size) both."""
        noise = self._turn(noise)
        layers = cast("list[CausalLayer]", list(self.layers))
        caches = [Cache(noise.shape[1]) for _ in layers]
        h, found = self.start.expand(len(noise), -1, -1), []
        for t in range(noise.shape[1]):
            h = h + self.places[t]
            for layer, cache in zip(layers, caches, strict=True):
                h = layer.step(h, cache)
            log_scale, shift = self._terms(h)
            token = noise[:, t : t + 1] * log_scale.exp() + shift
            found.append(token)
            h = self.reader(token)
        return self._turn(torch.cat(found, 1))


class TokenFlow(nn.Module):
    """Autoregressive flow of images whose tokens are patches (after Zhai et al., 2024).

    Zhai et al. (arXiv 2412.06329) stack blocks of alternating direction over the patches of an
    image. Mean and standard deviation of each entry of the data stand outside the blocks.

    Args:
        shape: (C, H, W) of the images; H and W multiples of the patch.
        patch: side of a token.
        width: width of the transformers.
        layers: layers of each.
        heads: attention heads of each; divides the width.
        blocks: number of autoregressive maps.
    """

    mean: Tensor
    log_std: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        patch: int,
        width: int,
        layers: int,
        heads: int,
        blocks: int,
    ) -> None:
        super().__init__()
        planes, rows, columns = shape
        self.patch, self.grid = patch, (rows // patch, columns // patch)
        tokens, size = self.grid[0] * self.grid[1], planes * patch**2
        self.blocks = nn.ModuleList(
            TokenBlock(tokens, size, width, layers, heads, backwards=bool(i % 2))
            for i in range(blocks)
        )
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("log_std", torch.zeros(*shape))

    @torch.no_grad()
    def set_statistics(self, data: Tensor) -> None:
        """Take mean and standard deviation of every entry from data (N, *shape)."""
        std, mean = torch.std_mean(data, dim=0)
        self.mean.copy_(mean)
        self.log_std.copy_(std.clamp(min=1e-6).log())

    def _tokens(self, image: Tensor) -> Tensor:
        return F.pixel_unshuffle(image, self.patch).flatten(2).transpose(1, 2)

    def _image(self, tokens: Tensor) -> Tensor:
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, self.grid), self.patch)

    def forward(self, z: Tensor) -> Tensor:
        """Noise (B, *shape) to data of the same shape."""
        h = self._tokens(z)
        for block in self.blocks:
            h = block(h)
        return self.mean + self.log_std.exp() * self._image(h)

    def inverse(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """z with forward(z) = data, and the log-determinant of dz/ddata, (B,)."""
        h = self._tokens((data - self.mean) * (-self.log_std).exp())
        total = (-self.log_std.sum()).expand(len(data))
        for block in reversed(cast("list[TokenBlock]", self.blocks)):
            h, log_det = block.inverse(h)
            total = total + log_det
        return self._image(h), total
