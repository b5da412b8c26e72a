"""The recipes of the ablation: the default one of a prior, with one part of it changed."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.budget import composed


@dataclass(frozen=True)
class Variant:
    """A changed recipe.

    Attributes:
        name: as printed, and as `--variants` takes it.
        changes: arguments of `train.py`.
    """

    name: str
    changes: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Its name without blanks."""
        return self.name.replace(" ", "-").replace("=", "").replace(",", "")


def alone(objective: str, *changes: str) -> Variant:
    """An objective from the first path on, without a warm start by likelihood."""
    start = "trainer.warm_steps=${trainer.anchor_steps}"
    return Variant(f"{objective} alone", (f"objective={objective}", start, *changes))


def without(source: str, recipe: Variant | None = None) -> Variant:
    """One source of paths removed from a recipe, the default one if there is none."""
    name, changes = (f"{recipe.name}, ", recipe.changes) if recipe else ("", ())
    return Variant(f"{name}no {source} paths", (*changes, f"paths.weights.{source}=0"))


SOURCES = ("on_policy", "simulated", "replay", "refined")
COMMON = (
    Variant("default"),
    Variant("path_likelihood alone", ("objective=path_likelihood",)),
    *(alone(name) for name in ("log_variance", "trajectory_balance")),
    *(alone(f"{name}_balance", "sampler.flow=true") for name in ("detailed", "sub_trajectory")),
    Variant("not informed", ("sampler.informed=none",)),
    Variant("fixed variance", ("sampler.covariance=fixed",)),
    *(Variant(f"K={k}", (f"sampler.steps={k}",)) for k in (8, 16, 24, 32, 64)),
    Variant("denser late steps", ("sampler.late=0.5",)),
)
PATHWISE = ("reverse_kl", "adjoint_sampling")
# Their gradient passes through the path, which guidance by gradients does not let it.
BLIND = ("sampler.informed=none", "sampler.covariance=diagonal")
# By whether the sampler of a prior starts at anchors; if so, its objective is pathwise, which takes
# no paths but its own: what their sources are worth is seen with log-variance.
VARIANTS = {
    False: (
        *COMMON,
        *(without(name) for name in SOURCES),
        *(alone(name, *BLIND) for name in PATHWISE),
        Variant("gradient informed", ("sampler.informed=gradient",)),
        Variant("diagonal variance", ("sampler.covariance=diagonal",)),
    ),
    True: (
        *COMMON,
        *(without(name, alone("log_variance")) for name in SOURCES),
        *(alone(name) for name in PATHWISE),
        Variant("full variance", ("sampler.covariance=full",)),
        Variant("no low rank", ("sampler.rank=0",)),
    ),
}


def variants_of(prior: str) -> tuple[Variant, ...]:
    """The variants of the recipe of a prior, less the number of steps that it has by default.

    Raises:
        ValueError: the prior's sampler has no log-weights to be compared by.
    """
    sampler = composed([f"prior={prior}"]).sampler
    if "informed" not in sampler:
        raise ValueError(
            f"--priors {prior} has a sampler without log-weights, {sampler['_target_']}; choose "
            "priors with vector noise, e.g. fashion_vae"
        )
    default = f"K={sampler.steps}"
    return tuple(v for v in VARIANTS[sampler.informed == "anchor"] if v.name != default)
