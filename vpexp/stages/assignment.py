"""What rank 0 tells a follower, a process that trains beside it, and what it is told by one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.distributed.distributed_c10d import Store

from vpexp.data.embedding_store import StoredEmbeddings
from vpexp.data.types import AnnotatedDataset

READY, FAILED, DONE = "ready", "failed", "done"  # what a follower writes into the store, with its rank


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a follower is given: all that rank 0 has found out, so that the two cannot disagree.

    Attributes:
        cfg: the run's complete configuration.
        folder: of the run.
        dataset: as rank 0 has read it.
        stored: where embeddings are read from; None: every image is encoded whenever it is used.
        writable: whether what had to be encoded is put into the store.
        world_size: processes in all.
        port: of rank 0's store.
        threads: of torch, for each process.
    """

    cfg: DictConfig
    folder: Path
    dataset: AnnotatedDataset
    stored: StoredEmbeddings | None
    writable: bool
    world_size: int
    port: int
    threads: int


def name_key(word: str, rank: int) -> str:
    """Name the place in the store where a follower says something."""
    return f"{word}/{rank}"


def name_log(folder: Path, rank: int) -> Path:
    """Name the log of a follower."""
    return folder / f"rank_{rank}.log"


def say_to_rank_0(store: Store, word: str, rank: int, content: dict[str, Any]) -> None:
    """Write what a follower has to say where rank 0 reads it."""
    store.set(name_key(word, rank), json.dumps(content))
