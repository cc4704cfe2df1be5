"""The training of the packaged model, ``scripts/train_sam_micro``."""
