"""COCO mask AP and AR, scored by the model's own IoU estimate.

Legend: N objects of one image, T IoU thresholds, R recalls, K classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area, compute_box

SIZES = ("small", "medium", "large")
"""Of COCO, by area in pixels of the original image: small < 32^2 <= medium < 96^2 <= large."""
# COCOeval's summary, in its order.
SUMMARY_NAMES = (
    "map",
    "map_50",
    "map_75",
    "map_small",
    "map_medium",
    "map_large",
    "mar_1",
    "mar_10",
    "mar_100",
    "mar_small",
    "mar_medium",
    "mar_large",
)
COCO_LIMIT = 100
LOWEST_SCORE = float(np.finfo(np.float32).min)


class MaskAveragePrecision:
    """COCO mask AP (Lin et al. 2014) by ``faster-coco-eval``: the numbers of pycocotools, faster.

    Values are in [0, 1]; NaN where no annotated object falls into the class or size.

    Args:
        categories: class names.
        records: of ``update``, by several processes that had taken turns. Predictions of one score rank in the order of
            their images, so that order is made again.
        limit: so many predictions of an image and class count, the best; COCO's own is 100. Recall is named by it:
            ``mar_100``.
    """

    def __init__(
        self, categories: Sequence[str], records: Iterable[dict[str, Any]] = (), *, limit: int = COCO_LIMIT
    ) -> None:
        self.categories = tuple(categories)
        self.limit = limit
        self.records = sorted(records, key=lambda record: record["place"])  # stable: of one place, by rank

    def update(
        self,
        predicted: Sequence[Rle],
        scores_N: NDArray[np.float32],
        annotated: Sequence[Rle],
        labels_N: NDArray[np.int64],
        place: int | None = None,
        *,
        predicted_labels_K: NDArray[np.int64] | None = None,
    ) -> None:
        """Add one image.

        Args:
            predicted: predicted masks as RLE.
            scores_N: predicted IoU; NaN, from a model that diverged, ranks last.
            annotated: the objects' masks as RLE.
            labels_N: class of each object.
            place: of the image among those that this process sees, damaged ones counted; None: the next.
            predicted_labels_K: class of each prediction; None: there is one for each object, and of its class.
        """
        predicted_labels = labels_N if predicted_labels_K is None else predicted_labels_K
        self.records.append(
            {
                "place": len(self.records) if place is None else place,
                "predicted": list(predicted),
                "scores": np.nan_to_num(scores_N, nan=LOWEST_SCORE).tolist(),
                "annotated": list(annotated),
                "labels": [int(label) for label in labels_N],
                "predicted_labels": [int(label) for label in predicted_labels],
            }
        )

    def compute(self) -> dict[str, float | dict[str, float]]:
        """Compute the twelve COCO numbers, and ``map_per_class`` and ``mar_100_per_class`` by class name."""
        from faster_coco_eval import COCO, COCOeval_faster

        most = f"mar_{self.limit}"
        if not any(record["labels"] for record in self.records):
            return {most if name == "mar_100" else name: float("nan") for name in SUMMARY_NAMES}
        truth, predictions = self._build_coco()
        evaluator = COCOeval_faster(COCO(truth), predictions, iouType="segm", print_function=_discard)
        evaluator.params.maxDets = [1, 10, self.limit]
        evaluator.evaluate()
        evaluator.accumulate()
        # precision: [T thresholds, R recalls, K classes, A areas, M limits]; recall: [T, K, A, M].
        precision_TRKA = np.asarray(evaluator.eval["precision"])[..., 2]
        recall_TKAM = np.asarray(evaluator.eval["recall"])
        parts = {
            "map": precision_TRKA[..., 0],
            "map_50": precision_TRKA[0, ..., 0],
            "map_75": precision_TRKA[5, ..., 0],
            **{f"map_{size}": precision_TRKA[..., place] for place, size in enumerate(SIZES, start=1)},
            "mar_1": recall_TKAM[..., 0, 0],
            "mar_10": recall_TKAM[..., 0, 1],
            most: recall_TKAM[..., 0, 2],
            **{f"mar_{size}": recall_TKAM[..., place, 2] for place, size in enumerate(SIZES, start=1)},
        }
        result: dict[str, float | dict[str, float]] = {name: _mean_valid(values) for name, values in parts.items()}
        present = sorted({label for record in self.records for label in record["labels"]})
        result["map_per_class"] = {
            self.categories[label]: _mean_valid(precision_TRKA[:, :, place, 0]) for place, label in enumerate(present)
        }
        result[f"{most}_per_class"] = {
            self.categories[label]: _mean_valid(recall_TKAM[:, place, 0, 2]) for place, label in enumerate(present)
        }
        return result

    def _build_coco(self) -> tuple[dict[str, Any], Any]:
        annotations: list[dict[str, Any]] = []
        predictions: list[dict[str, Any]] = []
        present = sorted({label for record in self.records for label in record["labels"]})
        for image_id, record in enumerate(self.records, start=1):
            for rle, label in zip(record["annotated"], record["labels"], strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label,
                        "segmentation": _to_text(rle),
                        "area": compute_area(rle),
                        "bbox": _to_xywh(rle),
                        "iscrowd": 0,
                    }
                )
            for rle, score, label in zip(
                record["predicted"], record["scores"], record["predicted_labels"], strict=True
            ):
                predictions.append(
                    {
                        "image_id": image_id,
                        "category_id": label,
                        # No bbox beside it: COCO would take the box's area for the mask's, and sort sizes by it.
                        "segmentation": _to_text(rle),
                        "score": score,
                    }
                )
        truth = {
            "images": [_describe_image(image_id, record) for image_id, record in enumerate(self.records, start=1)],
            "annotations": annotations,
            "categories": [{"id": label, "name": self.categories[label]} for label in present],
        }
        from faster_coco_eval import COCO

        return truth, COCO(truth).loadRes(predictions)


def _describe_image(image_id: int, record: dict[str, Any]) -> dict[str, int]:
    height, width = record["annotated"][0]["size"] if record["annotated"] else (1, 1)
    return {"id": image_id, "height": int(height), "width": int(width)}


def _to_text(rle: Rle) -> Rle:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _to_xywh(rle: Rle) -> list[float]:
    left, top, right, bottom = (float(value) for value in compute_box(rle))
    return [left, top, right - left, bottom - top]


def _mean_valid(values: NDArray[np.float64]) -> float:
    valid = values[values > -1]  # COCOeval says -1 where nothing was annotated
    return float(valid.mean()) if valid.size else float("nan")


def _discard(*_: object) -> None:
    """Take COCOeval's printed summary, which vpexp shows in its own table."""
