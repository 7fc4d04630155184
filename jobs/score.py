"""`lossight score`: a pool into a scores table."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import Field

from jobs.console import ConsoleProgress, counts, say
from jobs.options import JobConfig
from jobs.run import DEGRADED, DONE, run_job


class ScoreConfig(JobConfig):
    """Predicts the loss of every image of a pool: each row ends scored, or with the reason why it is not."""

    pool: str = Field(description="the pool (a labelled table is one too): a path or an s3:// URI")
    model: str = Field(description="the model bundle")
    out: str = Field(description="where the scores go")
    actors: int = Field(1, ge=1, description="scoring processes")
    cpus_per_actor: float = Field(2, gt=0, description="CPUs that an actor reserves and computes with")
    gpus_per_actor: float = Field(0, ge=0, description="GPUs that an actor reserves; 0 computes on CPUs")
    batch_size: int = Field(64, ge=1, description="images of a forward pass")
    decode_threads: int = Field(2, ge=1, description="threads of an actor that decode images")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="exit code 1 above this share of rows without a score")
    debug: bool = Field(False, description="in this process, without Ray, so that a breakpoint works; same scores")
    address: str | None = Field(None, description="the Ray cluster; one is started on this machine if not given")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(ScoreConfig, _score, arguments, command="score")


def _score(config: ScoreConfig) -> int:
    with ConsoleProgress() as progress:
        record = score(config, progress)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(
        f"{record['num_rows']} rows: {record['num_scored']} scored, unreadable: {counts(record['errors'])}; "
        f"{record['seconds']:.1f} s, {record['images_per_second']:.0f} images/s"
    )
    for path, reason in record["bad_files"].items():
        say(f"file not read: {path}: {reason}")
    if record["error_rate"] > config.max_error_rate:
        limit = f"--max-error-rate is {config.max_error_rate:.1%}"
        say(f"degraded: {record['error_rate']:.1%} of the rows have no score, {limit}")
        return DEGRADED
    return DONE


def score(config: ScoreConfig, progress: ConsoleProgress) -> dict[str, Any]:
    """Scores as configured; returns the run's record."""
    from distributed.scoring import ScoringOptions, score_pool

    options = ScoringOptions(
        actors=config.actors,
        cpus_per_actor=config.cpus_per_actor,
        gpus_per_actor=config.gpus_per_actor,
        batch_size=config.batch_size,
        decode_threads=config.decode_threads,
        in_process=config.debug,
    )
    if not config.debug:
        from distributed.cluster import connect

        connect(config.address)
    return score_pool(
        config.pool, model=config.model, out=config.out, options=options, config=config.resolved(), progress=progress
    )


if __name__ == "__main__":
    sys.exit(main())
