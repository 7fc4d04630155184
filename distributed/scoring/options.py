"""Options of scoring: those that `lossight score` and each night of a triage share, and score's own."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from distributed.options import MACHINE, PLACE, Address, ImageRoot, Options, Span, Texts, as_count, parse_span
from model.choices import Precision, Views

# Shared with evaluations.
BatchSize = Annotated[
    int | None,
    MACHINE,
    Field(ge=1, description="images of a forward pass; default: by the model's input size, 16 of 256 px on CPUs"),
]
NumViews = Annotated[
    Views,
    BeforeValidator(as_count),
    Field(description="looks at each image: 1, or 2 with the mirrored one too: better scores for twice the work"),
]


class ScoringOptions(Options):
    """Options of scoring, whatever the pool: the work, and the columns that come out."""

    image_root: ImageRoot = None
    keypoints: bool = Field(
        False, description="write the keypoints too: x, y (whole pixels from 1024 on), peak, and probability of a miss"
    )
    embeddings: bool = Field(False, description="write an embedding of each image too, for diverse selections")
    metadata: Texts = Field(
        (), description="further columns of the pool that the scores keep: select and report can go by them"
    )
    views: NumViews = 1
    max_error_rate: float = Field(0.05, ge=0, le=1, description="exit code 5 above this share of rows without a score")
    precision: Precision | None = Field(
        None, description="precision of the forward pass; default: float32 on CPUs, bfloat16 on GPUs that have it"
    )
    actors: Annotated[Span | None, MACHINE] = Field(
        None,
        description="scoring processes: N, or MIN:MAX for a cluster that grows and shrinks; default: as many as the "
        "CPUs or GPUs hold",
    )
    gpus_per_actor: Annotated[float, MACHINE] = Field(
        0, ge=0, description="GPUs that an actor reserves; 0 computes on CPUs"
    )
    cpus_per_actor: Annotated[float | None, MACHINE] = Field(
        None, gt=0, description="CPUs that an actor reserves and computes with; default: 1, beside a GPU 2"
    )
    batch_size: BatchSize = None
    decode_threads: Annotated[int | None, MACHINE] = Field(
        None, ge=1, description="threads of an actor that decode images; default: one a CPU, 2 with --debug"
    )
    compile: Annotated[bool | None, MACHINE] = Field(None, description="compile the model first; default: on GPUs")
    debug: Annotated[bool, MACHINE] = Field(
        False, description="in this process to the end, without Ray, so that a breakpoint works; same scores"
    )
    ray: Annotated[bool, MACHINE] = Field(
        False,
        description="on Ray from the start; default: in this process, where no option asks for a cluster or actors, "
        "and on Ray what would take this process minutes",
    )
    address: Address = None

    @model_validator(mode="after")
    def _check_one_place(self) -> Self:
        if self.debug and self.ray:
            raise ValueError("--debug and --ray: expected one of them, found both")
        return self

    @property
    def asks_for_ray(self) -> bool:
        """True if an option says that Ray is to be used: it is of a cluster, or of actors."""
        return bool(self.ray or self.address or self.actors or self.cpus_per_actor or self.gpus_per_actor)

    @property
    def min_actors(self) -> int:
        """Fewest actors; 0: as many as the cluster has room for, and no other number."""
        return parse_span(self.actors, least=0)[0] if self.actors else 0

    @property
    def max_actors(self) -> int:
        """Most actors; 0 as `min_actors`."""
        return parse_span(self.actors, least=0)[1] if self.actors else 0

    @property
    def device(self) -> str:
        """Device of an actor."""
        return "cuda" if self.gpus_per_actor else "cpu"

    @property
    def cpus(self) -> float:
        """CPUs of an actor. On CPUs one actor a core: two compute threads that wait for each other were slower."""
        return self.cpus_per_actor or (2 if self.gpus_per_actor or self.debug else 1)

    @property
    def threads(self) -> int:
        """Threads of an actor that decode images."""
        return self.decode_threads or max(1, int(self.cpus))


class ScoreOptions(ScoringOptions):
    """Predicts the loss of every image of a pool: each row ends scored, or with the reason why it is not."""

    pool: Annotated[str, PLACE] = Field(description="the pool (a labelled table is one too): a path or an s3:// URI")
    model: Annotated[str, PLACE] = Field(description="the model bundle, or a champion's pointer")
    out: Annotated[str, PLACE] = Field("", description="where the scores go; required but with --plan")
    plan: Annotated[bool, MACHINE] = Field(
        False, description="only measure a sample: images/s by stage, what holds it back, how long"
    )

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        if not self.out and not self.plan:
            raise ValueError("--out: expected a value, found none")
        return self
