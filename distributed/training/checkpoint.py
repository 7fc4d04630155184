"""Checkpoints of a training: weights and optimiser as safetensors, all else as JSON. No pickle.

OUT/checkpoints/e0003-r00001920-a0001.safetensors   tensors
OUT/checkpoints/e0003-r00001920-a0001.json          what else there is, and the hash of the tensors; written last
OUT/checkpoints/outcome/                            the bundle that the training ended with, until it is published

The name says how far the training was: epochs done, rows done of the next one, and the lease's attempt, so that a
process of a run that was taken over writes over nothing. A checkpoint counts when its JSON is there and fits. The two
newest are kept, one more should the newest turn out damaged, and the one after the best epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from distributed.storage.location import Location, delete_files, delete_folders, list_files, read_bytes, write_bytes
from model.errors import DamagedError, InputError
from model.json_text import parse_json

FOLDER = "checkpoints"
OUTCOME = "outcome"
_NAME = re.compile(r"e(?P<epoch>\d+)-r(?P<rows>\d+)-a(?P<attempt>\d+)\.json")
_KEPT = 2
_MODEL, _OPTIMIZER = "model.", "optimizer."

_log = logging.getLogger("lossight")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Progress of a training: everything but its tensors, as JSON values."""

    epoch: int = 0  # epochs that are done
    rows: int = 0  # rows of all ranks that are done of the next one: a number that holds for any number of ranks
    sums: dict[str, float] = field(default_factory=dict)  # of the rows that are done
    history: tuple[dict[str, Any], ...] = ()  # one entry an epoch
    best_loss: float | None = None  # on the validation rows
    best_epoch: int | None = None
    best: str | None = None  # name of the checkpoint after it
    scaler: dict[str, Any] | None = None  # of float16's gradients


def checkpoint_name(epoch: int, *, rows: int, attempt: int) -> str:
    """The name of a checkpoint, without an ending."""
    return f"e{epoch:04d}-r{rows:08d}-a{attempt:04d}"


def save_checkpoint(
    out: Location, state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, *, attempt: int
) -> None:
    """Writes a checkpoint of the training at `out`, whole, and removes older ones of this attempt and earlier ones."""
    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()} | _dump_optimizer(optimizer)
    data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    name = checkpoint_name(state.epoch, rows=state.rows, attempt=attempt)
    record = {"sha256": hashlib.sha256(data).hexdigest(), "state": asdict(state)}
    folder = out.join(FOLDER)
    write_bytes(folder.join(f"{name}.safetensors"), data)
    write_bytes(folder.join(f"{name}.json"), json.dumps(record).encode())
    ours = [old for old in _names(out) if int(old.rpartition("-a")[2]) <= attempt]
    for old in ours[_KEPT:]:
        if old != state.best:
            delete_files(folder, [f"{old}.json", f"{old}.safetensors"])


def load_checkpoint(
    out: Location, model: nn.Module, optimizer: torch.optim.Optimizer, *, device: torch.device
) -> TrainState:
    """Puts the newest whole checkpoint into model and optimiser, and returns its state; a new state if there is none.

    One that is damaged, or whose best epoch is gone, is passed over with a warning.
    """
    names = _names(out)
    for name in names:
        found = _read(out, name)
        if found is None or (found[0].best is not None and found[0].best not in names):
            _log.warning("%s: checkpoint %s is damaged; taking the one before", out.uri, name)
            continue
        state, tensors = found
        model.load_state_dict(_below(_MODEL, tensors))
        _load_optimizer(optimizer, _below(_OPTIMIZER, tensors), device)
        return state
    return TrainState()


def load_weights(out: Location, name: str, model: nn.Module) -> None:
    """Puts the weights of a checkpoint into a model.

    Raises:
        DamagedError: they are not what was written.
    """
    found = _read(out, name)
    if found is None:
        raise DamagedError(f"{out.join(FOLDER, name).uri}: expected the checkpoint of the best epoch, found damage")
    model.load_state_dict(_below(_MODEL, found[1]))


def delete_checkpoints(out: Location) -> None:
    """Removes them all, and what a killed writer left."""
    delete_folders(out, prefix=FOLDER)


def _names(out: Location) -> list[str]:
    """Names of all checkpoints that seem whole, the newest first."""
    try:
        files = list_files(out.join(FOLDER), suffix=".json")
    except InputError:  # none yet; stores differ in whether an empty folder is there
        return []
    found = [match for file in files if (match := _NAME.fullmatch(file.base_name))]
    found.sort(key=lambda match: [int(match[part]) for part in ("epoch", "rows", "attempt")], reverse=True)
    return [match[0].removesuffix(".json") for match in found]


def _read(out: Location, name: str) -> tuple[TrainState, dict[str, Tensor]] | None:
    """None where it is damaged, or half gone."""
    folder = out.join(FOLDER)
    try:
        record = parse_json(read_bytes(folder.join(f"{name}.json")))
        data = read_bytes(folder.join(f"{name}.safetensors"))
        if hashlib.sha256(data).hexdigest() != record["sha256"]:
            return None
        fields = record["state"]
        fields["history"] = tuple(fields["history"])
        return TrainState(**fields), load_tensors(data)
    except (InputError, ValueError, KeyError, TypeError):
        return None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _dump_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state: tensors by parameter and name. Rates are no state: they follow from the progress."""
    state = optimizer.state_dict()["state"]
    return {f"{_OPTIMIZER}{index}.{name}": tensor for index, values in state.items() for name, tensor in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        # PyTorch keeps the step count on the CPU, whatever the parameter's device.
        state.setdefault(int(index), {})[name] = tensor if name == "step" else tensor.to(device)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
