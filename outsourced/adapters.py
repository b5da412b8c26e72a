"""Low-rank adapters on a copy of a network that shares the original's frozen weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def shared_copy(network: nn.Module) -> nn.Module:
    """The same modules once more, around the same tensors."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def add_adapters(network: nn.Module, rank: int, left: tuple[str, ...] = ()) -> None:
    """Put W + B A in the place of every linear map and convolution W; A and B are float32.

    B is 0 at first. Hu et al., 2022, arXiv 2106.09685.

    Args:
        network: changed in place; its own weights stay as they are.
        rank: of B A, rows of A.
        left: modules that are left out.

    Raises:
        ValueError: rank < 1.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if rank < 1:
        raise ValueError(f"sampler.adapters must be >= 1 or null, got {rank}")
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name not in left
    ]
    network.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)
    for weight in network.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # bfloat16 would round small steps away


class Adapted(nn.Module):
    """A network of which only some weights are its own: they alone are saved, moved and averaged.

    It computes in the type of its frozen weights, which are others' to move.

    Args:
        network: whose weights that require a gradient are its own.
        dtype: of the frozen ones.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self._network = (network,)  # a tuple hides it from state_dict
        self.dtype = dtype
        own = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.own = nn.ParameterDict({name.replace(".", "/"): p for name, p in own.items()})

    @property
    def network(self) -> Any:
        """All of it."""
        return self._network[0]

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """The network's outputs, in the type of x."""
        low = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype, enabled=low):
            found = self.network(x.to(self.dtype), *args, **options)
        return tuple(value.to(x.dtype) for value in found)
