"""ViTPose through transformers: tiny random checkpoints in the layout of the published ones, loaded from a folder."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WriteTable
from safetensors.torch import load_file

from distributed.ingest.fleet import row_of
from jobs.cli import main
from model.bundle import dump_bundle, load_bundle
from model.errors import BundleError, InputError
from model.pose_model import PoseModel, make_spec, new_model
from model.skeleton import COCO, LSP
from model.synthetic import Sample

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "out_indices": [2]}
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """A tiny ViTPose of 17 keypoints with random weights, saved as published ones are."""

    def make(*, image_size: Any = (64, 48), num_labels: int = 17, simple: bool = True, **backbone: Any) -> Path:
        config = transformers.VitPoseConfig(
            backbone_config=transformers.VitPoseBackboneConfig(
                image_size=list(image_size), patch_size=[16, 16], **{**TINY, **backbone}
            ),
            num_labels=num_labels,
            use_simple_decoder=simple,
        )
        torch.manual_seed(5)
        transformers.VitPoseForPoseEstimation(config).save_pretrained(tmp_path / "vitpose")
        return tmp_path / "vitpose"

    return make


def pixels(size: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)


def fresh(folder: Path, *, method: Any = "ll++", skeleton: Any = COCO) -> PoseModel:
    named = f"vitpose:{folder}"
    return new_model(make_spec(named, method=method, skeleton=skeleton), estimator=named).eval()


@pytest.mark.parametrize("simple", [True, False])
def test_heatmaps_are_those_of_transformers_on_the_middle_of_the_crop(
    make_checkpoint: MakeCheckpoint, simple: bool
) -> None:
    folder = make_checkpoint(simple=simple)
    model = fresh(folder)
    theirs = transformers.VitPoseForPoseEstimation.from_pretrained(folder).eval()
    crops = pixels(64)
    with torch.inference_mode():
        prediction = model(crops)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        middle = ((crops[:, :, 8:56].float() / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = theirs(middle).heatmaps  # (2, 17, 16, 12)
    assert prediction.heatmaps.shape == (2, 1, 17, 16, 16)
    torch.testing.assert_close(prediction.heatmaps[:, 0, :, :, 2:14], expected, rtol=1e-4, atol=1e-5)
    assert not prediction.heatmaps[..., :2].any()
    assert not prediction.heatmaps[..., 14:].any()
    assert prediction.embedding.shape == (2, model.embedding_dim) == (2, 32)


def test_sizes_come_from_the_checkpoint(make_checkpoint: MakeCheckpoint) -> None:
    spec = make_spec(f"vitpose:{make_checkpoint(image_size=(256, 192))}", method="ll++", skeleton=COCO)
    assert (spec.estimator, spec.input_size, spec.heatmap_size) == ("vitpose", 256, 64)
    assert spec.crop_margin == pytest.approx(4 / 3)  # so that the strip that is seen is as wide as the box


def test_a_square_checkpoint_is_seen_whole(make_checkpoint: MakeCheckpoint) -> None:
    model = fresh(make_checkpoint(image_size=(64, 64)))
    assert model.spec.crop_margin == 1.25
    with torch.inference_mode():
        heatmaps = model(pixels(64)).heatmaps
    assert heatmaps[..., 0].any()
    assert heatmaps[..., -1].any()


def test_several_experts_use_the_one_of_coco(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(num_experts=3, part_features=8)
    theirs = transformers.VitPoseForPoseEstimation.from_pretrained(folder).eval()
    model = fresh(folder)
    with torch.inference_mode():
        crops = pixels(64)
        images = (crops.permute(0, 3, 1, 2).float() - model.pixel_mean) / model.pixel_std
        expected = theirs(images[..., 8:56], dataset_index=torch.zeros(2, dtype=torch.long)).heatmaps
        found = model(crops).heatmaps[:, 0, :, :, 2:14]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_last_layer_is_drawn_anew_for_another_number_of_keypoints_and_nothing_else(
    make_checkpoint: MakeCheckpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint()
    model = fresh(folder, skeleton=LSP)
    theirs = transformers.VitPoseForPoseEstimation.from_pretrained(folder).state_dict()
    capfd.readouterr()
    ours = fresh(folder, skeleton=LSP).estimator.network.state_dict()
    assert capfd.readouterr() == ("", "")  # no progress bars, no report
    assert ours["head.conv.weight"].shape == (14, 32, 3, 3)
    others = [key for key in theirs if not key.startswith("head.conv")]
    assert len(others) > 20
    assert all(torch.equal(ours[key], theirs[key]) for key in others)
    assert model(pixels(64)).heatmaps.shape == (2, 1, 14, 16, 16)


def test_a_bundle_loads_without_the_folder(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    model = fresh(folder)
    files = dump_bundle(model, training={}, metrics={})
    for path in folder.iterdir():
        path.unlink()
    bundle = load_bundle(files)
    assert bundle.spec == model.spec
    with torch.inference_mode():
        assert torch.equal(bundle.model(pixels(64)).heatmaps, model(pixels(64)).heatmaps)


def test_gradients_reach_the_whole_network(make_checkpoint: MakeCheckpoint) -> None:
    model = fresh(make_checkpoint()).train()
    model(pixels(64)).heatmaps.square().sum().backward()
    without = [name for name, parameter in model.estimator.named_parameters() if parameter.grad is None]
    assert without == []


def test_the_conv_head_is_refused_since_there_is_one_scale(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(BundleError, match=r"method ll\+\+conv: expected of vitpose features of several scales"):
        fresh(make_checkpoint(), method="ll++conv")


def test_without_transformers_the_extra_is_named(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    files = dump_bundle(fresh(folder), training={}, metrics={})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"expected the package transformers \(extra \[vitpose\]\), found none"):
        make_spec(f"vitpose:{folder}", method="ll++", skeleton=COCO)
    with pytest.raises(BundleError, match=r"expected the package transformers"):
        load_bundle(files)


# As the way in without a model of one's own


def write_photos(folder: Path, samples: list[Sample]) -> None:
    """Persons with COCO's keypoints as annotated photos, and photos without annotations."""
    joints = np.random.default_rng(0).uniform(8, 56, (len(samples), 17, 2)).tolist()
    annotations = [
        {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "bbox": [0, 0, 64, 64],
            "keypoints": [value for x, y in joints[number] for value in (x, y, 2)],
        }
        for number in range(len(samples))
    ]
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(len(samples))]
    category = {"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names)}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "person_keypoints_val2017.json").write_text(json.dumps(content))
    for name in ("val2017", "photos"):
        (folder / name).mkdir()
        for image, sample in zip(images, samples, strict=True):
            (folder / name / str(image["file_name"])).write_bytes(sample.image)


def test_the_recipe_of_the_page_leads_from_a_checkpoint_to_a_report(
    make_checkpoint: MakeCheckpoint, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    weights = load_file(folder / "model.safetensors")
    write_photos(tmp_path, samples)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "ingest.md").read_text()
    (recipe,) = [block for block in page.split("```") if "--estimator vitpose:" in block]
    commands = [shlex.split(line)[1:] for line in recipe.splitlines() if line.startswith("lossight ")]
    assert [command[0] for command in commands] == ["ingest", "train", "ingest", "score", "select", "report"]
    assert [main(command) for command in commands] == [0] * 6
    found = load_file(tmp_path / "work" / "model" / "weights.safetensors")
    kept = [name for name in weights if torch.equal(found[f"estimator.network.{name}"], weights[name])]
    assert len(kept) == len(weights)
    assert (tmp_path / "work" / "selection" / "report.html").exists()


def test_a_head_is_not_taught_on_images_that_cannot_be_read(
    make_checkpoint: MakeCheckpoint, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_checkpoint()
    write_photos(tmp_path, samples)
    for path in (tmp_path / "val2017").iterdir():
        path.write_bytes(b"\xff\xd8\xff")
    monkeypatch.chdir(tmp_path)
    source = ["--source", "val2017", "--annotations", "person_keypoints_val2017.json", "--as", "labelled"]
    assert main(["ingest", "coco", *source, "--out", "labelled"]) == 0
    options = ["--labelled", "labelled", "--estimator", "vitpose:vitpose", "--epochs", "0", "--workers", "0"]
    assert main(["train", *options, "--out", "out"]) == 2
    assert "expected at most 5.0% unreadable images" in capsys.readouterr().err
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "vitpose:vitpose", "--skeleton", "lsp"], "expected a checkpoint of the 14 keypoints of lsp, "),
        (["--estimator", "vitpose:vitpose", "--method", "ll++"], "expected --method keypoint, .*, found ll"),
        (["--estimator", "hourglass-small"], "expected an estimator with weights, .*, found hourglass-small"),
    ],
)
def test_what_is_of_no_use_without_an_epoch_is_refused(
    make_checkpoint: MakeCheckpoint,
    write_table: WriteTable,
    samples: list[Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    make_checkpoint()
    monkeypatch.chdir(tmp_path)
    write_table("labelled", [row_of(sample) for sample in samples[:4]], is_labelled=True)
    assert main(["train", "--labelled", "labelled", "--out", "out", "--epochs", "0", "--workers", "0", *options]) == 2
    assert re.search(f"--epochs 0: {message}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# What is refused


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "vit"}, "expected model_type vitpose with a vitpose_backbone, found vit with vitpose_backbone"),
        ({"backbone_config": {"model_type": "swin"}}, "found vitpose with swin"),
        ({"backbone_config": 3}, "expected a configuration of ViTPose, found something else"),
        ({"scale_factor": "four"}, "expected a ViTPose, found one that fails"),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    make_checkpoint: MakeCheckpoint, values: dict[str, Any], message: str
) -> None:
    folder = make_checkpoint()
    change(folder, **values)
    with pytest.raises(InputError, match=message) as caught:
        make_spec(f"vitpose:{folder}", method="ll++", skeleton=COCO)
    assert "\n" not in str(caught.value)


