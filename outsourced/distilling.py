"""A sampler of fewer steps from a trained one: its settings, and the weights it starts from."""

from typing import Any

import torch
from torch import Tensor

from outsourced.networks import FlatNetwork
from outsourced.sampler import NoiseSampler

SAME = ("prior", "task", "posterior")  # what a student shares with its teacher
OBJECTIVE = {"_target_": "outsourced.objectives.PathLikelihood"}


def student_config(
    config: dict[str, Any], teacher: dict[str, Any], chosen: list[str]
) -> dict[str, Any]:
    """The resolved configuration of a student.

    Prior, task, posterior, data and sampler are the teacher's, but for what was chosen; the times
    of its steps are some of the teacher's, where the teacher's network is at home.

    Args:
        config: Of the command; `distill` is the teacher's folder.
        teacher: The teacher's.
        chosen: Names of the settings that were given, such as sampler.steps.

    Raises:
        ValueError: A choice that is not a student's.
    """
    for name in chosen:
        if name.split(".")[0] in (*SAME, "objective", "experiment"):
            raise ValueError(
                f"distill={config['distill']} has its own prior, task and posterior, and students "
                f"learn by the likelihood of its draws; leave {name}=... out"
            )
    if "sampler.steps" not in chosen:
        raise ValueError("distill=... needs the number of steps of the student: sampler.steps=4")
    sampler = _base(teacher["sampler"])
    student = config | {name: teacher[name] for name in SAME} | {"objective": OBJECTIVE}
    if "sampler" in chosen:
        _check_kind(config, sampler)
    # Of a transport the group says no more than where the keys come from.
    own = [name for name in chosen if name != "sampler" or not _is_transport(sampler)]
    student["sampler"] = _chosen(sampler, config["sampler"], "sampler", own)
    student["data"] = _chosen(config["data"] | teacher["data"], config["data"], "data", chosen)
    student["trainer"] = config["trainer"] | {
        "anchor_steps": 0,  # the teacher's anchors are trained
        "beta_start": None,
        "groups": config["trainer"]["batch"],  # so many real images come with a step
        "observations": student["data"]["observations"],
    }
    if "run" not in chosen:
        student["run"] = f"{str(config['distill']).rstrip('/')}-{sampler_name(student['sampler'])}"
    return student


def _is_transport(sampler: dict[str, Any]) -> bool:
    return str(sampler["_target_"]).endswith(".NoiseTransport")


def _check_kind(config: dict[str, Any], teacher: dict[str, Any]) -> None:
    """Refuse the sampler group of another kind than the teacher's."""
    kinds = [str(one["_target_"]).split(".")[-1] for one in (config["sampler"], teacher)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"distill={config['distill']} is a {kinds[1]}, and so is its student, got a "
            f"{kinds[0]}; choose sampler={'transport' if _is_transport(teacher) else 'default'}"
        )


def _base(sampler: dict[str, Any]) -> dict[str, Any]:
    """A teacher's sampler settings; those of a path sampler with the grid of its times."""
    if _is_transport(sampler):
        return sampler
    base = {"grid": None, "components": 1} | sampler
    return base | {"grid": base["grid"] or sampler["steps"]}


def sampler_name(sampler: dict[str, Any]) -> str:
    """Of a student's folder, after its teacher's: 4, or 1x8 for mixtures of 8 Gaussians."""
    parts = sampler.get("components", 1)
    return f"{sampler['steps']}" + (f"x{parts}" if parts > 1 else "")


def _chosen(
    base: dict[str, Any], config: dict[str, Any], group: str, chosen: list[str]
) -> dict[str, Any]:
    """The base with the choices of a group; a whole group that was chosen replaces it."""
    if group in chosen:
        return dict(config)
    names = {name.split(".")[1] for name in chosen if name.startswith(f"{group}.")}
    return {**base, **{name: config[name] for name in names}}


@torch.no_grad()
def inherit(student: Any, teacher: Any) -> tuple[int, int]:
    """Start a student from its teacher's weights, wherever they fit.

    A kernel is a guess of z_K at a time, so it serves a longer step from that time too: a teacher
    whose posteriors given z_k are Gaussian hands down a perfect student.

    Args:
        student: Changed in place; a `NoiseSampler`, or a `NoiseTransport`.
        teacher: Of the same problem and kind.

    Returns:
        Numbers of weights that were handed down, and of all.
    """
    own, known = student.state_dict(), teacher.state_dict()
    found = {name: value for name, value in known.items() if _fits(value, own.get(name))}
    if isinstance(student, NoiseSampler):
        if "control.gate" in own and "control.gate" in known:
            found["control.gate"] = known["control.gate"][:, _nearest(student, teacher)]
        found |= _parts(student, teacher, own, known)
    student.load_state_dict(own | found)
    weights = {name for name, _ in student.named_parameters()}
    count = sum(own[name].numel() for name in weights & found.keys())
    return count, sum(own[name].numel() for name in weights)


def _fits(value: Tensor, place: Tensor | None) -> bool:
    return place is not None and value.shape == place.shape


def _nearest(student: NoiseSampler, teacher: NoiseSampler) -> Tensor:
    """The teacher's step that starts where each of the student's does, (K,)."""
    own, known = (sampler.reference.position[:-1, None] for sampler in (student, teacher))
    return torch.cdist(own, known).argmin(1)


def _parts(
    student: NoiseSampler, teacher: NoiseSampler, own: dict[str, Tensor], known: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Output layers of a mixture, each part of which starts as the teacher's one Gaussian."""
    after, before = student.control, teacher.control
    if after.components == before.components or before.components > 1:
        return {}
    flat = "dense." if isinstance(after.network, FlatNetwork) else ""
    found = {}
    for layer, sizes in (("head", before.sizes[:4]), ("skip.1", before.sizes[:1])):
        for kind in ("weight", "bias"):
            name = f"control.network.{flat}{layer}.{kind}"
            if name not in own or name not in known:
                continue
            pieces = known[name].split([len(known[name]) * s // sum(sizes) for s in sizes])
            copies = [1 if i == 2 else after.components for i in range(len(pieces))]
            rows = [p.repeat(n, *[1] * (p.ndim - 1)) for p, n in zip(pieces, copies, strict=True)]
            value = torch.cat(rows)
            value = torch.cat([value, own[name][len(value) :]])  # shares of the parts
            if _fits(value, own[name]):
                found[name] = value
    return found
