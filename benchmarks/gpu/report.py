"""Report: the Markdown file of results, made anew from the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.machine import missing
from benchmarks.gpu.plan import Setting

Results = dict[str, dict[str, Any]]  # by what a measurement's name says behind its piece

# What is hoped for on a GPU: at least so much.
_BARS = {"model ÷ memory bound": 0.5, "scorer ÷ model": 0.9, "scorer ÷ plain loop": 0.95, "training ÷ plain loop": 0.9}


def write_report(
    out: Path, journal: Journal, *, machine: dict[str, Any], setting: Setting, command: str, num_left: int
) -> None:
    """Writes all that is measured so far."""
    results = journal.results
    lines = [
        f"# One command on {machine['device']}",
        "",
        *_introduction(machine, setting, results, num_left),
        "",
        "```",
        command,
        "```",
        "",
        *_table(("", ""), [(name.replace("_", " "), str(value)) for name, value in machine.items()]),
        "",
        *[f"- {name} is missing: {effect}." for name, effect in missing().items()],
    ]
    for piece, write in _SECTIONS.items():
        prefix = f"{piece}: "
        good = {name.removeprefix(prefix): each for name, each in results.items() if name.startswith(prefix)}
        bad = {name.removeprefix(prefix): why for name, why in journal.failures.items() if name.startswith(prefix)}
        good = {name: each for name, each in good.items() if name not in bad}
        if good:
            lines += ["", *write(good)]
        if bad:
            lines += ["", f"Failed, {piece}:", "", *[f"- {name}: {why}" for name, why in bad.items()]]
    lines += ["", *_verdicts(results, setting)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines).replace("\n\n\n", "\n\n") + "\n", encoding="utf-8")


def _introduction(machine: dict[str, Any], setting: Setting, results: Results, num_left: int) -> list[str]:
    images = "JPEGs of a folder" if setting.folder else "256 px frames of the synthetic fleet"
    left = f"; {num_left} that the last call asked for are not" if num_left else ""
    done = f"{len(results)} measurements are done{left}."
    lines = [f"{done} Images: {images}. {setting.workers} threads decode, or processes."]
    if not setting.is_cuda:
        lines += ["", "**No GPU has run this: it is a trial of the command on a CPU. The rates say nothing of a GPU.**"]
    if setting.is_tiny:
        lines += ["", "Tiny sizes, of which no rate means anything: what is shown is that every piece runs."]
    if machine.get("simplejpeg") == "missing":
        lines += ["", "Decoder: OpenCV, in simplejpeg's place."]
    return lines


def _checks(found: Results) -> list[str]:
    return ["## Checks", "", *[f"- {name}" for name in found]]


def _device(found: Results) -> list[str]:
    header = (
        "network",
        "precision",
        "batch",
        "mode",
        "launched",
        "graph",
        "memory bound",
        "best ÷ memory bound",
        "best ÷ arithmetic bound",
        "GiB",
    )
    rows = []
    for name, each in found.items():
        best = _best(each)
        note = f" ({each['note']})" if "note" in each else ""
        network, precision, batch, mode = name.split("; ")
        rows.append(
            (
                network,
                precision,
                batch,
                mode + note,
                _rate(each["launched"]),
                _graph(each),
                _rate(each["memory_bound"]),
                f"{best / each['memory_bound']:.1%}",
                f"{best / each['arithmetic_bound']:.1%}",
                str(each.get("memory_gib", "")),
            )
        )
    measured: dict[str, str] = {}  # the first of each: weights are read once a batch, which changes little
    work: dict[str, str] = {}
    for name, each in found.items():
        network, precision, *_ = name.split("; ")
        measured.setdefault(
            precision, f"{each['device_tb_per_s']:.3g} TB/s, {each['device_tflop_per_s']:.3g} TFLOP/s in {precision}"
        )
        work.setdefault(
            f"{network}, {precision}", f"{each['mb_per_image']:.4g} MB, {each['gflop_per_image']:.3g} GFLOP"
        )
    return [
        "## Device rate",
        "",
        "Images/s of the model alone, uint8 crops on the device, scores left there. Bounds: see `model/roofline.py`.",
        "",
        *_table(header, rows),
        "",
        f"The device, measured: {'; '.join(measured.values())}. Least work of an image:",
        "",
        *[f"- {name}: {least}" for name, least in work.items()],
    ]


def _graph(each: dict[str, Any]) -> str:
    if "graph" not in each:
        return ""
    if each["graph"] is None:
        return f"not captured: {each['graph_error']}"
    return _rate(each["graph"]) + ("" if each["graph_is_equal"] else ", other scores")


def _scorer(found: Results) -> list[str]:
    header = (
        "network",
        "plain loop",
        "scorer",
        "model",
        "scorer ÷ plain",
        "scorer ÷ model",
        "decode",
        "wait",
        "compute",
    )
    rows = [
        (
            name,
            *(_rate(each[arm]) for arm in ("plain", "ours", "model")),
            f"{each['ours_by_plain']:.2f}",
            f"{each['ours_by_model']:.1%}",
            *(f"{each[f'{stage}_us']:.0f} us" for stage in ("decode", "wait", "compute")),
        )
        for name, each in found.items()
    ]
    first = next(iter(found.values()), {"images": 0, "kb_per_image": 0})
    return [
        "## Scorer rate",
        "",
        f"Images/s from JPEG bytes in memory ({first['images']} images of {first['kb_per_image']:.0f} KB) to scores. "
        "Plain loop: a DataLoader with processes, the same decoder, crop and model, results fetched each batch. "
        "Medians of three rounds in turns; time by stage an image, decoding of all threads together.",
        "",
        *_table(header, rows),
    ]


def _training(found: Results) -> list[str]:
    header = ("network", "precision, batch", "plain loop", "product's parts", "÷ plain", "whole training", "÷ plain")
    rows = [
        (
            name,
            f"{each['precision']}, {each['batch_size']}",
            _rate(each["plain"]),
            _rate(each["parts"]),
            f"{each['parts_by_plain']:.2f}",
            _rate(each["whole"]) if "whole" in each else "not here",
            f"{each['whole_by_plain']:.2f}" if "whole" in each else "",
        )
        for name, each in found.items()
    ]
    return [
        "## Training rate",
        "",
        "Images/s of epochs but for the first. Plain loop: a DataLoader with processes. All decode, augment and step "
        "alike. Parts: reading from memory, decoding a batch ahead, steps; whole: from Parquet, with checkpoints.",
        "",
        *_table(header, rows),
    ]


def _profile(found: Results) -> list[str]:
    lines = ["## Profile"]
    for name, each in found.items():
        lines += ["", f"### {name[:1].upper()}{name[1:]}", ""]
        if "busy" in each:
            lines.append(
                f"The device is busy {each['busy']:.1%} of the time; {each['long_gaps']} gaps over 20 us, the longest "
                f"{each['longest_gap_us']:.0f} us."
            )
        waits = ", ".join(f"{key}: {count}" for key, count in each["waits"].items()) or "none"
        lines += [f"Waits of the host: {waits}. {each['kinds']} kinds of kernels or operations.", ""]
        rows = [(f"`{key}`", f"{share:.1%}", str(count)) for key, share, count in each["top"]]
        lines += _table(("longest", "share", "calls"), rows)
    return lines


def _agreement(found: Results) -> list[str]:
    header = ("network", "precision", "largest", "99 %", "mean", "tolerance", "top", "changed", "unexcused", "agrees")
    rows = [
        (
            name,
            precision,
            *(f"{each[key]:.2g}" for key in ("largest", "quantile", "mean", "tolerance")),
            *(str(each[key]) for key in ("top", "changed", "unexcused")),
            "yes" if each["agrees"] else "**no**",
        )
        for name, of_network in found.items()
        for precision, each in of_network["precisions"].items()
    ]
    first = next(iter(found.values()), {"images": 0})
    return [
        "## Agreement with a CPU in float32",
        "",
        f"Predicted losses of {first['images']} images, by {first.get('model', '')}; differences in deviations of all "
        "images' losses. Agrees: 99 % of the images are within the tolerance, and no row is unexcused: in one top 1 % "
        "alone, with a loss farther from the cut than twice the tolerance.",
        "",
        *_table(header, rows),
    ]


def _verdicts(results: Results, setting: Setting) -> list[str]:
    """The best of each ratio beside what is hoped for on a GPU."""
    found: dict[str, list[float]] = {name: [] for name in _BARS}
    for name, each in results.items():
        if "memory_bound" in each and "hourglass" in name:
            found["model ÷ memory bound"].append(_best(each) / each["memory_bound"])
        if name.startswith("scorer:") and "ours_by_model" in each:
            found["scorer ÷ model"].append(each["ours_by_model"])
            found["scorer ÷ plain loop"].append(each["ours_by_plain"])
        if name.startswith("training:") and "parts_by_plain" in each:
            found["training ÷ plain loop"].append(each.get("whole_by_plain", each["parts_by_plain"]))
    rows = [
        (name, f"{bar:.2f}", f"{min(found[name]):.2f}", f"{max(found[name]):.2f}")
        for name, bar in _BARS.items()
        if found[name]
    ]
    note = "" if setting.is_cuda else " On a CPU they are no bars."
    header = ("ratio", "bar", "least measured", "greatest")
    return ["## Bars", "", f"At least so much is hoped for on a GPU.{note}", "", *_table(header, rows)] if rows else []


def _best(each: dict[str, Any]) -> float:
    return max(each["launched"], each.get("graph") or 0.0)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


_SECTIONS: dict[str, Callable[[Results], list[str]]] = {
    "check": _checks,
    "device": _device,
    "scorer": _scorer,
    "training": _training,
    "profile": _profile,
    "agreement": _agreement,
}
