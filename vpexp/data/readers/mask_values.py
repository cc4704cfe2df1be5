"""Which values masks hold, and whether they can be class numbers at all: blurring and JPEG mix values at every edge.

Shapes: H W size of the mask in pixels.
"""

import numpy as np

from vpexp.data.readers.index_masks import IndexMask, find_values
from vpexp.data.readers.label_maps import META_FILE

BLURRED_MASKS = (
    f"mask values look blurred or compressed; save masks as lossless PNG of class numbers, or write {META_FILE}"
)
_FEW_THIN = 4
_THIN_SHARE = 0.1
_TABLE = 1 << 16


class ValueSurvey:
    """Gathers the values of masks, and how their pixels lie.

    Attributes:
        values: Every value that occurs.
    """

    def __init__(self) -> None:
        self.values: set[int] = set()
        self._pixels = np.zeros(_TABLE, dtype=np.int64)
        self._squares = np.zeros(_TABLE, dtype=np.int64)

    def add(self, values_HW: IndexMask) -> None:
        """Look at one mask."""
        values = find_values(values_HW)
        self.values.update(values)
        if values[0] < 0 or values[-1] >= _TABLE:
            return
        corner_HW = values_HW[:-1, :-1]
        is_square_HW = (
            (corner_HW == values_HW[1:, :-1]) & (corner_HW == values_HW[:-1, 1:]) & (corner_HW == values_HW[1:, 1:])
        )
        self._pixels += np.bincount(values_HW.ravel(), minlength=_TABLE)
        self._squares += np.bincount(corner_HW[is_square_HW], minlength=_TABLE)

    def looks_blurred(self) -> bool:
        """Say whether most values only make thin lines.

        Blurring leaves values between those of two regions: one pixel wide along their border, never an area. Squares
        of 2 x 2 equal pixels tell them from the many small classes that a data set may really have.
        """
        seen = self._pixels > 0
        thin = int((self._squares[seen] < _THIN_SHARE * self._pixels[seen]).sum())
        return thin > _FEW_THIN and 2 * thin > int(seen.sum())
