"""The solvers of the side-by-side table, and with which settings they run on a prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.draws import chosen
from benchmarks.means import Mean
from benchmarks.posteriors import configured
from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.diagnostics import FEWEST

AMORTISED, DISTILLED = "amortised", "distilled"
ALL = "all"  # run folder PRIOR-all, of a mixture of operators
GENERAL = f"{AMORTISED}, all operators"
REFINED = f"{AMORTISED}, refined"
TEMPERED = f"{REFINED}, temperature 0.5"
COOLED = f"{REFINED}, temperature 0"
MEDOID = f"{REFINED}, medoid of 16"
TUNED = f"{REFINED}, tuned draws"
REFINEMENT: Mapping[str, Any] = {"refine": (2, 2, 2)}
_STEPPED = ("psld", "gml_dps", "latent_dps", "dps", "flow_dps", "flow_chef")
_CHAINS = {"steps": 4, "burn_in": 2, "chains": 2, "thin": 1}
# Efforts of --quick, by the file of configs/solver.
QUICK: Mapping[str, Mapping[str, Any]] = {
    "amortized": {"moves": 2, "candidates": 4},
    **{file: {"steps": 3} for file in _STEPPED},
    "resample": {"steps": 12, "every": 4, "iterations": 3},
    "daps": {"steps": 3, "ode_steps": 1, "langevin_steps": 2},
    **{file: _CHAINS for file in ("pcn", "mala")},
    "hmc": {**_CHAINS, "leapfrog": 2},
    "smc": {"particles": 8, "moves": 1, "stages": 2},
}
CHAINS = ("pcn", "mala", "hmc", "smc")
LONG = 1000  # steps
_PROBE = {"steps": FEWEST, "burn_in": 0, "chains": 1, "thin": 1}
NAMES = ("omega", "gamma", "rate")  # step sizes that may come from a search


@dataclass(frozen=True)
class Contender:
    """A solver of the table.

    Attributes:
        name: as printed, and as `--solvers` takes it.
        file: of configs/solver; `amortized` needs a trained sampler.
        settings: changed ones.
        dear: further changes where one f(z) is many network calls: chains of about the seconds a
            sample that PSLD takes for 1000 steps.
        run: of the amortised ones, which run folder: PRIOR-TASK, and this behind it; or `ALL`.
        mean: samples of each observation whose mean is judged, 0 for the samples themselves.
        tuned: with the temperature and medoids that `benchmarks.tune_draws` chose for the task.
        limited: a chain of as many moves as fit into the time of the amortised sampler's run.
        samples: of each observation, `--n` by default.
        timing: samples of each observation in a batch that is timed, `samples` by default.
        calibrated: whether it also samples simulated observations, whose truth is known.
    """

    name: str
    file: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dear: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    mean: int = 0
    tuned: bool = False
    limited: bool = False
    samples: int | None = None
    timing: int | None = None
    calibrated: bool = False

    @property
    def amortised(self) -> bool:
        """Whether it is the trained sampler, corrected or not."""
        return self.file == "amortized"

    @property
    def plain(self) -> bool:
        """Whether it is a trained sampler without a correction."""
        return self.amortised and "correct" not in self.settings

    @property
    def estimate(self) -> bool:
        """Whether its images are estimates, and no draws of the posterior."""
        cooled = self.settings.get("temperature", 1) != 1
        return bool(self.mean) or self.tuned or cooled or self.settings.get("medoid", 1) > 1

    @property
    def slow(self) -> bool:
        """Whether it is a diffusion sampler of as many calls as its authors take."""
        return self.settings.get("steps") == LONG or self.file in ("resample", "daps")

    @property
    def shared(self) -> bool:
        """Whether all samples of an observation come from one piece of work."""
        return self.file in CHAINS or self.settings.get("correct") in ("importance", "smc")

    def changes(self, posterior: Posterior) -> dict[str, Any]:
        """The changed settings for a prior and a task.

        Raises:
            ValueError: it is tuned, and no search has chosen settings for them.
        """
        extra = chosen(posterior) if self.tuned else {}
        return {**self.settings, **(self.dear if is_dear(posterior) else {}), **extra}

    def quick(self) -> Contender:
        """The same with so little effort that its figures mean nothing, for tests."""
        if self.limited:
            return self
        small = {k: v for k, v in QUICK[self.file].items() if self._has(k)}
        return replace(self, settings={**self.settings, **small}, dear={**self.dear, **small})

    def _has(self, name: str) -> bool:
        """Whether an option of `QUICK` is one of this solver: corrections have their own."""
        correction = self.settings.get("correct")
        if name == "candidates":
            return correction in ("importance", "smc")
        return name != "moves" or not self.amortised or correction in ("imh", "pcn", "mala", "hmc")

    def build(self, posterior: Posterior, sampler: NoiseSampler | None) -> Any:
        """The solver.

        Raises:
            ValueError: it does not apply to the posterior, or the sampler is missing.
        """
        changes = self.changes(posterior)
        if self.amortised:
            if sampler is None:
                raise ValueError("no trained sampler; give --minutes, or a run folder in --runs")
            solver = Amortized(sampler, posterior, **changes)
            return Mean(solver, self.mean) if self.mean else solver
        return configured(self.file, changes, posterior)


def is_dear(posterior: Posterior) -> bool:
    """Whether one f(z) is many network calls."""
    return hasattr(posterior.prior, "calls")


def described(contender: Contender, solver: Any, posterior: Posterior) -> str:
    """The settings that tell a run of a solver from another: the changed ones and step sizes."""
    told = dict(contender.changes(posterior))
    for name in ("steps", *NAMES):
        if not contender.amortised and isinstance(getattr(solver, name, None), int | float):
            told[name] = getattr(solver, name)
    return " ".join(f"{name}={value}" for name, value in sorted(told.items()))


def corrected(kind: str, **dear: Any) -> Contender:
    """The amortised sampler with a correction."""
    return Contender(f"{AMORTISED} + {kind}", "amortized", {"correct": kind}, dear)


def guided(name: str, file: str, **settings: Any) -> tuple[Contender, Contender]:
    """A per-instance diffusion sampler at 1000 and at 100 steps."""
    return tuple(Contender(f"{name}, {n}", file, {**settings, "steps": n}) for n in (LONG, 100))  # type: ignore[return-value]


def limited(file: str) -> Contender:
    """A chain in the time of the amortised sampler, from the shortest, which tells its pace."""
    return Contender(f"{file}, same time", file, _PROBE, limited=True)


CONTENDERS = (
    Contender(AMORTISED, "amortized"),
    corrected("importance"),
    corrected("smc"),
    corrected("imh"),
    corrected("pcn"),
    corrected("mala"),
    corrected("hmc", moves=8),
    *guided("psld", "psld"),
    *guided("psld paper", "psld", variant="paper"),
    *guided("gml_dps", "gml_dps"),
    *guided("latent_dps", "latent_dps"),
    *guided("dps", "dps"),
    Contender("resample", "resample"),
    Contender("daps", "daps"),
    Contender("flow_dps", "flow_dps"),
    Contender("flow_chef", "flow_chef"),
    Contender("pcn", "pcn", {}, {"chains": 2, "steps": 400, "burn_in": 100, "thin": 50}),
    Contender(
        "mala",
        "mala",
        {"start": "laplace", "precondition": True},
        {
            **{"chains": 2, "steps": 120, "burn_in": 60, "thin": 5},
            **{"start": "prior", "precondition": False},
        },
    ),
    Contender("hmc", "hmc", {}, {"chains": 2, "steps": 24, "burn_in": 12, "thin": 1}),
    Contender("smc", "smc", {"particles": 128, "moves": 4}, {"particles": 8, "moves": 2}),
)
INVERSE = (
    Contender(AMORTISED, "amortized"),
    Contender(f"{AMORTISED}, mean of 16", "amortized", mean=16, samples=1),
    Contender(REFINED, "amortized", REFINEMENT),
    Contender(TEMPERED, "amortized", {**REFINEMENT, "temperature": 0.5}),
    Contender(COOLED, "amortized", {**REFINEMENT, "temperature": 0.0}, samples=1),
    Contender(MEDOID, "amortized", {**REFINEMENT, "medoid": 16}, samples=2),
    Contender(TUNED, "amortized", REFINEMENT, tuned=True, samples=4),
    corrected("importance"),
    corrected("pcn"),
    corrected("mala"),
    Contender(GENERAL, "amortized", run=ALL),
    Contender(DISTILLED, "amortized", run=DISTILLED),
    *guided("psld", "psld"),
    *guided("psld paper", "psld", variant="paper"),
    *guided("gml_dps", "gml_dps"),
    *guided("latent_dps", "latent_dps"),
    *guided("dps", "dps"),
    limited("pcn"),
    limited("hmc"),
    *(contender for contender in CONTENDERS if contender.name in ("pcn", "hmc")),
)
