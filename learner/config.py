"""Settings of the learner: model, prompts, sampling, training, adapters, checkpoints, health, evaluation."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from learner.algorithm_list import ALGORITHMS
from learner.recipes import RECIPES
from services.config import DeadlinesConfig, OneOf, RunConfig, Section, WeightSyncConfig, listed

ANY_VOTE_SHARE: Final = (0.0, 1.0)
"""As data.vote_share: no prompt is passed over."""

TAU_S: Final = "tau_s"
"""As training.tau_t: the sampling temperature of each round."""

Recomputation = Literal["off", "light", "full"]
"""What the backward pass computes again to save memory: nothing, all but matrix products and attention, everything."""


class ModelConfig(Section):
    """[model]: what is trained."""

    path: str = ""
    """Hugging Face id or folder of a causal language model."""
    wire_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the published weights; auto: the types of the checkpoint."""


class DataConfig(Section):
    """[data]: the prompts."""

    path: str = ""
    """A file (.jsonl, .json, .csv, .parquet; also .gz, .zst), a folder or glob of files, or a Hugging Face data set id.
    Then ?question=COLUMN&answer=COLUMN names columns, ?bad_rows=leave_out leaves bad rows out, ?weight=2 makes its
    prompts come twice as often. Several are joined by " + " (docs/data.md)."""
    split: str = "train"
    """Split of a data set that has several."""
    limit: int | None = Field(default=None, ge=1)
    """Number of prompts to use, from the start of each data set; unset: all."""
    repeats: Literal["keep", "leave_out", "refuse"] = "keep"
    """Questions that repeat another, or one of evaluation.benchmarks. keep: the log counts those that are the same;
    leave_out: leave these out, and those that are nearly the same; refuse: end with an error."""
    vote_share: Annotated[tuple[float, float], BeforeValidator(listed)] = ANY_VOTE_SHARE
    """Pass over prompts whose answers agreed less or more than this when they were last sampled (too hard, too easy);
    they come again after 3 epochs. 0,1: none."""
    system_prompt: str = ""
    """System message of every prompt; empty: none."""
    question_suffix: str = ""
    """Appended to every question."""
    chat_template: str = "auto"
    """auto: the tokenizer's, or plain text if it has none; none: plain text; else the name of one of the tokenizer's
    templates, a Jinja template or its path."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longer prompts are left out; the log says how many."""

    @model_validator(mode="after")
    def _vote_shares_are_a_range(self) -> Self:
        low, high = self.vote_share
        if not 0 <= low < high <= 1:
            raise ValueError(f"data.vote_share ({low:g}, {high:g}) must be two shares in 0 .. 1, the lower one first")
        return self


