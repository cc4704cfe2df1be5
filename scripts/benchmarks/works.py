"""The works by name, and what they are measured on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks import decoder, first_epoch, ir_decoder, memory, sweep, test_image, train_step, tune_step
from scripts.benchmarks.duel import BenchmarkError, Comparison, compare, duel
from scripts.benchmarks.peer_duel import duel_with_peer
from scripts.benchmarks.scene import write_scenes
from scripts.benchmarks.settings import Settings
from scripts.benchmarks.weights import write_weights

SIZE_HW = (1365, 2048)
OBJECTS = 12
CROWD = 500
IMAGES = {"train": 6, "val": 1, "test": 2}
SWEEP_IMAGES = {"train": 4, "val": 1}
CROWD_IMAGES = {"train": 1, "val": 1}

Rows = dict[str, Comparison]


@dataclass(slots=True)
class Workshop:
    """Data and weights, made when they are first needed.

    Attributes:
        folder: everything lies below it.
        model: that is measured.
        threads: CPU threads of each side.
        rounds: that count.
        size_hw: of the images, pixels.
        objects: on each image.
        crowd: objects on the image that has very many.
        peer: interpreter of an environment with OTX, whose steps and tests are then measured too.
    """

    folder: Path
    model: str
    threads: int
    rounds: int
    size_hw: tuple[int, int] = SIZE_HW
    objects: int = OBJECTS
    crowd: int = CROWD
    peer: Path | None = None
    _made: dict[str, Path] = field(default_factory=dict)

    def settings(self, kind: str = "images", images: dict[str, int] | None = None, objects: int = 0) -> Settings:
        """Get settings with data of a kind; without ``images`` those that most works use."""
        if kind not in self._made:
            root = self.folder / kind
            self._made[kind] = write_scenes(
                root, images or IMAGES, size_hw=self.size_hw, objects=objects or self.objects
            )
        if "weights" not in self._made:
            self._made["weights"] = write_weights(self.model, self.folder / f"{self.model}.pt")
        return Settings(self.model, self.folder, self._made[kind], self._made["weights"], self.threads)


def _train_step(shop: Workshop) -> Rows:
    sides = duel("train_step", shop.settings(), ["ours"], shop.rounds, tolerances=train_step.TOLERANCES)
    return {"train_step": sides["ours"], **_against_peer("train_step", shop)}


def _tune_step(shop: Workshop) -> Rows:
    settings, rounds, tolerances = shop.settings(), shop.rounds, tune_step.TOLERANCES
    rows = {}
    for name in ("last_1", "last_2"):
        sides = duel("tune_step", settings, [name], rounds, tolerances=tolerances, plain=f"plain_{name}")
        rows[f"tune_{name}"] = sides[name]
    return rows | {"tune_last_2_memory": memory.measure_tuned(settings)}


def _first_epoch(shop: Workshop) -> Rows:
    sides = duel("first_epoch", shop.settings(), ["ours"], max(1, shop.rounds // 2), tolerances=first_epoch.TOLERANCES)
    return {"first_epoch": sides["ours"]}


def _decoder(shop: Workshop) -> Rows:
    settings, rounds, tolerances = shop.settings(), shop.rounds, decoder.TOLERANCES
    both = duel("decoder", settings, ["ours"], rounds, tolerances=tolerances)
    forward = duel("decoder", settings, ["ours_forward"], rounds, tolerances=tolerances, plain="plain_forward")
    return {"decoder": both["ours"], "decoder_forward": forward["ours_forward"]}


def _ir_decoder(shop: Workshop) -> Rows:
    settings, rounds, tolerances = shop.settings(), shop.rounds, ir_decoder.TOLERANCES
    whole = duel("ir_decoder", settings, ["ours"], rounds, tolerances=tolerances)
    low = duel("ir_decoder", settings, ["ours_low_res"], rounds, tolerances=tolerances, plain="plain_low_res")
    return {"ir_decoder": whole["ours"], "ir_decoder_low_res": low["ours_low_res"]}


def _test_image(shop: Workshop) -> Rows:
    names = ["ours", "ours_ir", "ours_int8"]
    sides = duel("test_image", shop.settings(), names, shop.rounds, tolerances=test_image.TOLERANCES)
    rows = {name.replace("ours", "test_image"): row for name, row in sides.items()}
    return rows | _against_peer("test_image", shop)


def _against_peer(work: str, shop: Workshop) -> Rows:
    if shop.peer is None:
        return {}
    return {f"{work}_peer": duel_with_peer(shop.peer, work, shop.settings(), shop.rounds)}


def _sweep(shop: Workshop) -> Rows:
    return sweep.measure(shop.settings("sweep_images", SWEEP_IMAGES), sum(SWEEP_IMAGES.values()))


def _memory(shop: Workshop) -> Rows:
    crowd = shop.settings("crowd", CROWD_IMAGES, shop.crowd).data
    return memory.measure(shop.settings(), crowd)


def _data(shop: Workshop) -> Rows:
    """Time annotations that were read before, against reading the data set's own files each time."""
    del shop
    try:
        from scripts.benchmarks.data import measure_data
    except ImportError as error:
        raise BenchmarkError(f"data: scripts/benchmarks/data.py cannot be used here ({error})") from None
    rows = {f"data_{row['images']}": row for row in measure_data()}
    return {
        name: compare(
            row["kept_s"],
            row["first_s"],
            unit="s",
            checked=f"peaks {row['first_peak_mb']} and {row['kept_read_peak_mb']} MiB, {row['objects']} objects",
        )
        for name, row in rows.items()
    }


def _click(shop: Workshop) -> Rows:
    try:
        from scripts.benchmarks.click import measure_clicks
    except ModuleNotFoundError as error:
        raise BenchmarkError(f"click: needs {error.name}: pip install 'vpexp[demo]'") from None
    return measure_clicks(shop.settings(), shop.rounds)


WORKS: dict[str, Callable[[Workshop], Rows]] = {
    "train_step": _train_step,
    "tune_step": _tune_step,
    "first_epoch": _first_epoch,
    "decoder": _decoder,
    "ir_decoder": _ir_decoder,
    "test_image": _test_image,
    "sweep": _sweep,
    "memory": _memory,
    "data": _data,
    "click": _click,
}
