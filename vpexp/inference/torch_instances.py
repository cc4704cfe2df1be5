"""The prompter and the classifier of a torch model: as parts of a checkpoint, and as what finds objects.

Legend: K boxes or masks, C channels of the embedding, E = S/16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpexp.inference.mask_crops import MaskCrops
from vpexp.inference.predictor import InstanceModel
from vpexp.models.mask_classifier import MaskClassifier
from vpexp.models.prompter import Prompter
from vpexp.models.weights import find_unusable


@dataclass(frozen=True, slots=True)
class InstanceParts:
    """What was learnt beside a decoder, to find and name objects.

    Attributes:
        prompter: in eval mode.
        classifier: in eval mode; None: there is one class.
        labels: class names.
        threshold: lowest score of a mask that is kept.
        max_overlap: of masks whose IoU is higher the better one is kept.
    """

    prompter: Prompter
    classifier: MaskClassifier | None
    labels: tuple[str, ...]
    threshold: float
    max_overlap: float

    def to_content(self) -> dict[str, Any]:
        """Build what a checkpoint holds: tensors and plain values."""
        return {
            "prompter": {"settings": self.prompter.settings, "state": self.prompter.state_dict()},
            "classifier": self.classifier
            and {"settings": self.classifier.settings, "state": self.classifier.state_dict()},
            "labels": list(self.labels),
            "threshold": self.threshold,
            "max_overlap": self.max_overlap,
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> "InstanceParts | None":
        """Build the parts of a checkpoint; None where its prompter is built otherwise, as by another version of vpexp.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the content is not what ``to_content`` builds.
        """
        prompter = Prompter(**content["prompter"]["settings"])
        if content["prompter"]["state"].keys() != prompter.state_dict().keys():
            return None
        prompter.load_state_dict(content["prompter"]["state"])
        classifier = None
        if content["classifier"] is not None:
            classifier = MaskClassifier(**content["classifier"]["settings"])
            classifier.load_state_dict(content["classifier"]["state"])
            classifier.eval()
        for part in (prompter, classifier):
            if part is not None and (unusable := find_unusable(part.state_dict())):
                raise ValueError(unusable)
        labels = tuple(str(label) for label in content["labels"])
        threshold, max_overlap = float(content["threshold"]), float(content["max_overlap"])
        return cls(prompter.eval(), classifier, labels, threshold, max_overlap)

    def build_model(self, device: torch.device) -> InstanceModel:
        """Move the parts to a device, and build what finds objects there."""
        prompter = self.prompter.to(device)

        @torch.no_grad()
        def find_boxes(
            embedding_1CEE: Tensor, image_13SS: NDArray[np.float32]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            boxes_1K4, scores_1K = prompter(embedding_1CEE.to(device).float(), torch.from_numpy(image_13SS).to(device))
            return boxes_1K4[0].cpu().numpy(), scores_1K[0].cpu().numpy()

        if self.classifier is None:
            return InstanceModel(find_boxes, None, self.labels, self.threshold, self.max_overlap)
        classifier = self.classifier.to(device)

        @torch.no_grad()
        def classify(crops: MaskCrops) -> NDArray[np.float32]:
            tensors = torch.from_numpy(crops.crops_K4PP), torch.from_numpy(crops.extents_K2)
            probabilities_KC: NDArray[np.float32] = (
                classifier(*(one.to(device) for one in tensors)).softmax(1).cpu().numpy()
            )
            return probabilities_KC

        return InstanceModel(find_boxes, classify, self.labels, self.threshold, self.max_overlap)
