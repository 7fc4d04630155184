"""Estimators of one's own: what is offered is built, checked and rebuilt; nothing else that a bundle names runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.bundle import dump_bundle, load_bundle
from model.description import BUNDLE_FILE
from model.errors import BundleError, InputError
from model.estimator import estimator
from model.pose_model import PoseModel, find_estimator, make_spec, parse_estimator
from model.skeleton import COCO, LSP
from model.spec import ModelSpec

HEADER = """
from pathlib import Path
import torch
from torch import nn
import model.estimator
from model.estimator import PoseOutput, estimator

Path(__file__).with_suffix(".ran").touch()


class Two(nn.Module):
    '''Two scales, one stack; with batch norms, whose statistics a probe must not touch.'''

    def __init__(self, num_keypoints):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.BatchNorm2d(8))
        self.coarse = nn.Conv2d(8, 8, 2, stride=2)
        self.heatmaps = nn.Conv2d(8, num_keypoints, 1)

    def forward(self, images):
        fine = self.fine(images)
        return PoseOutput(self.heatmaps(fine)[:, None], (fine, self.coarse(fine)))
"""
GOOD = "@estimator(input_size=64, heatmap_size=16)\ndef two(num_keypoints):\n    return Two(num_keypoints)\n"

NET = "own_poses.net"


def offer(folder: Path, *values: str) -> None:
    """Leaves the metadata that an installed package of such entry points has."""
    info = folder / "own_poses-1.dist-info"
    info.mkdir()
    lines = [f"{number} = {value}\n" for number, value in enumerate(values)]
    (info / "entry_points.txt").write_text("[lossight.estimators]\n" + "".join(lines))


WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Writes a module own_poses.net of a package that offers its `two`, and gives its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("own_poses", "own_poses.net"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(body: str) -> str:
        folder = tmp_path / "own_poses"
        folder.mkdir()
        (folder / "__init__.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
        (folder / "net.py").write_text(HEADER + body)
        offer(tmp_path, f"{NET}:two")
        return "own_poses.net"

    return write


def ran(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("own_poses/*.ran"))


@pytest.mark.parametrize("method", ["ll++", "ll++conv", "keypoint"])
def test_an_offered_function_is_built_at_its_own_sizes(write_module: WriteModule, method: Any) -> None:
    spec = make_spec(f"{write_module(GOOD)}:two", method=method, skeleton=COCO)
    assert (spec.input_size, spec.heatmap_size, spec.crop_margin) == (64, 16, 1.5)
    model = PoseModel(spec)
    prediction = model(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert prediction.heatmaps.shape == (2, 1, 17, 16, 16)
    assert prediction.predicted_loss.shape == (2,)
    assert prediction.embedding.shape == (2, model.embedding_dim) == (2, 8)


def test_the_probe_leaves_the_module_as_it_was_built(write_module: WriteModule) -> None:
    name = f"{write_module(GOOD)}:two"
    torch.manual_seed(0)
    model = PoseModel(make_spec(name, method="ll++", skeleton=LSP))
    torch.manual_seed(0)
    built = find_estimator(name).build(14)
    assert model.estimator.training
    for key, value in built.state_dict().items():
        assert torch.equal(model.estimator.state_dict()[key], value), key


def test_a_bundle_is_rebuilt_by_name(write_module: WriteModule) -> None:
    model = PoseModel(make_spec(f"{write_module(GOOD)}:two", method="ll++conv", skeleton=LSP)).eval()
    files = dump_bundle(model, training={}, metrics={})
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(load_bundle(files).model(pixels).heatmaps, model(pixels).heatmaps)


# A bundle may name anything


def bundle_naming(estimator_name: str) -> dict[str, bytes]:
    files = dump_bundle(PoseModel(make_spec("hourglass-small", method="ll++", skeleton=LSP)), training={}, metrics={})
    description = json.loads(files[BUNDLE_FILE])
    description["spec"]["estimator"] = estimator_name
    return {**files, BUNDLE_FILE: json.dumps(description).encode()}


def refusal(estimator_name: str) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle_naming(estimator_name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:exec", "subprocess:call", "this:d", "torch.hub:load", "__main__:main", "far.away:net"],
)
def test_what_no_package_offers_is_never_imported_nor_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place).name != "site"])  # that of the tests
    assert f"{name}: expected an entry point 'lossight.estimators' of an installed package, found none" in refusal(name)
    assert "this" not in sys.modules  # it prints when it is imported


@pytest.mark.parametrize("function", ["three", "Two"])
def test_a_module_does_not_run_for_a_function_that_is_not_offered(
    write_module: WriteModule, tmp_path: Path, function: str
) -> None:
    assert "of an installed package, found own_poses.net:two, tiny_poses:tiny" in refusal(
        f"{write_module(GOOD)}:{function}"
    )
    assert ran(tmp_path) == []


def test_an_offered_one_runs_its_module_and_the_package_around_it(write_module: WriteModule, tmp_path: Path) -> None:
    find_estimator(f"{write_module(GOOD)}:two")
    assert ran(tmp_path) == ["__init__.ran", "net.ran"]


@pytest.mark.parametrize("name", ["vit", "hourglas", "a.b:", ":f", "a..b:f", "../x:f", "vitpose", "vitpose:", ""])
def test_names_of_no_estimator_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(InputError, match=r"expected hourglass, hourglass-small, vitpose:FOLDER, package\.module:func"):
        find_estimator(*parse_estimator(name))


# One's own code may fail in any way


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import nowhere\n" + GOOD, r"own_poses\.net:two: can't be imported: ModuleNotFoundError"),
        ("raise SyntaxError('a\\nb')\n" + GOOD, r"can't be imported: SyntaxError: a b"),
        (GOOD.replace("def two", "def one"), "can't be imported: AttributeError"),
        (GOOD.replace("heatmap_size=16", "heatmap_size=2"), "expected 3 <= heatmap_size <= input_size"),
        (GOOD + "two = 3\n", r"expected what @estimator\(...\) makes, found int"),
        (GOOD.replace("Two(num_keypoints)", "1 / 0"), "can't be built: ZeroDivisionError"),
        (GOOD.replace("Two(num_keypoints)", "3"), r"expected a torch\.nn\.Module, found int"),
        (
            GOOD.replace("Two(num_keypoints)", "nn.Conv2d(1, 14, 1)"),
            r"expected to take images \(B, 3, 64, 64\), found R",
        ),
        (GOOD.replace("Two(num_keypoints)", "nn.Identity()"), "expected PoseOutput with heatmaps .* found Tensor"),
        (GOOD.replace("Two(num_keypoints)", "Two(9)"), r"\(B, S, 14, 16, 16\), found \(1, 1, 9, 16, 16\)"),
        (GOOD.replace("heatmap_size=16", "heatmap_size=32"), r"\(B, S, 14, 32, 32\), found \(1, 1, 14, 16, 16\)"),
    ],
)
def test_a_broken_estimator_is_one_line_that_names_it(write_module: WriteModule, body: str, message: str) -> None:
    name = f"{write_module(body)}:two"
    with pytest.raises(InputError, match=message) as caught:
        PoseModel(make_spec(name, method="ll++", skeleton=LSP))
    assert "\n" not in str(caught.value)
    assert "two" in str(caught.value)


def test_a_bundle_of_other_sizes_than_the_function_has_now_is_refused(write_module: WriteModule) -> None:
    spec = dataclasses.replace(make_spec(f"{write_module(GOOD)}:two", method="ll++", skeleton=LSP), heatmap_size=32)
    with pytest.raises(BundleError, match=r"\(B, S, 14, 32, 32\), found \(1, 1, 14, 16, 16\)"):
        PoseModel(spec)


def test_the_conv_head_wants_scales_that_halve(write_module: WriteModule) -> None:
    one_scale = GOOD.replace("Two(num_keypoints)", "One(num_keypoints)") + (
        "class One(Two):\n    def forward(self, images):\n"
        "        output = super().forward(images)\n        return PoseOutput(output.heatmaps, output.features[:1])\n"
    )
    spec = make_spec(f"{write_module(one_scale)}:two", method="ll++conv", skeleton=LSP)
    with pytest.raises(BundleError, match=r"method ll\+\+conv: expected of own_poses\.net:two features of several"):
        PoseModel(spec)
    assert PoseModel(dataclasses.replace(spec, method="ll++")).embedding_dim == 8


def test_the_function_stays_callable_by_its_owner() -> None:
    @estimator(input_size=32, heatmap_size=8, crop_margin=1.25)
    def own(num_keypoints: int) -> nn.Module:
        return nn.Conv2d(3, num_keypoints, 1)

    assert own.build(5).out_channels == 5
    assert (own.input_size, own.heatmap_size, own.crop_margin) == (32, 8, 1.25)


def test_specifications_of_older_bundles_still_read() -> None:
    files = bundle_naming("hourglass-small")
    description = json.loads(files[BUNDLE_FILE])
    del description["spec"]["estimator_config"]
    spec: ModelSpec = load_bundle({**files, BUNDLE_FILE: json.dumps(description).encode()}).spec
    assert spec.estimator_config is None
