"""Testing as a user of the original packages writes it: masks at original size, pixel metrics in torch, COCO's AP."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from scripts.benchmarks.plain_data import PlainImages, PlainSample
from scripts.benchmarks.plain_model import PlainSam
from scripts.benchmarks.plain_train import upscale


class PlainTester:
    """Evaluates image by image."""

    def __init__(self, sam: PlainSam, images: PlainImages) -> None:
        self.sam = sam
        self.images = images
        self.overlap = self.total = 0
        self.results: list[dict[str, Any]] = []

    @torch.no_grad()
    def update(self, index: int) -> None:
        """Read an image, encode it, decode its objects' boxes, and count."""
        sample = self.images[index]
        embeddings_1CHW = self.sam.encode(sample.image_3SS[None])
        ((low_res_N1hw, iou_N),) = self.sam.decode(embeddings_1CHW, [sample.boxes_N4])
        predicted_NHW = upscale(low_res_N1hw, self.sam, sample) > 0
        annotated_NHW = torch.from_numpy(sample.masks_NHW) > 0
        self.overlap += int((predicted_NHW & annotated_NHW).sum())
        self.total += int(predicted_NHW.sum() + annotated_NHW.sum())
        self._keep(index, sample, predicted_NHW.numpy(), iou_N.numpy())

    def compute(self) -> dict[str, float]:
        """Compute F1 over all pixels and the mean AP of masks."""
        from faster_coco_eval import COCO, COCOeval_faster

        seen = sorted({result["image_id"] for result in self.results})
        truth = COCO(self.images.coco.dataset)
        evaluator = COCOeval_faster(truth, truth.loadRes(self.results), iouType="segm", print_function=lambda *_: None)
        evaluator.params.imgIds = seen
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        return {"f1": 2 * self.overlap / max(self.total, 1), "map": float(evaluator.stats[0])}

    def _keep(self, index: int, sample: PlainSample, predicted_NHW: Any, scores_N: Any) -> None:
        for mask_HW, score, label in zip(predicted_NHW, scores_N, sample.labels, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            self.results.append(
                {
                    "image_id": self.images.ids[index],
                    "category_id": label,
                    "segmentation": rle,
                    "score": float(score),
                }
            )
