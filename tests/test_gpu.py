"""The command of `benchmarks/gpu`: its checks on a GPU; on the CPU all of it at tiny sizes, without most packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.agreement import compare
from benchmarks.gpu.checks import CHECKS, CUDA_CHECKS, Check
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.machine import _opencv_as_simplejpeg
from benchmarks.gpu.profiling import gaps
from model.synthetic import Sample

CHECKOUT = Path(__file__).parents[1]
BARE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {"ray", "pydantic", "simplejpeg", "safetensors", "scipy", "s3fs", "fsspec", "botocore", "yaml", "rich",
          "jinja2", "matplotlib", "tensorboardX", "transformers", "pandas", "pytest"}

def find_spec(name, path=None, target=None, find=PathFinder.find_spec):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)

PathFinder.find_spec = find_spec
import torch
torch.set_num_threads(1)
from benchmarks.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
HEADER = {"device": "a"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("default")  # compilers warn of much that is no fault of ours
@pytest.mark.parametrize("check", [*CHECKS, *CUDA_CHECKS], ids=lambda check: check.__name__)
def test_on_a_gpu(check: Check) -> None:
    check(torch.device("cuda:0"))


@pytest.mark.slow
def test_every_piece_runs_on_a_bare_machine_and_once(tmp_path: Path) -> None:
    out = tmp_path / "cpu.md"
    command = [sys.executable, "-c", BARE, "--device", "cpu", "--tiny", "--modes", "eager", "--workers", "0"]
    done = subprocess.run([*command, "--out", out], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text, lines = out.read_text(), out.with_suffix(".jsonl").read_text().splitlines()
    assert "No GPU has run this" in text
    assert "simplejpeg is missing: JPEGs are decoded by OpenCV" in text
    assert "transformers is missing: no ViTPose-B" in text
    assert "Failed" not in text
    measured = [json.loads(line) for line in lines[1:]]
    pieces = {line["name"].partition(":")[0] for line in measured if "result" in line}
    assert pieces == {"check", "device", "scorer", "training", "profile", "agreement"}
    assert not [line for line in measured if "error" in line]
    again = ["--device", "cpu", "--tiny", "--modes", "eager", "--workers", "0", "--out", str(out)]
    main([*again, "--max-minutes", "0"])  # no minute is left: what runs would be in the file
    assert out.with_suffix(".jsonl").read_text().splitlines() == lines


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 0
    assert "No CUDA device" in capsys.readouterr().out
    assert main(["--device", "cuda"]) == 2
    assert "--device: expected a CUDA device on this machine, found none" in capsys.readouterr().out


def test_a_journal_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Journal(path, HEADER).measure("device: x", lambda: {"rate": 1.0})
    with path.open("a") as file:
        file.write('{"name": "device: y", "beg')
    journal = Journal(path, HEADER)
    assert journal.results == {"device: x": {"rate": 1.0}}
    journal.measure("device: y", lambda: {"rate": 2.0})
    assert list(Journal(path, HEADER).results) == ["device: x", "device: y"]


def test_what_fails_twice_or_ends_its_process_twice_is_given_up(tmp_path: Path) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    path = tmp_path / "a.jsonl"
    journal = Journal(path, HEADER)
    journal.measure("device: x", fail)
    assert journal.results == {}
    journal.measure("device: x", fail)
    assert journal.results == {"device: x": {"error": "RuntimeError: CUDA error: an illegal memory access"}}
    with path.open("a") as file:
        file.writelines('{"name": "device: y", "begun": 1}\n' for _ in range(2))
    assert Journal(path, HEADER).results["device: y"] == {"error": "ended its process"}


def test_measurements_of_another_machine_are_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "a.jsonl", HEADER)
    with pytest.raises(ValueError, match=r"expected measurements of .*b.*, found those of .*a"):
        Journal(tmp_path / "a.jsonl", {"device": "b"})


def test_gaps_are_what_no_kernel_covers() -> None:
    found = gaps([(0, 10), (5, 20), (70, 100), (20, 30)])
    assert found == {"busy": pytest.approx(0.6), "long_gaps": 1, "longest_gap_us": 40}
    assert gaps([])["busy"] == 0


def test_tops_that_differ_by_more_than_the_tolerance_do_not_agree() -> None:
    expected = np.arange(200, dtype=np.float32)
    close = expected.copy()
    close[[197, 198]] = close[[198, 197]]  # the second of the top 2, and the first behind it
    assert compare(expected, close, tolerance=0.05) | {"changed": 1, "unexcused": 0, "agrees": True} == compare(
        expected, close, tolerance=0.05
    )
    far = expected.copy()
    far[0] = 300
    found = compare(expected, far, tolerance=0.05)
    assert (found["changed"], found["unexcused"], found["agrees"]) == (1, 1, False)


def test_opencv_in_the_place_of_simplejpeg_decodes_alike(samples: list[Sample]) -> None:
    stand_in, image = _opencv_as_simplejpeg(), memoryview(samples[0].image)
    assert stand_in.decode_jpeg_header(image)[:2] == simplejpeg.decode_jpeg_header(image)[:2]
    difference = stand_in.decode_jpeg(image).astype(int) - simplejpeg.decode_jpeg(image)
    assert np.abs(difference).mean() < 1  # other versions of libjpeg, other methods of upsampling
    with pytest.raises(ValueError, match="JPEG"):
        stand_in.decode_jpeg_header(b"\xff\xd8\xff\xe0\x00\x10no more")