class SamplingConfig(Section):
    """[sampling]: how the generators sample."""

    tau_start: float = Field(default=0.6, gt=0)
    """Sampling temperature at the start."""
    tau_end: float = Field(default=1.0, gt=0)
    """Sampling temperature at the end of the schedule."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How tau_s moves from tau_start to tau_end; constant: it stays at tau_start."""
    anneal_epochs: float = Field(default=2.0, gt=0)
    """Epochs until tau_s reaches tau_end."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off, as in the paper."""
    top_k: int = Field(default=0, ge=0)
    """Sample among so many of the likeliest tokens; 0 is off."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Sample among tokens that have at least this share of the likeliest one's probability; 0 is off."""
    stop_tokens: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Tokens that end an answer beside those that the model states: texts of one token each, or ids."""
    max_response_tokens: int = Field(default=3072, ge=1)
    """Longest response; longer ones are cut off."""
    rollouts_per_prompt: int = Field(default=1, ge=1, le=1024)
    """Responses sampled for every prompt (G)."""


class TrainingConfig(Section):
    """[training]: algorithm, rounds and optimizer."""

    recipe: Annotated[str, OneOf(RECIPES)] = "default"
    """default; paper: warm-up, epochs, offline schedule and grading as the paper's code has them (docs/method.md);
    ssd: a cosine to 0 on a fixed data set (docs/algorithms.md)."""
    algorithm: Annotated[str, OneOf(ALGORITHMS)] = "nll"
    """nll is SePT; entropy (EM-FT) and grpo (RLVR) are the paper's baselines; the others: docs/algorithms.md."""
    data: Literal["online", "fixed"] = "online"
    """online: every round is sampled from the newest model; fixed: all are sampled from version 0 (SePT offline)."""
    tau_t: Annotated[float, Field(gt=0)] | Literal["tau_s"] = 1.0
    """Training temperature; tau_s: that at which the round was sampled (the paper's Coupled)."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the prompts; the run ends after the last full round."""
    rounds: int | None = Field(default=None, ge=1)
    """Number of rounds of the run; unset: as many as `epochs` gives."""
    prompts_per_round: int = Field(default=128, ge=1)
    """Prompts of one round."""
    steps_per_round: int = Field(default=2, ge=1)
    """Optimizer steps on each round's rollouts; divides prompts_per_round."""
    max_staleness: int = Field(default=1, ge=0)
    """Rounds that generation may run ahead of training; 0: strict alternation, as in the paper."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: moments in 2 bytes per parameter instead of 8; with the extra adam8bit."""
    optimizer_offload: bool = False
    """Keep AdamW's moments in host memory, 8 bytes per parameter less on the GPU; a step takes about a second longer
    for each 7 billion parameters of a rank."""
    learning_rate: float = Field(default=1e-7, gt=0)
    """Learning rate after warm-up; it stays constant."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Most prompt and response tokens in one forward and backward pass of a rank."""
    device: str = "auto"
    """Torch device of the learner; auto: CUDA if there is a device, else the CPU."""
    ranks: int = Field(default=1, ge=1)
    """Processes that train together, a device each, those of all nodes; they shard weights, gradients and moments."""
    nodes: int = Field(default=1, ge=1)
    """Hosts with the same number of ranks each; `sept learner --node K` starts those of one."""
    sharding: Literal["all", "node"] = "all"
    """all: over all ranks; node: over the ranks of a node, and every node holds a copy (HSDP), for slow networks."""
    gradient_checkpointing: Recomputation | Literal["auto"] = "auto"
    """What the backward pass computes again to save memory. off: nothing; light: all but matrix products and attention;
    full: everything; auto: the first of these with which training fits into the device's memory."""

    @model_validator(mode="after")
    def _moments_are_somewhere(self) -> Self:
        if self.optimizer == "adamw_8bit" and self.optimizer_offload:
            raise ValueError(
                "training.optimizer = adamw_8bit and training.optimizer_offload = true exclude each other: moments in "
                "8 bits stay on the device"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_alike(self) -> Self:
        if self.ranks % self.nodes:
            raise ValueError(
                f"training.ranks ({self.ranks}) must be a multiple of training.nodes ({self.nodes}): it counts the "
                "ranks of all nodes, and each has the same number"
            )
        return self

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each host."""
        return self.ranks // self.nodes

    @model_validator(mode="after")
    def _cosine_knows_its_end(self) -> Self:
        if RECIPES[self.recipe].phase(self.data).rate == "cosine" and self.rounds is None:
            raise ValueError(
                f"training.recipe = {self.recipe} with training.data = {self.data} lowers the rate to 0 at the run's "
                "last step: set training.rounds, epochs times prompts divided by training.prompts_per_round"
            )
        return self

    @model_validator(mode="after")
    def _steps_divide_round(self) -> Self:
        if self.prompts_per_round % self.steps_per_round:
            raise ValueError(
                f"training.steps_per_round ({self.steps_per_round}) must divide "
                f"training.prompts_per_round ({self.prompts_per_round})"
            )
        return self


class LoraConfig(Section):
    """[lora]: train low-rank adapters instead of all weights; generators serve the merged weights."""

    rank: int = Field(default=0, ge=0)
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' product is scaled by alpha / rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Names of the linear layers that get adapters, such as q_proj,v_proj; empty: all but the head."""


class CheckpointConfig(Section):
    """[checkpoint]: how often the learner saves its state."""

    every_rounds: int = Field(default=1, ge=1)
    """Rounds between two checkpoints; rollouts since the last one stay in Redis."""
    every_minutes: float = Field(default=0.0, ge=0)
    """Least minutes between two checkpoints, besides every_rounds; 0: rounds alone count."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints to keep."""


class HealthConfig(Section):
    """[health]: what to do when the model shows signs of collapse."""

    action: Literal["off", "warn", "pause", "rollback", "stop"] = "warn"
    """off: do not measure health; warn: write a warning to log and events; pause: also pause the run; rollback: also go
    back to the newest healthy checkpoint, then pause; stop: also end the run, and keep the version with the highest
    pass@1 of the run's evaluations in its folder best/."""


class EvaluationConfig(Section):
    """[evaluation]: benchmarks, during a run and in `sept eval`."""

    every_rounds: int = Field(default=0, ge=0)
    """Rounds between two evaluations of a run: of version 0, every so many, and the last. 0: no evaluations; more than
    the run has: the last version alone."""
    benchmarks: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Names (math500, amc23, minerva, olympiadbench, aime24, aime25, gsm8k) or NAME=PATH of problems with answers, a
    path as in data.path."""
    samples: int = Field(default=32, ge=1, le=1024)
    """Answers per problem (n)."""
    temperatures: Annotated[tuple[float, ...], BeforeValidator(listed)] = (1.0,)
    """Sampling temperatures (tau_eval); all are evaluated, and `sept eval` reports the best."""
    limit: int | None = Field(default=None, ge=1)
    """Number of problems of each benchmark, from its start; unset: all."""


class LearnerSettings(Section):
    """What a learner and an evaluator need: every section but those of the other parts."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    training: TrainingConfig = TrainingConfig()
    lora: LoraConfig = LoraConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a prompt with its response, which an engine must hold and a micro-batch may have to."""
        return self.data.max_prompt_tokens + self.sampling.max_response_tokens
