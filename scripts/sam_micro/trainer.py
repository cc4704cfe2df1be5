"""The training of sam_micro: what learns, its slow average, and how both are kept, so that a training goes on to the same numbers."""

import copy
import json
import math
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from scripts.sam_micro.held_out import HeldOut, describe
from scripts.sam_micro.scenes import Drawings, Photos, ViewMaker
from scripts.sam_micro.step import Batch, Hints, build_batch, compute_loss
from vpexp.devices import find_native_bfloat16
from vpexp.files import replacing
from vpexp.inference.load import load_model
from vpexp.models.registry import STRIDE, build_sam_micro
from vpexp.models.sam import Sam
from vpexp.models.tiny_vit import TinyViTBlock
from vpexp.models.weights import save_weights

SIZE = 256
SMALL_SIZE = 128
FREEZE_NORMS_AT = 0.4
WARM_UP_STEPS = 100
DECAY_FROM = 0.8
"""Share of the steps after which the learning rate falls, to 0 at the end, as a cosine does."""
HINTS_SHARE = 0.3
"""Of the steps, that the encoder learns from the auxiliary head alone, at a smaller price."""
AVERAGE = 0.998


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says.

    Attributes:
        output: the weights; state, curve and overlays lie beside them.
        start: ``packaged``, ``nothing`` or a file of weights.
        photos: a data set of photographs; None: drawn scenes alone.
        photo_share: of the images of a step.
        whole_share: of the views that show all of an image, as tests do; the others are cut around an object.
        scenes: shares of the drawn scenes.
        steps: of the whole training.
        small_share: of the steps, the first ones, at 128 px: a quarter of the price.
        images: of a step.
        objects: of an image.
        learning_rate: at most.
        measure_every: steps from one held-out table to the next; the state is kept then.
        seed: of everything that is drawn.
        threads: of the CPU.
        device: ``cpu`` or ``cuda``.
    """

    output: Path
    start: str
    photos: Path | None
    photo_share: float
    whole_share: float
    scenes: dict[str, float]
    steps: int
    small_share: float
    images: int
    objects: int
    learning_rate: float
    measure_every: int
    seed: int
    threads: int
    device: str


class MicroTrainer:
    """The model, its slow average, the optimizer, and how far the training has come."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.computes_bfloat16 = find_native_bfloat16(self.device) is not None
        photos = Photos(settings.photos) if settings.photos else None
        drawings = Drawings(settings.seed, settings.scenes)
        self.views = ViewMaker(drawings, photos, settings.photo_share, settings.whole_share, settings.objects)
        self.held_out = HeldOut(settings.photos, settings.output.parent)
        self.sam = build_start(settings.start).to(self.device)
        self.frozen = settings.start != "nothing"
        self.hints = Hints(self.sam.embedding_channels, len(photos.categories) if photos else 0).to(self.device)
        self.average = copy.deepcopy(self.sam)
        self.parameters = [*self.sam.parameters(), *self.hints.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.learning_rate, weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        self.state_path = settings.output.with_suffix(".state")
        self.is_asked_to_stop = False
        self.pool = ThreadPoolExecutor(1)
        self.next_batch: Future[Batch] | None = None

    def train(self) -> None:
        """Train to the last step, or until the process is asked to end; the state is kept either way."""
        self._load_state()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note_stop)
        console = Console(soft_wrap=True)
        seen: dict[str, float] = {}
        while self.step < self.settings.steps and not self.is_asked_to_stop:
            started = time.monotonic()
            found = self._make_step()
            self.seconds += time.monotonic() - started
            seen = {name: 0.98 * seen.get(name, value) + 0.02 * value for name, value in found.items()}
            if self.step % 20 == 0:
                numbers = "  ".join(f"{name} {value:.3f}" for name, value in seen.items())
                pace = self.seconds / self.step
                console.print(
                    f"step {self.step}  {self.seconds / 60:.1f} min  {pace:.2f} s a step  {numbers}", style="dim"
                )
            if self.step % self.settings.measure_every == 0 or self.step == self.settings.steps:
                self._keep(console)
        self.pool.shutdown(cancel_futures=True)
        self._save_state()
        save_weights(self.average.cpu(), self.settings.output, torch.float16)

    def _note_stop(self, *_: Any) -> None:
        self.is_asked_to_stop = True

    def _make_step(self) -> dict[str, float]:
        """Make one step, which depends on the seed, the step's number and the state alone."""
        self._choose_modes(self.step / self.settings.steps)
        batch = self._take_batch()
        resize(self.sam, batch.images_B3SS.shape[-1])
        rng = np.random.default_rng([self.settings.seed, 2, self.step])
        decodes = rng.random() >= HINTS_SHARE
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.computes_bfloat16):
            loss, found = compute_loss(self.sam, self.hints, batch, rng, decodes=decodes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * compute_rate(self.step, self.settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return ({"loss": float(loss.detach())} if decodes else {}) | found

    def _take_batch(self) -> Batch:
        """Take this step's batch, and have the next one drawn while this one is learnt from."""
        waiting = self.next_batch or self.pool.submit(self._draw, self.step)
        batch = waiting.result().to(self.device)
        self.next_batch = self.pool.submit(self._draw, self.step + 1)
        return batch

    def _draw(self, step: int, stream: int = 1) -> Batch:
        """Draw the views of a step."""
        rng = np.random.default_rng([self.settings.seed, stream, step])
        size = SMALL_SIZE if step < self.settings.small_share * self.settings.steps else SIZE
        return build_batch([self.views.make(rng, size) for _ in range(self.settings.images)], size, rng)

    def _choose_modes(self, share: float) -> None:
        """Freeze the statistics of the batch norms for good: from the start, or after a part of a training from nothing."""
        self.sam.train()
        if share >= FREEZE_NORMS_AT and not self.frozen:
            self._recalibrate_norms()
            self.average.load_state_dict(self.sam.state_dict())
            self.frozen = True
        for module in self.sam.modules() if self.frozen else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    @torch.no_grad()
    def _recalibrate_norms(self) -> None:
        """Compute the statistics of the batch norms anew, as plain averages over 24 steps' images."""
        norms = [module for module in self.sam.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        for place in range(24):
            self.sam.encode_image(self._draw(self.step + place, stream=3).images_B3SS.to(self.device))

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(AVERAGE, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.state_dict().values(), self.sam.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    def _keep(self, console: Console) -> None:
        """Keep state and weights; measure and draw the averaged weights."""
        self._save_state()
        resize(self.average, SIZE)
        save_weights(self.average, self.settings.output, torch.float16)
        found = self.held_out.measure(self.average.eval(), overlays=f"step_{self.step}")
        line = {"step": self.step, "minutes": round(self.seconds / 60, 1)} | found
        with self.settings.output.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        console.print(describe(found, f"held out, after {self.step} steps"))

    def _list_parts(self) -> dict[str, Any]:
        return {"sam": self.sam, "average": self.average, "hints": self.hints, "optimizer": self.optimizer}

    def _save_state(self) -> None:
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._list_parts().items()}
        with replacing(self.state_path) as draft:
            torch.save(state | {"step": self.step, "seconds": self.seconds, "frozen": self.frozen}, draft)

    def _load_state(self) -> None:
        """Go on where an earlier call stopped, if there was one."""
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        for name, part in self._list_parts().items():
            part.load_state_dict(state[name])
        self.step, self.seconds, self.frozen = state["step"], state["seconds"], state["frozen"]


def compute_rate(step: int, steps: int) -> float:
    """Compute the learning rate as a share of the highest: warm-up, a level, and a cosine down to 0."""
    share = step / steps
    fall = 1.0 if share < DECAY_FROM else 0.5 + 0.5 * math.cos(math.pi * (share - DECAY_FROM) / (1 - DECAY_FROM))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * fall


def resize(sam: Sam, size: int) -> None:
    """Set the model's input size: the positional encoding is normalised and carries over."""
    sam.prompt_encoder.image_size = size
    sam.prompt_encoder.embedding_size = size // STRIDE


def build_start(start: str) -> Sam:
    """Build the model as training starts."""
    if start == "packaged":
        return load_model("sam_micro")
    sam = build_sam_micro(SIZE)
    if start == "nothing":
        prepare_decoder(sam)
    else:
        take_over(sam, load_file(start))
    return sam


def prepare_decoder(sam: Sam) -> None:
    """Start the decoder so that tokens attend to the image places that they name: without it training stalls."""
    with torch.no_grad():
        for name, module in sam.mask_decoder.transformer.named_modules():
            if name.endswith(("cross_attn_token_to_image", "final_attn_token_to_image")):
                module.q_proj.weight.mul_(3.5)
                module.k_proj.weight.copy_(module.q_proj.weight)
                module.q_proj.bias.zero_()
                module.k_proj.bias.zero_()
        for hypernetwork in sam.mask_decoder.output_hypernetworks_mlps:
            hypernetwork.layers[-1].weight.mul_(4)
        for embedding in sam.prompt_encoder.point_embeddings:
            embedding.weight.mul_(0.5)


def take_over(sam: Sam, state: dict[str, Tensor]) -> None:
    """Load the weights of a model with smaller windows and fewer blocks; what it has not starts as if it were not there.

    The bias of a distance that a smaller window did not have is that of the farthest that it had. A new block passes its input on.
    """
    own = sam.state_dict()
    for name, value in state.items():
        own[name] = value.float()
        if name.endswith("attention_biases"):
            old, new = math.isqrt(value.shape[1]), sam.get_parameter(name).shape[1]
            near = torch.arange(math.isqrt(new)).clamp(max=old - 1)
            own[name] = own[name].unflatten(1, (old, old))[:, near][:, :, near].flatten(1)
    sam.load_state_dict(own)
    for name, module in sam.named_modules():
        if isinstance(module, TinyViTBlock) and f"{name}.attn.qkv.weight" not in state:
            with torch.no_grad():
                for part in (module.attn.proj, module.mlp.fc2):
                    part.weight.zero_()
                    part.bias.zero_()
                module.local_conv.c.weight.zero_()
                module.local_conv.c.weight[:, :, 1, 1] = 1
                module.local_conv.bn.weight.fill_(math.sqrt(1 + module.local_conv.bn.eps))
