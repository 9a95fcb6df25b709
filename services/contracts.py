"""What flows between the parts: tasks, rollouts, weight manifests, heartbeats, status.

Every contract is a frozen pydantic model that forbids unknown fields and carries its schema version, so that
a part of another release is refused by an error and never misread. Token ids are little-endian int32 arrays.

Legend of shapes: P prompt tokens, R response tokens.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

SCHEMA_VERSION: Final = 1
MAX_TOKENS = 1 << 20
"""No prompt or response is longer than this; a longer one is refused before memory is spent on it."""

TOKEN_DTYPE = np.dtype("<i4")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""BLAKE3 of the bytes, 64 hex digits."""

_FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9 ._,()+=@~-]{0,127}"
FileName = Annotated[str, Field(pattern=rf"^{_FILE_NAME}(/{_FILE_NAME}){{0,3}}$", max_length=255)]
"""A file's name below its folder: no part of it begins with a dot, so it can never leave the folder."""

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]


def _as_tokens(value: Any) -> NDArray[np.int32]:
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) % TOKEN_DTYPE.itemsize:
            raise ValueError(f"token bytes must be a multiple of 4 long, got {len(value)}")
        tokens = np.frombuffer(value, dtype=TOKEN_DTYPE)
    elif isinstance(value, np.ndarray) and value.dtype == TOKEN_DTYPE:
        tokens = value if _is_immutable(value) else value.copy()
    else:
        wide = np.asarray(value)
        if wide.size and wide.dtype.kind not in "iu":
            raise ValueError(f"token ids must be integers, got {wide.dtype}")
        if wide.size and (wide.min() < 0 or wide.max() > np.iinfo(np.int32).max):
            raise ValueError("token ids must lie in 0 .. 2**31 - 1")
        tokens = wide.astype(TOKEN_DTYPE)
    if tokens.ndim != 1:
        raise ValueError(f"token ids must be one-dimensional, got shape {tokens.shape}")
    if tokens.size > MAX_TOKENS:
        raise ValueError(f"{tokens.size} tokens exceed the limit of {MAX_TOKENS}")
    if tokens.size and np.minimum.reduce(tokens) < 0:
        raise ValueError("token ids must not be negative")
    tokens.flags.writeable = False
    return tokens


def _is_immutable(tokens: NDArray[np.int32]) -> bool:
    """Whether nobody can change the array, so that contracts may share it: it lies in a `bytes` object."""
    return isinstance(tokens.base, bytes)


Tokens = Annotated[
    NDArray[np.int32],
    PlainValidator(_as_tokens, json_schema_input_type=list[int]),
    PlainSerializer(lambda tokens: tokens.tolist(), return_type=list[int]),
]
"""A read-only int32 array; accepts raw little-endian bytes or any sequence of integers."""


class Contract(BaseModel):
    """Base of all contracts."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    schema_version: Literal[1] = SCHEMA_VERSION

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]


class Purpose(StrEnum):
    """Who requested the rollouts of a task; each consumer takes only its own."""

    TRAINING = "training"
    EVALUATION = "evaluation"


class Task(Contract):
    """One prompt leased to a generator. Producer: learner. Consumer: generator."""

    task_id: Identifier
    """Identifies the prompt within the run, and everything made from it."""
    round: int = Field(ge=0)
    position: int = Field(ge=0)
    """Position within the round: the learner trains in this order."""
    prompt_tokens: Tokens
    """[P] int32."""
    temperature: float = Field(ge=0)
    """tau_s, the sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """0: off."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    max_response_tokens: int = Field(ge=1, le=MAX_TOKENS)
    stop_token_ids: tuple[int, ...] = ()
    """A response ends with (and includes) the first of these."""
    samples: int = Field(default=1, ge=1, le=1024)
    """G, rollouts drawn from this prompt."""
    min_weight_version: int = Field(ge=0)
    """A generator starts the task only at this version or a later one."""
    max_weight_version: int | None = Field(default=None, ge=0)
    """Set when every token must come from a version not above this (an evaluation); None in training."""
    purpose: Purpose = Purpose.TRAINING


class VersionSpan(BaseModel):
    """Response tokens [start, end) were sampled at `weight_version`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_version: int = Field(ge=0)
    start: int = Field(ge=0)
    end: int = Field(ge=0)
    weight_digest: Digest | None = None
    """Of that version as it was served. Engines do not know it; a rollout that a learner takes has it."""


