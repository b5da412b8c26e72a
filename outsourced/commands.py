"""One line for what the user can mend, a traceback for the rest: shared by the entry points."""

import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException


def one_line_errors(job: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Decorate a job, so that mistakes of the user end it with a line and exit status 1."""

    @wraps(job)
    def guarded(cfg: DictConfig) -> None:
        try:
            job(cfg)
        except InstantiationException as error:
            cause = error.__cause__
            if cause is not None and not isinstance(cause, ValueError | OSError | TypeError):
                raise
            sys.exit(f"error: {cause or error}")
        except MissingMandatoryValue as error:
            name = error.full_key or str(error).rsplit(" ", 1)[-1]
            sys.exit(f"error: {name} is required; give it as {name}=...")
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from what is on disk", file=sys.stderr)
            sys.exit(130)

    return guarded


def hide_jit_notice() -> None:
    """Hide PyTorch's notice that it uses its own deprecated `torch.jit.script`.

    It does so for the first forward-mode derivative of a process, and no user can mend it. Called
    by programs only: a library does not change the filters of who imports it.
    """
    message = r"`torch\.jit\.script` is (deprecated|not supported)"
    warnings.filterwarnings("ignore", message, FutureWarning, module=r"torch\.")


def overridden() -> list[str]:
    """Names of the settings that the command line of the running job gave."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task
    return [text.lstrip("+~").split("=")[0].split("@")[0] for text in given]


def launch(main: Callable[[], None], config_folder: str) -> None:
    """Call a `hydra.main` function; a bad override is answered with a list of what there is.

    Args:
        main: Decorated by `hydra.main`.
        config_folder: Where its configuration groups lie.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving
    hide_jit_notice()
    try:
        main()
    except HydraException as error:
        sys.exit(f"error: {_explain(error, config_folder)}")


def _explain(error: HydraException, config_folder: str) -> str:
    lines = [line.rstrip() for line in str(error).split("\nConfig search path")[0].splitlines()]
    text = "\n".join(line for line in lines if line)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        where = str(cause.full_key or "").rpartition(".")[0] or "the top level"
        names = ", ".join(str(key) for key in cause.parent_node if key != "hydra")
        return f"{text.splitlines()[0]}\nkeys of {where}: {names}"
    if "defaults list" in text:
        groups = sorted(entry.name for entry in os.scandir(config_folder) if entry.is_dir())
        return f"{text.splitlines()[0]}\ngroups: {', '.join(groups)}"
    return text
