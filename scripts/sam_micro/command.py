"""Train sam_micro, the small SAM that comes with vpexp, on photographs and drawn scenes.

    .venv/bin/python scripts/train_sam_micro --photos <a data set> --steps 5000          # from the packaged weights
    .venv/bin/python scripts/train_sam_micro --photos <a data set> --start nothing       # from random weights
    .venv/bin/python scripts/train_sam_micro --photos <a data set> --device cuda --images 64 --learning-rate 8e-4

The photographs are a data set in any format that vpexp reads, with splits train and val. The state is kept beside the output
every few minutes, and when the process is interrupted; the same command goes on from there, to the same numbers.
"""

import argparse
from pathlib import Path

from scripts.sam_micro.trainer import MicroTrainer, Settings


def parse_shares(text: str) -> dict[str, float]:
    """Read ``shapes=0.8,vineyard=0.2``."""
    return {name: float(share) for name, _, share in (part.partition("=") for part in text.split(","))}


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/sam_micro/sam_micro.safetensors"))
    parser.add_argument("--start", default="packaged", help="packaged, nothing, or a file of weights")
    parser.add_argument(
        "--photos", type=Path, help="folder of a data set of photographs; without it, drawn scenes alone"
    )
    parser.add_argument("--photo-share", type=float, default=0.65, help="of the images of a step")
    parser.add_argument("--whole-share", type=float, default=0.35, help="of the views that show all of an image")
    parser.add_argument("--scenes", type=parse_shares, default="shapes=0.65,vineyard=0.35")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--small-share", type=float, default=0.25, help="of the steps, the first ones, at 128 px")
    parser.add_argument("--images", type=int, default=8, help="of a step")
    parser.add_argument("--objects", type=int, default=6, help="of an image, at most")
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--measure-every", type=int, default=250, help="steps from one held-out table to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    settings = Settings(**vars(parser.parse_args()))
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    MicroTrainer(settings).train()
