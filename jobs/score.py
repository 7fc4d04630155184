"""`lossight score`: a pool into a scores table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from distributed.options import Options, Span, parse_span
from jobs.console import ConsoleProgress, counts, format_seconds, say, show_table
from jobs.run import DEGRADED, DONE, run_job, stopping_in_order

if TYPE_CHECKING:
    from distributed.scoring.pipeline import WorkOptions

_LIMITS = {"flops": "arithmetic", "bytes": "memory"}


class ScoringOptions(Options):
    """How images are scored, whatever pool they are of."""

    actors: Span | None = Field(
        None,
        description="scoring processes: N, or MIN:MAX for a cluster that grows and shrinks; "
        "default: as many as the CPUs or GPUs hold",
    )
    cpus_per_actor: float | None = Field(
        None, gt=0, description="CPUs that an actor reserves and computes with; default: 1, beside a GPU 2"
    )
    gpus_per_actor: float = Field(0, ge=0, description="GPUs that an actor reserves; 0 computes on CPUs")
    batch_size: int = Field(64, ge=1, description="images of a forward pass")
    views: Literal[1, 2] = Field(
        1, description="looks at each image: 1, or 2 with the mirrored image too: better scores for twice the work"
    )
    decode_threads: int | None = Field(
        None, ge=1, description="threads of an actor that decode images; default: one a CPU, 2 with --debug"
    )
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the forward pass; default: float32 on CPUs, bfloat16 on GPUs that have it"
    )
    compile: bool | None = Field(None, description="compile the model first; default: on GPUs")
    keypoints: bool = Field(
        False,
        description="write the keypoints too: x, y (whole pixels from 1024 on), peak, and how likely each is missed",
    )
    embeddings: bool = Field(False, description="write an embedding of each image too, for diverse selections")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="exit code 5 above this share of rows without a score")
    metadata: tuple[str, ...] = Field(
        (), description="further columns of the pool that the scores keep: select and report can go by them"
    )
    debug: bool = Field(False, description="in this process, without Ray, so that a breakpoint works; same scores")
    address: str | None = Field(
        None, description="the Ray cluster; default: RAY_ADDRESS, else one is started on this machine"
    )


class ScoreOptions(ScoringOptions):
    """Predicts the loss of every image of a pool: each row ends scored, or with the reason why it is not."""

    pool: str = Field(description="the pool (a labelled table is one too): a path or an s3:// URI")
    model: str = Field(description="the model bundle")
    plan: bool = Field(False, description="only measure a sample: images/s by stage, what holds it back, how long")
    out: str = Field("", validate_default=True, description="where the scores go; not needed with --plan")

    @field_validator("out")
    @classmethod
    def _needed_for_scores(cls, out: str, info: ValidationInfo) -> str:
        if not out and not info.data.get("plan"):
            raise PydanticKnownError("missing")
        return out


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(ScoreOptions, _score, arguments, command="score")


def _score(config: ScoreOptions) -> int:
    if config.plan:
        return _plan(config)
    with ConsoleProgress() as progress, stopping_in_order() as stop:
        record = score(config, progress, should_stop=stop.is_asked)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(f"{record['num_rows']} rows: {record['num_scored']} scored, unreadable: {counts(record['errors'])}")
    for reason, ids in record["error_examples"].items():
        say(f"  {reason}: {', '.join(ids)}{', …' if record['errors'][reason] > len(ids) else ''}")
    if record["num_new_rows"] and not record.get("was_done"):
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in record["stage_seconds"].items())
        say(
            f"{record['num_new_rows']} rows scored now: {record['seconds']:.1f} s, "
            f"{record['images_per_second']:.0f} images/s; seconds of work: {stages}"
        )
    if record["num_restarts"] and not record.get("was_done"):
        say(f"scoring processes were lost and started again: {record['num_restarts']} times")
    lost = about_lost_files(record)
    for line in lost:
        say(line)
    if record["error_rate"] > config.max_error_rate:
        limit = f"--max-error-rate is {config.max_error_rate:.1%}"
        say(f"degraded: {record['error_rate']:.1%} of the rows have no score, {limit}")
        return DEGRADED
    if lost:
        say("degraded: what was not read is missing; the same command reads it again")
        return DEGRADED
    return DONE


def about_lost_files(record: dict[str, Any]) -> list[str]:
    """What is said of files of which rows are lost; records of earlier versions don't say of the damaged ones."""
    return [
        *(f"file not read: {path}: {reason}" for path, reason in record["bad_files"].items()),
        *(
            f"file read in part: {path}: damaged: {num_rows} rows"
            for path, num_rows in record.get("damaged_files", {}).items()
        ),
    ]


def score(
    config: ScoreOptions, progress: ConsoleProgress, *, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Scores as configured; returns the run's record."""
    from distributed.scoring.score import score_pool

    options = work_options(config)
    return score_pool(
        config.pool,
        model=config.model,
        out=config.out,
        options=options,
        config=config.resolved(),
        progress=progress,
        should_stop=should_stop,
    )


def work_options(config: ScoringOptions) -> WorkOptions:
    """How to work as configured."""
    from distributed.scoring.pipeline import WorkOptions
    from distributed.scoring.scorer import ScorerOptions

    min_actors, max_actors = parse_span(config.actors) if config.actors else (0, 0)
    # On CPUs one actor a core: two compute threads that wait for each other were slower than two actors.
    cpus = config.cpus_per_actor or (2 if config.gpus_per_actor or config.debug else 1)
    scorer = ScorerOptions(
        batch_size=config.batch_size,
        device="cuda" if config.gpus_per_actor else "cpu",
        decode_threads=config.decode_threads or max(1, int(cpus)),
        views=config.views,
        precision=config.precision,
        is_compiled=config.compile,
        with_keypoints=config.keypoints,
        with_embeddings=config.embeddings,
    )
    return WorkOptions(
        min_actors=min_actors,
        max_actors=max_actors,
        cpus_per_actor=cpus,
        gpus_per_actor=config.gpus_per_actor,
        scorer=scorer,
        metadata=config.metadata,
        address=config.address,
        in_process=config.debug,
    )


def _plan(config: ScoreOptions) -> int:
    from distributed.scoring.planning import plan_scoring

    plan = plan_scoring(config.pool, model=config.model, options=work_options(config))
    files, rates = plan.manifest.files, plan.rates
    groups = [size for file in files for size in file.row_group_bytes]
    say(
        f"{plan.manifest.num_rows} rows in {len(files)} files of {sum(file.size for file in files) / 2**20:.0f} MiB, "
        f"{len(groups)} row groups of {sum(groups) / len(groups) / 2**20:.1f} MiB; "
        f"unreadable files: {len(plan.manifest.bad_files)}"
    )
    of_one = {"read": rates.read, "decode": rates.decode_thread, "model": rates.model, "decode and model": rates.scorer}
    show_table(
        "images a second, measured on a sample",
        ["stage", "one reader, thread or actor", "all"],
        [[stage, f"{of_one[stage]:.0f}", f"{rate:.0f}"] for stage, rate in plan.stages.items()],
    )
    say(
        f"{plan.bottleneck} is the slowest; an actor reaches {plan.share_of_bound:.1%} of the "
        f"{rates.bound.images_per_s:.0f} images/s that {_LIMITS[rates.bound.limit]} allows its device at most"
    )
    say(f"this pool: {format_seconds(plan.seconds)} at {plan.images_per_second:.0f} images/s, and the start")
    for line in plan.advice:
        say(f"- {line}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
