"""What one run of an experiment is told, read from a Chaos Toolkit configuration into typed values. Starts nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chaos import limits

# Of the partners that experiments make. Nobody else's name begins with it.
PARTNER_PREFIX: Final = "chaos_"
# Of those among them that share a worker.
POOLED_PREFIX: Final = f"{PARTNER_PREFIX}pooled_"
_RANGES: Final = {
    "duration_s": (limits.CHAOS_DURATION_S_MIN, limits.CHAOS_DURATION_S_MAX),
    "load_per_second": (limits.CHAOS_LOAD_PER_SECOND_MIN, limits.CHAOS_LOAD_PER_SECOND_MAX),
    "patience": (1.0, limits.CHAOS_PATIENCE_MAX),
}


class RunSettingsError(Exception):
    """What a run was told can't be."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One run. `cell`, `partner`: empty where the run chooses its target. `load_per_second`: of all partners together.

    `own`: on a gateway of its own. `force`: also where live partners would be hurt. `patience` stretches the promised
    times, for a busy machine. `bulkheads_off`: what the run's own gateway goes without, commas between.
    """

    data_folder: Path
    cell: str
    partner: str
    duration_s: float
    load_per_second: float
    seed: int
    patience: float
    own: bool
    force: bool
    runs_folder: Path
    bulkheads_off: str

    @classmethod
    def read(cls, configuration: Mapping[str, Any]) -> "RunSettings":
        """Read a configuration. Raises RunSettingsError."""
        try:
            settings = cls(
                data_folder=Path(str(configuration["data_folder"])).expanduser().absolute(),
                cell=str(configuration["cell"]),
                partner=str(configuration["partner"]),
                duration_s=float(configuration["duration_s"]),
                load_per_second=float(configuration["load_per_second"]),
                seed=int(configuration["seed"]),
                patience=float(configuration["patience"]),
                own=_is_true(configuration["own"]),
                force=_is_true(configuration["force"]),
                runs_folder=Path(str(configuration["runs_folder"])).expanduser().absolute(),
                bulkheads_off=str(configuration["bulkheads_off"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RunSettingsError(f"the experiment's configuration can't be read: {error!r}") from error
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(settings, name) <= high:
                raise RunSettingsError(f"{name} is {getattr(settings, name):g}: it is from {low:g} to {high:g}")
        if settings.bulkheads_off and not settings.own:
            raise RunSettingsError("bulkheads are switched off on a gateway of the run's own only: say --own")
        if settings.partner and not settings.partner.startswith(PARTNER_PREFIX):
            raise RunSettingsError(
                f"{settings.partner!r} is no partner of an experiment's: these begin with {PARTNER_PREFIX!r}"
            )
        return settings

    @property
    def calm_s(self) -> float:
        """How long all is calm before the fault: as long as that, within bounds."""
        return min(max(self.duration_s, limits.CHAOS_CALM_S_MIN), limits.CHAOS_CALM_S_MAX)


def _is_true(value: Any) -> bool:
    return value if isinstance(value, bool) else str(value).lower() in {"1", "true", "yes"}
