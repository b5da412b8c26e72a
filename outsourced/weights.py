"""Networks that ship with the package: weights in safetensors files that carry their own sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

ZOO_WEIGHTS = Path(__file__).resolve().parent / "zoo" / "weights"

Network = TypeVar("Network", bound="Embedded")


class Embedded(nn.Module):
    """A network that is saved with, and rebuilt from, the arguments of its constructor.

    Attributes:
        embedded: Name of the weights that ship with the package.
        config: Arguments that rebuild the network; JSON types.
    """

    embedded: ClassVar[str]
    config: dict[str, Any]

    @classmethod
    def from_weights(
        cls: type[Network], path_or_name: str | os.PathLike[str] | None = None
    ) -> Network:
        """Load weights from a safetensors file that carries its sizes.

        Args:
            path_or_name: A `.safetensors` file, or the name of an embedded one; by default the
                one of this class.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated, corrupt, or does not hold a network of this class.
        """
        path = _path(path_or_name or cls.embedded)
        config, weights = _read(path)
        try:
            network = cls(**config)
            network.load_state_dict(weights)
        except (TypeError, RuntimeError, ValueError) as error:
            what = f"does not hold a {cls.__name__} of the sizes that it announces"
            raise ValueError(_broken(path, what)) from error
        return network

    def save_weights(self, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
        """Write the weights, floating ones rounded to half precision, with `config`.

        Args:
            path: The file to write; an existing one is replaced at once, never half-written.
            metadata: Further text entries, e.g. how the weights were trained.
        """
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {
            name: (t.half() if t.is_floating_point() else t).contiguous()
            for name, t in self.state_dict().items()
        }
        partial = path.with_name(path.name + ".partial")
        save_file(weights, partial, {**metadata, "config": json.dumps(self.config)})
        # safetensors writes private files; these are shipped.
        partial.chmod(0o644)
        partial.replace(path)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.items())


def _path(path_or_name: str | os.PathLike[str]) -> Path:
    path = Path(path_or_name)
    if path.suffix != ".safetensors":
        path = ZOO_WEIGHTS / f"{path.name}.safetensors"
    if not path.is_file():
        known = sorted(file.stem for file in ZOO_WEIGHTS.glob("*.safetensors"))
        raise FileNotFoundError(
            _broken(path, f"does not exist (embedded: {', '.join(known) or 'none'})")
        )
    return path


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise ValueError(_broken(path, f"cannot be read ({error})")) from error
    return config, {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def _broken(path: Path, what: str) -> str:
    return (
        f"weights file {path} {what}; restore it (`git checkout -- {path}` for an embedded one) or "
        f"train it again with `python -m outsourced.zoo.{path.stem} --out {path}`"
    )