def test_sizes_that_do_not_fit_heatmap_pixels_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(image_size=(80, 48), num_hidden_layers=2)  # a frame of 16 px: 4 heatmap pixels
    assert make_spec(f"vitpose:{folder}", method="ll++", skeleton=COCO).heatmap_size == 20
    config = json.loads((folder / "config.json").read_text())
    change(folder, backbone_config={**config["backbone_config"], "patch_size": [16, 8]})
    with pytest.raises(InputError, match="vitpose: expected image and frame to be whole heatmap pixels"):
        make_spec(f"vitpose:{folder}", method="ll++", skeleton=COCO)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder with config\.json, found none: No such file"):
        make_spec(f"vitpose:{tmp_path}/nowhere", method="ll++", skeleton=COCO)
    with pytest.raises(InputError, match=r"expected a folder with config\.json, found none"):
        make_spec("vitpose:usyd-community/vitpose-base-simple", method="ll++", skeleton=COCO)  # nothing is downloaded
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="expected a configuration of ViTPose, found something else"):
        make_spec(f"vitpose:{tmp_path}", method="ll++", skeleton=COCO)


def test_pickled_weights_are_never_read(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04never")
    with pytest.raises(InputError, match=r"expected a ViTPose, found one that fails: .*safetensors"):
        fresh(folder)


def test_weights_of_another_configuration_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    backbone = {**config["backbone_config"], "num_hidden_layers": 3, "out_indices": [3], "out_features": ["stage3"]}
    change(folder, backbone_config={**backbone, "stage_names": ["stem", "stage1", "stage2", "stage3"]})
    with pytest.raises(InputError, match=r"expected the weights of its configuration, found others: \['backbone"):
        fresh(folder)


def test_a_bundle_whose_configuration_is_none_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    spec = fresh(make_checkpoint()).spec
    for config in ("", "{}", "[]", '{"image_size": 3}'):
        with pytest.raises(BundleError, match="vitpose: expected a configuration, found"):
            PoseModel(dataclasses.replace(spec, estimator_config=config))
    with pytest.raises(BundleError, match=r"expected input_size 64 = 4 \* heatmap_size, found 64 and 32"):
        PoseModel(dataclasses.replace(spec, heatmap_size=32))
