"""Commands that do a whole job: a run, an evaluation, a study."""

from __future__ import annotations

import signal
from pathlib import Path

from deploy import exit_codes
from deploy.ray_cluster import defaults
from deploy.unattended import hang_up_means, work_unattended
from sept.arguments import Flag, OptionalConfig, Sets


def run(config: Path, *, sets: Sets = ()) -> int:
    """Run everything on this machine until the last round; resumes the run folder.

    Parameters
    ----------
    config
        TOML file; deploy/config holds examples.
    """
    work_unattended(by_thread=True)
    import asyncio

    from rich.console import Console

    from deploy.load_settings import load
    from deploy.local.run import run_local

    stopped_by = asyncio.run(run_local(load(config, sets), Console()))
    return exit_codes.of_signal(stopped_by)


def ray(
    config: Path,
    *,
    min_generators: int = defaults.MIN_GENERATORS,
    max_generators: int | None = None,
    downscale_after_s: float = defaults.DOWNSCALE_AFTER_S,
    http_port: int = defaults.SERVE_PORT,
    learner_strategy: defaults.LearnerStrategy = "STRICT_SPREAD",
    sets: Sets = (),
) -> None:
    """Run everything on the Ray cluster of RAY_ADDRESS until the last round; resumes the run folder.

    Parameters
    ----------
    config
        TOML file; deploy/config holds examples.
    min_generators
        Keep at least this many however short the queue is.
    max_generators
        Start at most this many however long the queue is; default: generator.count.
    downscale_after_s
        A generator ends when there was too little to do for this long.
    http_port
        Where the services listen on every node.
    learner_strategy
        Where the nodes of a learner with training.nodes > 1 are: STRICT_SPREAD, each on a Ray node of its own; PACK, on
        as few as have room.
    """
    work_unattended(by_thread=True)
    hang_up_means(signal.SIGINT)  # which drains
    from rich.console import Console

    from deploy.ray_cluster.app import start_ray

    options = {
        "min_generators": min_generators,
        "max_generators": max_generators,
        "downscale_after_s": downscale_after_s,
        "http_port": http_port,
        "learner_strategy": learner_strategy,
    }
    start_ray(config, sets, options, Console().print)


def evaluate(
    model: str,
    *,
    benchmarks: str | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    sweep: str | None = None,
    limit: int | None = None,
    weight_version: int | None = None,
    out: Path | None = None,
    general: Flag = False,
    config: OptionalConfig = None,
    sets: Sets = (),
) -> int:
    """Measure pass@k of a model on benchmarks; goes on with what the output folder holds.

    Parameters
    ----------
    model
        Folder, Hugging Face id, or folder of a run.
    benchmarks
        math500,amc23,minerva,olympiadbench,aime24,aime25,gsm8k from the hub, or NAME=PATH; with commas between.
    samples
        Answers per problem (n); default 32.
    temperature
        tau_eval; default 1.
    sweep
        Several temperatures, as 0.2,0.4,0.6,0.8,1: finds the best by AVG.
    limit
        Only this many problems of each benchmark, from its start.
    weight_version
        Which version of a run; default: the newest.
    out
        Folder for answers, tables and the figure; default: runs/eval-NAME.
    general
        Instead of pass@k: IFEval, BBH, GPQA, MuSR and MMLU-Pro by lm-evaluation-harness (the extra sept[eval]).
    config
        TOML file with other settings; default: that of the run, if MODEL is one.
    """
    work_unattended(by_thread=True)
    import asyncio

    from rich.console import Console

    from studies.evaluate import evaluate_model, evaluation_settings

    options = {
        "benchmarks": benchmarks,
        "samples": samples,
        "temperatures": sweep if sweep is not None else temperature,
        "limit": limit,
    }
    settings = evaluation_settings(model, options, out=out, config=config, weight_version=weight_version, sets=sets)
    if general:
        from services.run_folder import EvaluationFolder
        from studies.general_benchmarks import run_general_benchmarks

        run_general_benchmarks(settings.model.path, EvaluationFolder(settings.run.dir).general, Console(), limit=limit)
        return exit_codes.OK
    stopped_by = asyncio.run(evaluate_model(settings, Console()))
    return exit_codes.of_signal(stopped_by)


def study(config: Path, *, sets: Sets = ()) -> int:
    """Compare methods over several seeds: runs, evaluations, tables, verdicts; goes on where it stopped.

    Parameters
    ----------
    config
        TOML file of the study; deploy/config holds study-*.toml. --set changes its [common].
    """
    work_unattended(by_thread=True)
    import asyncio

    from rich.console import Console

    from studies.study import run_study
    from studies.study_file import load_study

    stopped_by = asyncio.run(run_study(load_study(config, sets), Console()))
    return exit_codes.of_signal(stopped_by)