class Rollout(Contract):
    """One finished (prompt, response) pair. Producer: generator. Consumer: learner."""

    task_id: Identifier
    sample: int = Field(ge=0)
    """0 .. G-1; (task_id, sample) is the rollout's identity."""
    round: int = Field(ge=0)
    position: int = Field(ge=0)
    prompt_tokens: Tokens
    """[P] int32, as in the task."""
    response_tokens: Tokens
    """[R] int32, the stop token included when there was one."""
    finish_reason: Literal["stop", "length"]
    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    spans: tuple[VersionSpan, ...]
    """Cover 0 .. R without gap or overlap, versions ascending."""
    generator_id: Identifier
    queued_s: float = Field(ge=0)
    """From issue to lease."""
    generate_s: float = Field(ge=0)
    """From lease to completion."""
    purpose: Purpose = Purpose.TRAINING
    """As in the task."""

    @model_validator(mode="after")
    def _spans_cover_response(self) -> Self:
        length = int(self.response_tokens.size)
        if length == 0:
            raise ValueError("a rollout has at least one response token")
        at, version = 0, -1
        for span in self.spans:
            if span.start != at or span.end <= span.start or span.weight_version <= version:
                raise ValueError(f"spans must cover the response in order, got {self.spans}")
            at, version = span.end, span.weight_version
        if at != length:
            raise ValueError(f"spans end at {at}, the response has {length} tokens")
        return self

    @property
    def rollout_id(self) -> str:
        return f"{self.task_id}.{self.sample}"

    @property
    def staleness(self) -> int:
        """Round minus the lowest weight version that sampled any token; negative never happens in training."""
        return self.round - self.spans[0].weight_version


class TensorEntry(BaseModel):
    """One tensor of a version, in checkpoint coordinates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=512)
    dtype: Literal[
        "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"
    ]
    """safetensors' name of the element type."""
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    digest: Digest
    """Of the raw little-endian bytes."""


class FileKind(StrEnum):
    SNAPSHOT = "snapshot"
    """safetensors with every tensor of the version."""
    DELTA = "delta"
    """Exact change from `parent_version`."""
    ADAPTERS = "adapters"
    """safetensors of low-rank adapters, which make the version of `parent_version`."""
    MODEL = "model"
    """What an engine needs besides weights: config.json, tokenizer files ..."""


class FileEntry(BaseModel):
    """One immutable file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: FileName
    kind: FileKind
    size_bytes: int = Field(ge=0)
    digest: Digest


class Canary(BaseModel):
    """A fixed prompt and what the learner computes for it. Producer: learner. Consumer: generator, which must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=2, max_length=8192)
    """[T] token ids."""
    log_probs: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    """[T - 1] log-probability of each token after the first, given those before it, by the weights as published."""

    @model_validator(mode="after")
    def _one_number_per_prediction(self) -> Self:
        if len(self.log_probs) != len(self.tokens) - 1:
            raise ValueError(f"{len(self.tokens)} tokens have {len(self.log_probs)} log-probabilities")
        return self


