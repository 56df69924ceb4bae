# SPDX-License-Identifier: Apache-2.0
"""What noise is worth: epsilon at delta, by the accountant of the library dp-accounting.

The claim. Two runs are compared that differ in one device: in one of them its updates are replaced by zeros. Whoever sees every
model of the run can tell the two apart with a certainty that (epsilon, delta) bounds. That a device took part is not hidden, and
its counts and losses, which the coordinator keeps in its ledger, are not part of the claim.

Without sampling a device's loss grows with the rounds that it took part in. Where cells are drawn evenly and in secret, each
round costs less; that is computed for the exchange of one cell for another (Wang, Balle, Kasiviswanathan, arXiv 1808.00087), in
which the sum changes by twice what a cell may send.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

from fedmote.errors import ConfigError

DELTA_EXPONENT = 1.1


def delta_of(num_devices: int) -> float:
    """The delta at which epsilon is told: below one in the number of devices, or one device could be given away whole."""
    return float(num_devices**-DELTA_EXPONENT)


def load_library() -> ModuleType:
    """The accountant's library; ConfigError where it is not installed."""
    try:
        import dp_accounting.rdp  # seconds, and only a run with noise needs it
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"strategy.privacy needs the package dp-accounting ({error.name} is missing): pip install 'fedmote[privacy]'"
        ) from error
    library: ModuleType = dp_accounting
    return library


@cache
def epsilon(noise_multiplier: float, num_rounds: int, delta: float) -> float:
    """Epsilon of a device that took part in so many rounds, its participation known.

    Args:
        noise_multiplier: standard deviation of the sum's noise in units of the clip norm.
        num_rounds: in which an update of the device was merged.
        delta: in (0, 1).

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    library = load_library()
    relation = library.NeighboringRelation.ADD_OR_REMOVE_ONE
    return _compose(library, relation, library.GaussianDpEvent(noise_multiplier), num_rounds, delta)


@cache
def epsilon_of_draws(
    noise_multiplier: float, num_rounds: int, delta: float, cells_per_round: int, num_cells: int, devices_per_cell: int
) -> float:
    """Epsilon of a device after so many rounds, each with an even and secret draw of cells.

    Args:
        noise_multiplier: as in `epsilon`.
        num_rounds: of the run, whoever took part.
        delta: in (0, 1).
        cells_per_round: so many are drawn.
        num_cells: of so many.
        devices_per_cell: the most that a cell has.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    library = load_library()
    event = library.SampledWithoutReplacementDpEvent(
        num_cells, cells_per_round, library.GaussianDpEvent(noise_multiplier / (2 * devices_per_cell))
    )
    return _compose(library, library.NeighboringRelation.REPLACE_ONE, event, num_rounds, delta)


def _compose(library: ModuleType, relation: object, event: object, num_rounds: int, delta: float) -> float:
    if num_rounds == 0:
        return 0.0
    accountant = library.rdp.RdpAccountant(neighboring_relation=relation)
    accountant.compose(event, num_rounds)
    return float(accountant.get_epsilon(delta))
