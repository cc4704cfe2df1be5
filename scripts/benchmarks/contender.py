"""What the two sides of a benchmark have in common."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Contender(Protocol):
    """One side, alive in a process of its own; built from ``Settings``, which may take as long as it likes."""

    def check(self) -> dict[str, NDArray[Any] | np.floating[Any] | float]:
        """Compute what the other side must compute too, without learning anything from it."""

    def prepare(self) -> None:
        """Get ready for a turn; not counted."""

    def turn(self) -> None:
        """Do the work once; counted."""


class Ready:
    """A contender that needs no preparation between turns."""

    def prepare(self) -> None:
        """Nothing to do."""
