"""COCO mask AP and AR, scored by the model's own IoU estimate.

Legend: N objects of one image, T IoU thresholds, R recalls, K classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpexp.data.annotations import Rle
from vpexp.data.masks import compute_area, compute_box

# COCOeval's summary, in its order: areas are pixels of the original image, small < 32^2 <= medium < 96^2 <= large.
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
LOWEST_SCORE = float(np.finfo(np.float32).min)


class MaskAveragePrecision:
    """COCO mask AP (Lin et al. 2014) by ``faster-coco-eval``: the numbers of pycocotools, faster.

    At most 100 predictions an image and class count, as COCO defines it. Values are in [0, 1]; NaN where no annotated
    object falls into the class or size.

    Args:
        categories: class names.
        records: of ``update``, by several processes that had taken turns. Predictions of one score rank in the order of
            their images, so that order is made again.
    """

    def __init__(self, categories: Sequence[str], records: Iterable[dict[str, Any]] = ()) -> None:
        self.categories = tuple(categories)
        self.records = sorted(records, key=lambda record: record["place"])  # stable: of one place, by rank

    def update(
        self,
        predicted: Sequence[Rle],
        scores_N: NDArray[np.float32],
        annotated: Sequence[Rle],
        labels_N: NDArray[np.int64],
        place: int | None = None,
    ) -> None:
        """Add one image: a prediction for each of its annotated objects.

        Args:
            predicted: predicted masks as RLE.
            scores_N: predicted IoU; NaN, from a model that diverged, ranks last.
            annotated: the objects' masks as RLE.
            labels_N: class of each object, and so of its prediction.
            place: of the image among those that this process sees, damaged ones counted; None: the next.
        """
        self.records.append(
            {
                "place": len(self.records) if place is None else place,
                "predicted": list(predicted),
                "scores": np.nan_to_num(scores_N, nan=LOWEST_SCORE).tolist(),
                "annotated": list(annotated),
                "labels": [int(label) for label in labels_N],
            }
        )

    def compute(self) -> dict[str, float | dict[str, float]]:
        """Compute the twelve COCO numbers, and ``map_per_class`` and ``mar_100_per_class`` by class name."""
        from faster_coco_eval import COCO, COCOeval_faster

        if not any(record["labels"] for record in self.records):
            return {name: float("nan") for name in SUMMARY_NAMES}
        truth, predictions = self._build_coco()
        evaluator = COCOeval_faster(COCO(truth), predictions, iouType="segm", print_function=_discard)
        evaluator.params.maxDets = [1, 10, 100]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        numbers = [float(value) for value in np.asarray(evaluator.stats)[: len(SUMMARY_NAMES)]]
        result: dict[str, float | dict[str, float]] = dict(
            zip(SUMMARY_NAMES, [_to_nan(value) for value in numbers], strict=True)
        )
        # precision: [T thresholds, R recalls, K classes, A areas, M limits]; recall: [T, K, A, M].
        precision_TRK = np.asarray(evaluator.eval["precision"])[:, :, :, 0, 2]
        recall_TK = np.asarray(evaluator.eval["recall"])[:, :, 0, 2]
        present = sorted({label for record in self.records for label in record["labels"]})
        result["map_per_class"] = {
            self.categories[label]: _mean_valid(precision_TRK[:, :, place]) for place, label in enumerate(present)
        }
        result["mar_100_per_class"] = {
            self.categories[label]: _mean_valid(recall_TK[:, place]) for place, label in enumerate(present)
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
            for rle, score, label in zip(record["predicted"], record["scores"], record["labels"], strict=True):
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


def _to_nan(value: float) -> float:
    return float("nan") if value < 0 else value  # COCOeval says -1 where nothing was annotated


def _mean_valid(values: NDArray[np.float64]) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _discard(*_: object) -> None:
    """Take COCOeval's printed summary, which vpexp shows in its own table."""
