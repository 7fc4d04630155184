"""Estimators by name: those of the paper, ViTPose, and one's own."""

from __future__ import annotations

from torch import nn

from model.errors import InputError
from model.estimator import Estimator, Layout, probe_layout
from model.hourglass import StackedHourglass, paper_hourglass, small_hourglass
from model.own_estimator import import_estimator, is_own_name
from model.vitpose import VitPose, load_checkpoint, read_checkpoint, vitpose_estimator

_VITPOSE = "vitpose"
# Margins: 1.75 is the paper's at evaluation; a small input can't afford so wide a border.
_BUILT_IN = {
    "hourglass": Estimator(build=paper_hourglass, input_size=256, heatmap_size=64, crop_margin=1.75),
    "hourglass-small": Estimator(build=small_hourglass, input_size=64, heatmap_size=32, crop_margin=1.5),
}


def parse_estimator(named: str) -> tuple[str, str | None]:
    """Name and configuration, as a bundle keeps them, of what a user names.

    Args:
        named: hourglass, hourglass-small, vitpose:FOLDER or package.module:function.

    Raises:
        InputError: it is none of these, or the folder holds no ViTPose.
    """
    kind, _, folder = named.partition(":")
    return (_VITPOSE, read_checkpoint(folder)) if kind == _VITPOSE and folder else (named, None)


def find_estimator(name: str, config: str | None = None) -> Estimator:
    """The estimator of a name and a configuration.

    Raises:
        InputError: there is none of that name, or its package can't be used here.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name == _VITPOSE and config is not None:
        return vitpose_estimator(config)
    if is_own_name(name):
        return import_estimator(name)
    choices = ", ".join([*_BUILT_IN, f"{_VITPOSE}:FOLDER", "package.module:function"])
    raise InputError(f"estimator: expected {choices}, found {name!r}")


def build_estimator(estimator: Estimator, num_keypoints: int, *, name: str) -> nn.Module:
    """A new network.

    Raises:
        InputError: the function of one's own fails, or builds something else.
    """
    try:
        module = estimator.build(num_keypoints)
    except InputError:
        raise
    except Exception as error:  # somebody else's code may raise anything
        said = " ".join(str(error).split())
        raise InputError(f"{name}: can't be built: {type(error).__name__}: {said}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{name}: expected a torch.nn.Module, found {type(module).__name__}")
    return module


def layout_of(module: nn.Module, *, num_keypoints: int, input_size: int, heatmap_size: int, name: str) -> Layout:
    """The layout of what a network puts out.

    Raises:
        InputError: it does not make heatmaps of this size from images of that size.
    """
    expected: str | None = None
    if isinstance(module, StackedHourglass):
        stride = module.config.stem_stride
        expected = f"{stride} * heatmap_size" if input_size != stride * heatmap_size else None
        layout = module.layout(heatmap_size)
    elif isinstance(module, VitPose):
        is_own = (input_size, input_size) == (module.shape.input_size, module.shape.stride * heatmap_size)
        expected = None if is_own else f"{module.shape.input_size} = {module.shape.stride} * heatmap_size"
        layout = module.layout
    else:
        layout = probe_layout(
            module, num_keypoints=num_keypoints, input_size=input_size, heatmap_size=heatmap_size, name=name
        )
    if expected:
        raise InputError(f"{name}: expected input_size {expected}, found {input_size} and {heatmap_size}")
    return layout


def load_first_weights(module: nn.Module, named: str) -> None:
    """Gives a new estimator the weights that training starts from, where what the user named has any.

    Raises:
        InputError: they are not there, or of another network.
    """
    if isinstance(module, VitPose):
        load_checkpoint(module, named.partition(":")[2])
