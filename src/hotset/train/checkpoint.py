"""The state of a run on the drive: written beside, flushed, then renamed, so that there always is a whole one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from hotset.errors import FormatError, StorageError
from hotset.train.memory import is_failed_allocation, memory_for
from hotset.train.parallel import World
from hotset.train.settings import Settings

Compare = Callable[[dict[str, Any], list[str]], None]
_KEPT = 2  # the newest, and the one before in case a drive loses what it had promised to hold
_VERSION = 3


@dataclass(frozen=True, slots=True)
class Place:
    """How far a run is."""

    step: int  # steps done
    drawn: list[int]  # windows drawn from each source
    seconds: float  # spent so far
    pulls: list[tuple[float, float | None, float]]  # of the layers, as the fields of Pull


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, place: Place, settings: Settings, data: list[str], model: Any, optimizers: list[Any]) -> None:
        """Raises StorageError. All processes must call it; the first one writes."""
        weights, states = get_state_dict(model, optimizers, options=WHOLE)
        if self.world.first:
            body = {
                "version": _VERSION,
                "settings": settings.as_json(),
                "data": data,
                "place": asdict(place),
                "model": weights,
                "optimizers": states,
                "random": torch.get_rng_state(),
            }
            self._write(self.folder / f"step-{place.step:08d}.pt", body)
        self.world.wait()

    def _write(self, path: Path, body: dict[str, Any]) -> None:
        part = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(body, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch wraps a full drive in the latter
            part.unlink(missing_ok=True)
            if is_failed_allocation(error):
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise StorageError(f"{path} cannot be written: {reason}; the checkpoints before it are untouched") from None
        for old in (*self.paths()[:-_KEPT], *self.folder.glob("*.partial")):  # of a process that was killed
            old.unlink()

    def load(self, model: Any, optimizers: list[Any], changed: Compare) -> Place | None:
        """Puts the newest state into model and optimizers; None if there is none.

        changed: called with the checkpoint's settings and fingerprints, to refuse them by raising.
        Raises: FormatError if the checkpoint is broken.
        """
        if not (paths := self.paths()):
            return None
        with memory_for(f"the checkpoint {paths[-1]} beside the run's own weights"):
            body = _read(paths[-1])
            changed(body["settings"], body["data"])
            set_state_dict(
                model,
                optimizers,
                model_state_dict=body["model"],
                optim_state_dict=body["optimizers"],
                options=WHOLE,
            )
        torch.set_rng_state(body["random"])
        return Place(**body["place"])

    def clear(self) -> None:
        """Removes all checkpoints."""
        if self.world.first:
            for path in (*self.paths(), *self.folder.glob("*.partial")):
                path.unlink()
        self.world.wait()


WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        body = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if is_failed_allocation(error):
            raise  # the file may be whole
        raise FormatError(
            f"{path} is no whole checkpoint: {str(error).splitlines()[0]}; remove it to go on from the one before"
        ) from None
    if not isinstance(body, dict) or body.get("version") != _VERSION:
        raise FormatError(
            f"{path} was written by another version of hotset; finish the run with that one, or --restart"
        )
    return body
