"""Finding and loading diffusers pipelines: hub ids, local folders, single-file checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from outsourced.weights import ZOO_WEIGHTS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INDEX = "model_index.json"
SUFFIXES = (".safetensors", ".ckpt")
LOOKUP = ("cache_dir", "revision", "token")  # arguments of `load` that say where to look
# What a broken or foreign file makes diffusers, transformers, safetensors and torch raise.
FAILURES = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError),
    SafetensorError,
)
# Not part of x = f(z): the checker blackens images, the others prepare image prompts.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def load_pipeline(
    path: str, allowed: Collection[str], dtype: torch.dtype, load: Mapping[str, Any] | None = None
) -> Any:
    """Load a diffusers pipeline of one of some classes.

    Args:
        path: Hub id, local folder, folder among the embedded weights, or single-file checkpoint.
        allowed: Names of pipeline classes.
        dtype: Of all its networks.
        load: Further arguments of `from_pretrained` or `from_single_file`, e.g. `revision`,
            `variant`, `cache_dir`, `config`, or `text_encoder_3: null` to leave a component out.

    Raises:
        FileNotFoundError: Nothing is at `path`, and it cannot be downloaded.
        ValueError: It is another kind of pipeline, or broken.
    """
    import diffusers

    arguments = dict(load or {})
    place = locate(path)
    if place is not None and place.is_file():
        with _quiet(True):
            return _load_file(place, allowed, dtype, arguments)
    name, local = _find_class(path, place, arguments)
    if name not in allowed:
        raise ValueError(
            f"prior.path {path} holds a {name}, expected {' or '.join(sorted(allowed))}; "
            "DiffusionPrior is for pixels, LatentDiffusionPrior for Stable Diffusion 1.x, 2.x, "
            "3.x, UnconditionalLatentPrior for LDMPipeline"
        )
    kind = getattr(diffusers, name)
    arguments = {**_dtype(dtype), **_without_unused(kind), "local_files_only": local, **arguments}
    try:
        # Not every version casts every network on its own.
        with _quiet(local):
            return kind.from_pretrained(str(place or path), **arguments).to(dtype)
    except FAILURES as error:
        raise ValueError(_broken(path, error)) from error


def load_tiny_autoencoder(path: str, dtype: torch.dtype) -> Any:
    """Load an `AutoencoderTiny` (e.g. hub id `madebyollin/taesd`), which replaces a slow VAE.

    Raises:
        FileNotFoundError: Nothing is at `path`, and it cannot be downloaded.
        ValueError: It is another kind of network, or broken.
    """
    from diffusers import AutoencoderTiny

    place = locate(path)
    try:
        found = AutoencoderTiny.load_config(str(place or path), local_files_only=place is not None)
    except OSError as error:
        raise FileNotFoundError(_missing(path, "config.json", "tiny_autoencoder")) from error
    if found.get("_class_name") != "AutoencoderTiny":
        raise ValueError(
            f"prior.tiny_autoencoder {path} holds a {found.get('_class_name')}, expected an "
            "AutoencoderTiny"
        )
    try:
        return AutoencoderTiny.from_pretrained(str(place or path), **_dtype(dtype))
    except FAILURES as error:
        raise ValueError(_broken(path, error)) from error


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Without the libraries' advice, and without their bars where nothing is downloaded."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    logs: tuple[Any, ...] = (diffusers_log, transformers_log)
    before = [log.get_verbosity() for log in logs]
    shown = [log.is_progress_bar_enabled() for log in logs]
    for log in logs:
        log.set_verbosity_error()
        if local:
            log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level, bar in zip(logs, before, shown, strict=True):
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()


def locate(path: str) -> Path | None:
    """The file or folder that `path` names, or None where it can only be a hub id.

    Raises:
        FileNotFoundError: It is neither.
        ValueError: A file that is no checkpoint.
    """
    for place in (Path(path).expanduser(), ZOO_WEIGHTS / path):
        if place.is_dir():
            return place
        if place.is_file():
            if place.suffix not in SUFFIXES:
                raise ValueError(
                    f"prior.path {path} is not a checkpoint; expected a hub id, a folder with "
                    f"{INDEX}, or a file that ends in {' or '.join(SUFFIXES)}"
                )
            return place
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) or path.endswith(SUFFIXES):
        raise FileNotFoundError(
            f"prior.path {path} does not exist; expected a hub id (owner/name), a folder that "
            "`save_pretrained` wrote, or a single-file checkpoint"
        )
    return None


def _find_class(path: str, place: Path | None, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    """Name of the pipeline class, and whether the files are on this machine."""
    from diffusers import DiffusionPipeline

    if place is not None:
        return _class_in(place), True
    lookup = {key: arguments[key] for key in LOOKUP if key in arguments}
    # A copy on this machine is used as it is: no network, and the same prior tomorrow.
    for local in (True, False):
        try:
            found = DiffusionPipeline.load_config(path, local_files_only=local, **lookup)
            return found["_class_name"], local
        except FAILURES as error:
            last = error
    raise FileNotFoundError(_missing(path, INDEX, "path")) from last


def _class_in(folder: Path) -> str:
    try:
        return json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"prior.path {folder} has no {INDEX}; expected a folder that a diffusers pipeline's "
            "`save_pretrained` wrote"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"prior.path {folder}: {INDEX} is damaged ({error!r})") from error


def _load_file(
    place: Path, allowed: Collection[str], dtype: torch.dtype, arguments: dict[str, Any]
) -> Any:
    import diffusers

    config = arguments.get("config")
    try:
        name = _class_in(Path(config)) if config else _guess_class(place)
    except FAILURES as error:
        raise ValueError(_broken(str(place), error)) from error
    if name not in allowed:
        raise ValueError(
            f"prior.path {place} was read as a {name}, expected {' or '.join(sorted(allowed))}"
        )
    kind = getattr(diffusers, name)
    # The configuration of the networks is not in the file.
    local = {"local_files_only": True} if config else {}
    try:
        return kind.from_single_file(
            str(place), **{**_dtype(dtype), **_without_unused(kind), **local, **arguments}
        ).to(dtype)
    except FAILURES as error:
        raise ValueError(
            f"{_broken(str(place), error)}. A single file holds weights only: without network, "
            "set prior.load.config to a folder with the configuration files of its pipeline "
            f"({INDEX}, unet/config.json, ..., tokenizer/)"
        ) from error


def _guess_class(place: Path) -> str:
    """Stable Diffusion 3 by its joint attention blocks, earlier versions otherwise."""
    joint = any("joint_blocks" in key or "add_k_proj" in key for key in _keys(place))
    return "StableDiffusion3Pipeline" if joint else "StableDiffusionPipeline"


def _keys(place: Path) -> list[str]:
    if place.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(place, framework="pt") as file:
            return list(file.keys())
    weights = torch.load(place, map_location="cpu", mmap=True, weights_only=True)
    return list(weights.get("state_dict", weights))


def _without_unused(kind: Any) -> dict[str, Any]:
    import inspect

    accepted = inspect.signature(kind.__init__).parameters
    unused: dict[str, Any] = {name: None for name in UNUSED if name in accepted}
    return unused | ({"requires_safety_checker": False} if "safety_checker" in unused else {})


def _dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument's name changed in diffusers 0.40, which warns of the old one."""
    import diffusers

    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if version >= (0, 40) else "torch_dtype": dtype}


def _missing(path: str, file: str, setting: str) -> str:
    return (
        f"prior.{setting} {path} is not on this machine and could not be downloaded: no network, "
        f"no such repository on the hub, or no access to it (log in with `hf auth login`). Either "
        f"put a folder with its {file} anywhere and set prior.{setting}=FOLDER, or copy a hub "
        "cache that has it and point the environment variable HF_HOME to that"
    )


def _broken(path: str, error: Exception) -> str:
    return f"{path} cannot be loaded ({type(error).__name__}: {error})"
