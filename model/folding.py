"""Batch norms folded into the convolutions before them: the same function for inference, with fewer passes over memory.

Pairs are found by following one image through the network, so that any estimator's are. A norm stays where its input is
no convolution's output, or where something else reads that output too: the first of a pre-activation block's three.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from model.pose_model import PoseModel

_CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d)
_SHAPES = int | torch.Size  # the answer to a question for a tensor's shape, which reads no values


def fold_norms(model: PoseModel) -> PoseModel:
    """A copy without the batch norms that can be folded; it shares all other weights. Both are in evaluation mode.

    Values agree but for rounding: the same sums of other numbers. Without batch norms, the model itself.
    """
    model.eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    weights = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    folded = copy.deepcopy(model, dict[int, Any](weights))
    names = {id(module): name for name, module in folded.named_modules()}
    for conv, norm in _pairs(folded):
        fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
        folded.set_submodule(names[id(conv)], fused)
        folded.set_submodule(names[id(norm)], nn.Identity())
    return folded


def _pairs(model: PoseModel) -> list[tuple[nn.Conv2d | nn.ConvTranspose2d, nn.BatchNorm2d]]:
    """Convolutions whose output goes into one batch norm and nowhere else, and those norms."""
    size = model.spec.input_size
    device = next(model.parameters()).device
    with torch.inference_mode(), _Readers() as readers:
        output = model(torch.zeros((1, size, size, 3), dtype=torch.uint8, device=device))
    readers.note(None, output)
    modules = list(model.modules())
    convs = {id(module.weight): module for module in modules if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)}
    norms = {id(module.running_mean): module for module in modules if isinstance(module, nn.BatchNorm2d)}
    norms.pop(id(None), None)  # those without statistics of their own
    pairs = [(convs.get(conv), norms.get(norm or 0)) for conv, norm in readers.only_norms()]
    return [(conv, norm) for conv, norm in pairs if conv is not None and norm is not None]


class _Readers(TorchFunctionMode):
    """Notes what reads the output of each convolution, while a network computes."""

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[int, tuple[Tensor, int]] = {}  # by id, kept alive: the output, and the id of the weights
        self._readers: dict[int, list[int | None]] = defaultdict(list)  # of an output: a norm's statistics, or None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, _SHAPES):
            self.note(id(args[1]) if func is F.batch_norm else None, [args, kwargs or {}])
        if func in _CONVOLUTIONS:
            self._outputs[id(result)] = (result, id(args[1]))
        return result

    def note(self, reader: int | None, values: Any) -> None:
        """So a reader gets these values: a norm, by the id of its running mean, or None."""
        for tensor in _tensors(values):
            if id(tensor) in self._outputs:
                self._readers[id(tensor)].append(reader)

    def only_norms(self) -> Iterator[tuple[int, int | None]]:
        """The ids of weights and of running means: of convolutions and norms that are used once, and by each other."""
        weights = [weight for _, weight in self._outputs.values()]
        norms = [norm for readers in self._readers.values() for norm in readers]
        for output, (_, weight) in self._outputs.items():
            readers = self._readers[output]
            if len(readers) == 1 and weights.count(weight) == 1 and norms.count(readers[0]) == 1:
                yield weight, readers[0]


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
