"""Lists of which only the first places were scored anew."""

import numpy as np
import numpy.typing as npt

from data.schema import Scores


def above_the_rest(fused: Scores, retrieval: Scores, read: npt.NDArray[np.bool_]) -> Scores:
    """(B, K) fused scores where an item was read; elsewhere those of retrieval, shifted to stay below them.

    Places that were not read keep their order, by falling scores or by equal ones.
    """
    lowest = np.where(read, fused, np.inf).min(axis=1, initial=np.inf)
    top = np.where(read | ~np.isfinite(retrieval), -np.inf, retrieval).max(axis=1, initial=-np.inf)
    shifts = np.isfinite(lowest) & np.isfinite(top)
    shift = np.where(shifts, lowest - np.where(shifts, top, 0), 0)
    # Rounding may lift the first of the rest over the last that was read, and who sorts by score would swap them.
    below = np.minimum(retrieval + shift[:, None], np.nextafter(lowest, np.float32(-np.inf))[:, None])
    return np.where(read, fused, below).astype(np.float32)
