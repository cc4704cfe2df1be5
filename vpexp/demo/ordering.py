"""Which image to label next: one whose proposals are doubtful or few, and that is unlike what is labelled already.

Images are looked at while nobody asks for anything: each is encoded once, and searched once by each model. What was not looked at
yet comes last, by name.

Legend: N images that are looked at, L labelled ones, K proposals, C channels of the embedding.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from vpexp.data.image_files import ImageFileError
from vpexp.demo.proposals import Proposals
from vpexp.demo.session import LabelSession, Model
from vpexp.demo.store import LabelStore
from vpexp.errors import DataError

QUIET = 1.5  # seconds without a request before an image is looked at
PAUSE = 0.3
LEAVING = 30.0  # seconds that the image at hand is given in the end
Rule = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
RULES: dict[str, Rule] = {
    "doubt": lambda doubts_N, _: doubts_N,
    "distance": lambda _, distances_N: distances_N,
    "both": lambda doubts_N, distances_N: _scale(doubts_N) + _scale(distances_N),
}
"""What is expected of images, from how doubtful their proposals are and how far they are from what is labelled."""
DEFAULT = "both"

log = logging.getLogger(__name__)


class Ordering:
    """Orders images that are not labelled.

    Args:
        session: encodes images.
        proposals: what the model proposes for them.
        store: says what is labelled.
        rule: a name in ``RULES``.
    """

    def __init__(self, session: LabelSession, proposals: Proposals, store: LabelStore, rule: str = DEFAULT) -> None:
        self._session, self._proposals, self._store = session, proposals, store
        self._rule = RULES[rule]
        self._features: dict[int, NDArray[np.float64]] = {}
        self._doubts: dict[int, tuple[int, float]] = {}  # with the version of the model
        self._broken: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ordering", daemon=True)

    def list_labelled(self) -> set[int]:
        """List the images that have masks, or are marked as done."""
        known = set(self._store.labels.labelled)
        return {index for index, image in enumerate(self._session.images) if image.name in known}

    def list_next(self) -> list[int]:
        """List the images that are not labelled, those first that promise most."""
        labelled = self.list_labelled()
        left = [index for index in range(len(self._session.images)) if index not in labelled]
        seen = [index for index in left if index in self._features]
        if not seen:
            return left
        doubts_N = np.array([self._doubts.get(index, (0, 0.0))[1] for index in seen])
        distances_N = self._compute_distances(seen, [index for index in labelled if index in self._features])
        order_N = np.argsort(-self._rule(doubts_N, distances_N), kind="stable")
        return [seen[place] for place in order_N.tolist()] + [index for index in left if index not in self._features]

    def look(self, index: int, model: Model) -> None:
        """Look at an image with a model, unless that was done.

        Raises:
            ImageFileError: it cannot be read.
        """
        if index not in self._features:
            map_CEE = model.predictor.read_map(self._session.glance(index))
            self._features[index] = map_CEE.astype(np.float64).mean(axis=(1, 2))
        if model.predictor.instances and self._doubts.get(index, (-1, 0.0))[0] != model.version:
            scores_K = [mask.score or 0.0 for mask in self._proposals.find(index, model)]
            self._doubts[index] = model.version, _compute_doubt(scores_K, self._session.find_threshold(model))

    def start(self) -> None:
        """Look at images in a thread, one after another, while nobody asks for anything."""
        self._thread.start()

    def end(self) -> None:
        """Look at no further image; waits for the one at hand, as no library may be at work when the process ends."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(LEAVING)

    def _work(self) -> None:
        while not self._ended.wait(PAUSE):
            if time.monotonic() - self._session.asked < QUIET:
                continue
            model = self._session.model
            index = self._find_unseen(model)
            if index is None:
                continue
            try:
                self.look(index, model)
            except (ImageFileError, DataError) as error:
                self._broken.add(index)
                log.info("%s is not ordered: %s", self._session.images[index].name, error)

    def _find_unseen(self, model: Model) -> int | None:
        labelled = self.list_labelled()
        for index in range(len(self._session.images)):
            is_known = index in self._features and (
                index in labelled
                or not model.predictor.instances
                or self._doubts.get(index, (-1, 0.0))[0] == model.version
            )
            if not is_known and index not in self._broken:
                return index
        return None

    def _compute_distances(self, indices: Sequence[int], labelled: Sequence[int]) -> NDArray[np.float64]:
        """Compute how far images are from the nearest labelled one, in standard deviations of each channel: [N]."""
        if not labelled:
            return np.zeros(len(indices))
        features_NC = np.stack([self._features[index] for index in indices])
        others_LC = np.stack([self._features[index] for index in labelled])
        spread_C = np.concatenate([features_NC, others_LC]).std(axis=0) + 1e-9
        nearest_N: NDArray[np.float64] = cdist(features_NC / spread_C, others_LC / spread_C).min(axis=1)
        return nearest_N


def _compute_doubt(scores_K: Sequence[float], threshold: float) -> float:
    """Compute how doubtful proposals are, 0 to 1: the mean of how near their scores are to the threshold; 1 where there are none."""
    if not scores_K:
        return 1.0
    reach = max(threshold, 1e-6)
    return float(np.mean([max(0.0, 1 - abs(score - threshold) / reach) for score in scores_K]))


def _scale(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale to 0 to 1."""
    scaled_N: NDArray[np.float64] = (values_N - values_N.min()) / max(float(np.ptp(values_N)), 1e-9)
    return scaled_N