class WeightManifest(Contract):
    """A published version. Producer: learner. Consumers: the endpoint, generators."""

    run_id: Identifier
    weight_version: int = Field(ge=0)
    parent_version: int | None = Field(default=None, ge=0)
    parent_digest: Digest | None = None
    """`digest` of the parent that the delta or the adapters apply to."""
    digest: Digest
    """BLAKE3 over the tensors' names, types, shapes and digests: the identity of the version's content."""
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]
    epoch: int = Field(default=0, ge=0)
    """Of the learner that published it; 0: of one without a fence. No part of `digest`."""
    canaries: tuple[Canary, ...] = Field(default=(), max_length=64)
    """What the version computes, to be reproduced by every generator that serves it; no part of `digest`."""
    created_at: float
    """Unix seconds."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, names in (("tensor", [t.name for t in self.tensors]), ("file", [f.name for f in self.files])):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what}s share a name")
        if (self.parent_version is None) != (self.parent_digest is None):
            raise ValueError("parent_version and parent_digest come together")
        if self.parent_version is not None and self.parent_version >= self.weight_version:
            raise ValueError(f"parent {self.parent_version} is not older than version {self.weight_version}")
        return self

    def file(self, kind: FileKind) -> FileEntry | None:
        """The version's only file of that kind (snapshot, delta or adapters), or None."""
        return next((entry for entry in self.files if entry.kind is kind), None)

    @property
    def change(self) -> FileEntry | None:
        """What makes the version of its parent, a delta or adapters; None where there is only a snapshot."""
        return self.file(FileKind.DELTA) or self.file(FileKind.ADAPTERS)

    @property
    def full_bytes(self) -> int:
        """Size of all tensors, headers not counted."""
        bits = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16}
        bits["U16"] = 16
        return sum(int(np.prod(t.shape, dtype=np.int64)) * bits.get(t.dtype, 8) // 8 for t in self.tensors)


class Part(StrEnum):
    LEARNER = "learner"
    GENERATOR = "generator"


class Heartbeat(Contract):
    """A part's status, sent about once a second. Consumer: services."""

    model_config = ConfigDict(allow_inf_nan=False)

    part: Part
    part_id: Identifier
    state: str
    """State of its StateClock: "generating", "waiting_for_tasks", "training" ..."""
    shares: dict[str, float]
    """Share of wall time spent in each state since the part started; sums to 1."""
    weight_version: int | None = None
    weight_digest: Digest | None = None
    in_flight: int = 0
    """Sequences in the engine (generator) or rollouts held for the current round (learner)."""
    tokens_per_s: float = 0.0
    """Over the last ten seconds or so."""
    host: str
    pid: int
    device: str
    message: str = ""
    """The last warning or error, for a person to read."""
    updates: int = 0
    """Weight updates applied since the part started."""
    pause_ms: float = 0.0
    """How long generation stood still for the last update."""
    sync_s: float = 0.0
    """From learning of the last version to serving it."""
    sync_bytes: int = 0
    """Bytes fetched for the last update."""
    line_bytes_per_s: float = 0.0
    """Speed of its last long download from the endpoint; 0 before the first."""
    chat_url: str = ""
    """Where it answers OpenAI chat requests, if it does."""


class EvaluationMetrics(BaseModel):
    """pass@k of one weight version at one temperature. Producer: learner. Consumers: people, status, the page."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_version: int = Field(ge=0)
    temperature: float = Field(ge=0)
    samples: int = Field(ge=1)
    """n, per problem."""
    pass_at_k: dict[str, dict[int, float]]
    """Benchmark -> k -> value in 0 .. 1; "mean" weighs every benchmark alike."""
    problems: dict[str, int] = Field(default_factory=dict)
    """Benchmark -> how many; empty in what earlier releases recorded."""


class RoundMetrics(BaseModel):
    """One line of metrics.jsonl. Producer: learner. Consumers: people, status, the page.

    Optional fields are None where the run does not measure them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int
    weight_version: int
    """The version that this round published: round + 1."""
    epoch: float
    tau_s: float
    learning_rate: float
    loss: float
    """Mean over the round's optimizer steps of the objective per response token."""
    grad_norm: float
    rollouts: int
    prompt_tokens: int
    response_tokens: int
    response_length_mean: float
    truncated_ratio: float
    staleness_mean: float
    staleness_max: int
    spanning_rollouts: int
    """Rollouts whose tokens come from more than one version."""
    generator_tokens_per_s: float
    """Response tokens of the round over `round_s`."""
    learner_tokens_per_s: float
    """Prompt and response tokens of the round over the time spent training on them."""
    learner_wait_s: float
    train_s: float
    round_s: float
    """From the end of the round before, or of the start, to the end of this one."""
    sync_bytes: int
    """Bytes that a generator one version behind fetches for this version."""
    sync_full_bytes: int
    publish_s: float
    pause_ms: float
    """Largest of the generators' last update pauses."""
    tasks_reissued: int
    time: float
    """Unix seconds."""
    peak_memory_bytes: int | None = None
    """Most memory that the learner held in the round: of the device, or of the process on a CPU."""
    reward_mean: float | None = None
    """Over the round's rollouts, for an algorithm that has rewards."""
    vote_share: float | None = None
    """Mean over prompts of the share of answers that agree with the most frequent one; with the field below measured
    where a prompt has several answers, unless health.action is "off" and the algorithm looks at no texts."""
    distinct_answers: float | None = None
    """Mean over prompts of how many different answers there are."""
    repetition_ratio: float | None = None
    """Mean over responses of the share of 4-grams that occurred before in the same response; with the fields below
    measured unless health.action is "off"."""
    distinct_ratio: float | None = None
    """Distinct responses per response."""
    entropy: float | None = None
    """Nats per token of the new weights at temperature 1, along the round's responses."""
    nll_tau_1: float | None = None
    """Of the round's responses under the new weights at temperature 1, per token."""
    nll_tau_s: float | None = None
    """The same at the round's sampling temperature."""
    evaluations: tuple[EvaluationMetrics, ...] = ()
    """Of the version that this round published, when an evaluation of it was due: one a temperature. Before them, in
    round 0, those of version 0."""

    def as_line(self) -> str:
        """The line of metrics.jsonl, without fields that are None."""
        return self.model_dump_json(exclude_none=True)


class GeneratorStatus(BaseModel):
    """A row of the status page."""

    heartbeat: Heartbeat
    age_s: float
    lost: bool


class StartingPart(BaseModel):
    """A learner or generator of a local run whose process runs and that does no work yet."""

    part_id: str
    doing: Literal["loading engine", "loading model"]
    for_s: float
    """Since its process was started."""


class StatusSnapshot(Contract):
    """Answer of GET /v1/status."""

    run_id: str
    state: Literal["starting", "running", "paused", "finished", "failed", "stopped"]
    detail: str
    """What it waits for, or why it failed."""
    round: int
    rounds_total: int
    weight_version: int | None
    weight_digest: Digest | None
    last_round: RoundMetrics | None
    learner: Heartbeat | None
    learner_lost: bool
    generators: tuple[GeneratorStatus, ...]
    starting: tuple[StartingPart, ...] = ()
    """Those that have a heartbeat, too, are started again."""
    generators_target: int | None
    tasks_queued: int
    tasks_leased: int
    rollouts_queued: int
    dead_letters: int
    oldest_task_s: float
    seconds_left: float | None = None
    """Until the last round, if the run goes on like its newest rounds; None when that is not known."""
