"""A whole training run as a user of the original packages writes it: ``python -m scripts.benchmarks.plain_job``.

Reads one line of settings; trains, and validates after every epoch.
"""

import sys

import torch
from torch.utils.data import DataLoader

from scripts.benchmarks.plain_data import PlainImages, collate
from scripts.benchmarks.plain_model import build_plain_sam
from scripts.benchmarks.plain_test import PlainTester
from scripts.benchmarks.plain_train import PlainTrainer
from scripts.benchmarks.settings import read_settings


def main() -> None:
    """Train and validate."""
    settings = read_settings(sys.stdin.readline())
    torch.set_num_threads(settings.threads)
    sam = build_plain_sam(settings.model, settings.weights)
    training = PlainImages(settings.data, "train", sam.image_size, stretch=sam.stretches)
    validation = PlainImages(settings.data, "val", sam.image_size, stretch=sam.stretches)
    trainer = PlainTrainer(sam)
    for epoch in range(settings.epochs):
        losses = [
            trainer.step(samples)
            for samples in DataLoader(training, settings.batch_size, shuffle=True, collate_fn=collate)
        ]
        tester = PlainTester(sam, validation)
        for index in range(len(validation)):
            tester.update(index)
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}, {tester.compute()}")
        torch.save(sam.decoder.state_dict(), settings.folder / "plain_last.pth")


if __name__ == "__main__":
    main()
