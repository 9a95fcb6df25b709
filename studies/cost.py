"""What a study costs on GPUs, estimated before it starts: arithmetic on settings and the model's shape, within a factor
of two.

A decode step of B sequences reads the weights and B caches from memory; a token of P parameters takes 2 P operations
forward and 4 P backward. A round's sampling and training add up without staleness, else the longer counts. Answers are
taken to be a RESPONSE_SHARE of the longest response on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.run_memory import VALUE_BYTES, shape_of_model
from learner.algorithm_list import ALGORITHMS
from learner.memory.model_shape import ModelShape
from studies.study_file import Cell

GPU = "an A100 or A800 with 80 GB"
GPU_OPERATIONS_PER_S = 312e12
"""In bf16, at most."""
GPU_BYTES_PER_S = 2.0e12
"""From the GPU's memory, at most."""
USED = 0.4
"""Share of both that training and sampling reach."""
RESPONSE_SHARE = 1 / 3
PROMPT_TOKENS = 200
PROBLEMS = {
    "math500": 500,
    "amc23": 40,
    "minerva": 272,
    "olympiadbench": 675,
    "aime24": 30,
    "aime25": 30,
    "gsm8k": 1319,
}
"""Of the benchmarks on the hub; a file's are taken to be as many as math500's."""
FORWARD, BACKWARD, RECOMPUTED = 2, 4, 2
"""Operations of a parameter for each token."""


@dataclass(frozen=True, slots=True)
class CellCost:
    """Of one run."""

    gpus: int
    sampling_s: float
    training_s: float
    evaluation_s: float
    wall_s: float

    @property
    def gpu_hours(self) -> float:
        """All GPUs of the run, busy or not."""
        return self.gpus * self.wall_s / 3600


def cost_of_cell(cell: Cell, shape: ModelShape) -> CellCost:
    """Of a run that computes on GPUs only; its rounds must be set."""
    settings, is_training = cell.settings, cell.leader == "learner"
    training, generator, evaluation = settings.training, settings.generator, settings.evaluation
    engine_gpus = generator.count * generator.tensor_parallel
    response = settings.sampling.max_response_tokens * RESPONSE_SHARE
    rate = generator.count * _tokens_per_s(cell, shape, PROMPT_TOKENS + response)
    answers = sum(_problems(name, evaluation.limit) for name in evaluation.benchmarks) * evaluation.samples
    evaluation_s = len(evaluation.temperatures) * answers * response / rate
    if not is_training:
        return CellCost(engine_gpus, 0.0, 0.0, evaluation_s, evaluation_s)
    rollouts = training.prompts_per_round * settings.sampling.rollouts_per_prompt
    rounds = training.rounds or 0
    drawn = min(rounds, round(rounds / training.epochs)) if training.data == "fixed" else rounds
    operations = FORWARD + BACKWARD + RECOMPUTED
    algorithm = ALGORITHMS[training.algorithm]
    operations += FORWARD if algorithm.needs_first_pass else 0
    tokens = rounds * rollouts * (PROMPT_TOKENS + response)
    training_s = tokens * operations * shape.parameters / (training.ranks * GPU_OPERATIONS_PER_S * USED)
    sampling_s = drawn * rollouts * response / rate
    overlap = training.data == "online" and training.max_staleness > 0
    rounds_s = max(sampling_s, training_s) if overlap else sampling_s + training_s
    return CellCost(training.ranks + engine_gpus, sampling_s, training_s, evaluation_s, rounds_s + evaluation_s)


def _tokens_per_s(cell: Cell, shape: ModelShape, length: float) -> float:
    """Of one generator that decodes as many sequences as its cache and settings admit."""
    generator = cell.settings.generator
    value = VALUE_BYTES.get(generator.dtype, shape.published_bytes / shape.parameters)
    weights, of_sequence = shape.parameters * value, shape.kv_values * value * length / 2  # half grown on average
    memory = 80e9 * generator.share_of_gpu * generator.tensor_parallel
    sequences = max(1.0, min(generator.max_in_flight, (memory - weights) / (2 * of_sequence)))
    share = generator.tensor_parallel * USED
    read_s = (weights + sequences * of_sequence) / (GPU_BYTES_PER_S * share)
    compute_s = FORWARD * shape.parameters * sequences / (GPU_OPERATIONS_PER_S * share)
    return sequences / max(read_s, compute_s)


def _problems(benchmark: str, limit: int | None) -> int:
    count = PROBLEMS.get(benchmark, PROBLEMS["math500"])
    return count if limit is None else min(count, limit)


def cost_of_study(runs: Sequence[Cell]) -> list[str]:
    """Lines for a person: each run and the sum, in GPU-hours; one line where a model's sizes are not known."""
    shapes = {path: shape_of_model(path) for path in dict.fromkeys(cell.settings.model.path for cell in runs)}
    return cost_lines(runs, shapes)


def cost_lines(runs: Sequence[Cell], shapes: dict[str, ModelShape | None]) -> list[str]:
    """`cost_of_study` for models of these shapes, by model.path."""
    unknown = [path for path, shape in shapes.items() if shape is None]
    if unknown:
        return [f"cost: not known, as the sizes of {', '.join(unknown)} are not"]
    lines, total = [], 0.0
    for cell in runs:
        shape = shapes[cell.settings.model.path]
        assert shape is not None
        cost = cost_of_cell(cell, shape)
        total += cost.gpu_hours
        lines.append(
            f"  {cell.name:44} {cost.gpu_hours:7.0f} GPU-hours: {cost.gpus} GPUs, {cost.wall_s / 3600:.0f} h "
            f"(sampling {cost.sampling_s / 3600:.0f}, training {cost.training_s / 3600:.0f}, evaluation "
            f"{cost.evaluation_s / 3600:.0f})"
        )
    longest = max(cell.settings.sampling.max_response_tokens for cell in runs)
    return [
        f"cost: about {total:,.0f} GPU-hours of {GPU}, within a factor of two, if answers have "
        f"{longest * RESPONSE_SHARE:.0f} tokens on average",
        *lines,
    ]
