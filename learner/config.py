"""Settings of the learner: model, prompts, sampling, training, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from learner.algorithms.choose import ALGORITHMS
from services.config import DeadlinesConfig, HeartbeatConfig, OneOf, RunConfig, Section, WeightSyncConfig, listed

Recompute = Literal["off", "light", "full"]


class ModelConfig(Section):
    """[model]: what is trained."""

    path: str = ""
    """Hugging Face id or folder of a causal language model."""
    wire_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the published weights; auto takes the checkpoint's own."""


class DataConfig(Section):
    """[data]: the prompts."""

    path: str = ""
    """Hugging Face data set id, or a .jsonl, .json or .parquet file."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many prompts."""
    system_prompt: str = ""
    """System message; empty for none."""
    question_suffix: str = ""
    """Appended to every question."""
    chat_template: str = "auto"
    """auto: the tokenizer's own where it has one; none: plain text; else a Jinja template or its path."""
    max_prompt_tokens: int = Field(default=1024, ge=1)
    """Longer prompts are left out, and counted in the log."""


class SamplingConfig(Section):
    """[sampling]: how the generators sample."""

    tau_start: float = Field(default=0.6, gt=0)
    """Sampling temperature at the start."""
    tau_end: float = Field(default=1.0, gt=0)
    """Sampling temperature at the end of the schedule."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How tau_s goes from start to end over `anneal_epochs`; constant stays at tau_start."""
    anneal_epochs: float = Field(default=2.0, gt=0)
    """Epochs until tau_s reaches tau_end."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 is off, as in the paper."""
    max_response_tokens: int = Field(default=3072, ge=1)
    """Responses are cut here."""
    rollouts_per_prompt: int = Field(default=1, ge=1, le=1024)
    """G."""


class TrainingConfig(Section):
    """[training]: the optimizer's side."""

    algorithm: Annotated[str, OneOf(ALGORITHMS)] = "nll"
    """nll is SePT; entropy (EM-FT) and grpo (RLVR) are the paper's baselines."""
    data: Literal["online", "fixed"] = "online"
    """online: every round samples from the newest model; fixed: all from version 0 (SePT offline)."""
    tau_t: float = Field(default=1.0, gt=0)
    """Training temperature."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the prompts; the run ends after the last full round."""
    rounds: int | None = Field(default=None, ge=1)
    """Ends the run after so many rounds instead of `epochs`."""
    prompts_per_round: int = Field(default=128, ge=1)
    """Prompts of one data refresh."""
    steps_per_round: int = Field(default=2, ge=1)
    """Optimizer steps on each round's rollouts; divides prompts_per_round."""
    max_staleness: int = Field(default=1, ge=0)
    """Rounds that generation may run ahead; 0 is the paper's strict alternation."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps the two moments in 2 bytes a parameter instead of 8; one rank only, needs the extra adam8bit."""
    learning_rate: float = Field(default=1e-7, gt=0)
    """Constant after warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Most prompt and response tokens in one forward and backward pass of a rank."""
    device: str = "auto"
    """Torch device of the learner; auto takes CUDA where there is one."""
    ranks: int = Field(default=1, ge=1)
    """Processes that train together on one machine, a device each; weights, gradients and moments are sharded."""
    gradient_checkpointing: Recompute = "off"
    """What the backward pass computes again to save memory: off: nothing; light: all but matrix products and attention;
    full: everything."""

    @model_validator(mode="after")
    def _moments_can_be_sharded(self) -> Self:
        if self.optimizer == "adamw_8bit" and self.ranks > 1:
            raise ValueError(
                f"training.optimizer = adamw_8bit trains on one rank, and training.ranks is {self.ranks}: its blocks "
                "of moments do not end where the ranks' rows do"
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
    """Names of the linear layers with adapters, such as q_proj,v_proj; empty: all but the head."""


class CheckpointConfig(Section):
    """[checkpoint]: what survives the learner."""

    every_rounds: int = Field(default=1, ge=1)
    """A checkpoint is written after so many rounds; rollouts since the last stay in Redis."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept."""


class HealthConfig(Section):
    """[health]: what happens when the model shows signs of collapse."""

    action: Literal["off", "warn", "pause", "rollback"] = "warn"
    """off: nothing is measured; warn: a warning in log and events; pause: that, and the run pauses; rollback: that,
    and it goes back to its newest healthy checkpoint first."""


class EvaluationConfig(Section):
    """[evaluation]: how good the model is, while it trains and in `sept eval`."""

    every_rounds: int = Field(default=0, ge=0)
    """A run evaluates every so many rounds, and its last version; 0 never."""
    benchmarks: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Names (math500, amc23, minerva, olympiadbench, aime24, aime25, gsm8k) or NAME=PATH of problems with answers."""
    samples: int = Field(default=32, ge=1, le=1024)
    """n, answers per problem."""
    temperatures: Annotated[tuple[float, ...], BeforeValidator(listed)] = (1.0,)
    """tau_eval; with several, `sept eval` finds the best, and a run evaluates at each of them."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many problems of each benchmark."""


class LearnerSettings(Section):
    """What a learner and an evaluator are told: every section but those of the other parts."""

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
    heartbeat: HeartbeatConfig = HeartbeatConfig()
