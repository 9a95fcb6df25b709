"""The `sept` command: parses, then hands over. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from deploy import exit_codes
from services.errors import SeptError

if TYPE_CHECKING:
    from deploy.settings import Settings

Sets = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", show_default=False, help="section.key=value; wins over file and environment"),
]
Config = Annotated[Path, Parameter(name="--config", help="TOML file, or config.toml of a run's folder")]
Flag = Annotated[bool, Parameter(negative="")]
RunDir = Annotated[Path | None, Parameter(name="--run", help="the run's folder; default: the one going under runs/")]

WHOLE, PARTS, GOING = (
    Group("A run", sort_key=1),
    Group("Its parts", sort_key=2),
    Group("A run that is going", sort_key=3),
)
OTHER = Group("More", sort_key=4)

app = App(
    name="sept",
    help="Reward-free online self-training of language models, as an asynchronous actor-learner service.",
    version_flags=(),
    result_action="return_value",
)
scale = App(name="scale", help="Change how much of the machine a run uses.", group=GOING)
app.command(scale)


@app.command(group=WHOLE)
def run(config: Path, *, sets: Sets = ()) -> int:
    """Run everything on this machine until the last round; resumes the run folder.

    Parameters
    ----------
    config
        TOML file; deploy/config holds examples.
    """
    import asyncio

    from rich.console import Console

    from deploy.local.run import run_local
    from deploy.settings import load

    stopped_by = asyncio.run(run_local(load(config, sets), Console()))
    return exit_codes.OK if stopped_by is None else 128 + stopped_by


@app.command(group=WHOLE)
def ray(
    config: Path,
    *,
    min_generators: int = 1,
    max_generators: int | None = None,
    downscale_after_s: float = 300.0,
    http_port: int = 8000,
    sets: Sets = (),
) -> None:
    """Run everything on the Ray cluster of RAY_ADDRESS until the last round; resumes the run folder.

    Parameters
    ----------
    config
        TOML file; deploy/config holds examples.
    min_generators
        Kept however little there is to do.
    max_generators
        Most that a full queue may start; default: generator.count.
    downscale_after_s
        A generator goes when there has been too little to do for so long.
    http_port
        Where the services listen on every node.
    """
    from deploy.ray_cluster.app import start_ray

    options = {
        "min_generators": min_generators,
        "max_generators": max_generators,
        "downscale_after_s": downscale_after_s,
        "http_port": http_port,
    }
    start_ray(config, sets, options, app.console.print)


@app.command(name="eval", group=WHOLE)
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
    config: Annotated[Path | None, Parameter(name="--config")] = None,
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
        Only the first so many problems of each benchmark.
    weight_version
        Which version of a run; default: the newest.
    out
        Folder for answers, tables and the figure; default: runs/eval-NAME.
    general
        Instead of pass@k: IFEval, BBH, GPQA, MuSR and MMLU-Pro by lm-evaluation-harness (the extra sept[eval]).
    config
        TOML file with other settings; default: that of the run, if MODEL is one.
    """
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
        from studies.lm_eval import general_ability

        general_ability(settings.model.path, settings.run.dir / "general", Console(), limit=limit)
        return exit_codes.OK
    stopped_by = asyncio.run(evaluate_model(settings, Console()))
    return exit_codes.OK if stopped_by is None else 128 + stopped_by


@app.command(group=WHOLE)
def study(config: Path) -> int:
    """Compare methods over several seeds: runs, evaluations, tables, verdicts; goes on where it stopped.

    Parameters
    ----------
    config
        TOML file of the study; deploy/config holds study-*.toml.
    """
    import asyncio

    from rich.console import Console

    from studies.study import load_study, run_study

    stopped_by = asyncio.run(run_study(load_study(config), Console()))
    return exit_codes.OK if stopped_by is None else 128 + stopped_by


@app.command(group=PARTS)
def services(*, config: Config, sets: Sets = ()) -> None:
    """Serve weight sync, status, metrics and control over HTTP."""
    from deploy.parts import start_services

    start_services(_joined(config, sets))


@app.command(group=PARTS)
def learner(*, config: Config, sets: Sets = ()) -> int:
    """Train; ends after the last round."""
    from deploy.local.rank_launcher import is_rank, start_ranks
    from deploy.parts import start_learner

    settings = _joined(config, sets)
    if settings.training.ranks > 1 and not is_rank():
        again = ["learner", "--config", str(config), *(word for text in sets for word in ("--set", text))]
        return start_ranks(again, settings.training.ranks)
    return exit_codes.of_outcome(start_learner(settings))


@app.command(group=PARTS)
def generator(*, config: Config, id: str | None = None, sets: Sets = ()) -> None:
    """Join a run as one more generator; may come and go at any time.

    Parameters
    ----------
    id
        Name in status and logs; default: one of its own.
    """
    from deploy.parts import own_generator_id, start_generator

    start_generator(_joined(config, sets), id or own_generator_id())


@app.command(group=PARTS)
def evaluator(*, config: Config, sets: Sets = ()) -> int:
    """Evaluate in the learner's place; ends when every answer is judged. `sept eval` starts it."""
    from deploy.parts import start_evaluator

    return exit_codes.of_outcome(start_evaluator(_joined(config, sets)))


@app.command(group=GOING)
def status(*, run: RunDir = None, watch: Flag = False, json: Flag = False) -> None:
    """Show what a run is doing.

    Parameters
    ----------
    watch
        Go on showing it until it ends.
    json
        Print the status snapshot as JSON.
    """
    from deploy.operate.run_commands import show_status, watch_status

    if watch:
        watch_status(run)
    else:
        show_status(run, as_json=json)


@app.command(group=GOING)
def logs(*parts: str, run: RunDir = None, lines: int = 20, follow: Flag = False) -> None:
    """Print what the parts of a run have written last.

    Parameters
    ----------
    parts
        learner, generator-0, services, redis, supervisor; default: all.
    lines
        So many of each part.
    follow
        Then what they write, until the run ends.
    """
    from deploy.operate.run_commands import show_logs

    show_logs(run, parts, lines=lines, follow=follow)


@scale.command(name="generators")
def scale_generators(count: int, *, run: RunDir = None) -> None:
    """Run that many generators from now on; those that leave finish their work first."""
    from deploy.operate.run_commands import tell

    tell(run, lambda client: client.scale(count))


@app.command(group=GOING)
def pause(*, run: RunDir = None) -> None:
    """Let the learner finish its round, then wait."""
    from deploy.operate.run_commands import tell

    tell(run, lambda client: client.pause())


@app.command(group=GOING)
def resume(*, run: RunDir = None) -> None:
    """Go on after a pause."""
    from deploy.operate.run_commands import tell

    tell(run, lambda client: client.resume())


@app.command(group=GOING)
def stop(*, run: RunDir = None) -> None:
    """Let the learner finish its round, then end the run; `sept run` resumes it."""
    from deploy.operate.run_commands import tell

    tell(run, lambda client: client.stop())


@app.command(group=GOING)
def checkpoint(*, run: RunDir = None) -> None:
    """Let the learner write a checkpoint when its round is done."""
    from deploy.operate.run_commands import tell

    tell(run, lambda client: client.checkpoint())


@app.command(group=GOING)
def rollback(weight_version: int, *, run: RunDir = None, yes: Flag = False) -> int:
    """Let the learner go back to its checkpoint of a version; what came later is lost.

    Parameters
    ----------
    weight_version
        Which version; the page shows those that have a checkpoint.
    yes
        Do not ask.
    """
    from deploy.operate.run_commands import agreed, tell

    if not agreed(f"every version after {weight_version} will be lost", yes=yes):
        return exit_codes.FAILED
    tell(run, lambda client: client.roll_back(weight_version))
    return exit_codes.OK


@app.command(group=OTHER)
def export(out: Path | None = None, *, run: RunDir = None, weight_version: int | None = None) -> None:
    """Write a version of a run as a Hugging Face model folder.

    Parameters
    ----------
    out
        Folder to create; default: the run that is going writes it into its exports/.
    weight_version
        Which version; default: the newest.
    """
    from deploy.operate.run_commands import find_run, tell
    from services.weights.export import export_version

    if out is not None:
        export_version(find_run(run), out, weight_version)
    else:
        app.console.print(tell(run, lambda client: client.export(weight_version)), highlight=False)


@app.command(group=OTHER)
def doctor(*, config: Annotated[Path | None, Parameter(name="--config")] = None, sets: Sets = ()) -> int:
    """Check this machine and, with a config, whether a run of it could start.

    Parameters
    ----------
    config
        TOML file of the run to check for.
    """
    from deploy.doctor.doctor import report
    from deploy.settings import load

    return report(load(config, sets) if config is not None else None)


@app.command(group=OTHER)
def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print what makes a shell complete these commands: `sept completion bash >> ~/.bashrc`."""
    sys.stdout.write(app.generate_completion(shell=shell))


@app.command(group=OTHER)
def version() -> None:
    """Print the versions of sept and of what it stands on."""
    from deploy.doctor.doctor import versions

    for name, number in versions():
        app.console.print(f"{name} {number}", highlight=False)


def _joined(config: Path, sets: tuple[str, ...]) -> Settings:
    from deploy.settings import load

    return load(config, sets, join=True)


def main(tokens: list[str] | None = None) -> None:
    """Entry point: runs one command and exits with its code. `--debug` shows tracebacks."""
    tokens = sys.argv[1:] if tokens is None else tokens
    debug = "--debug" in tokens
    command = [token for token in tokens if token != "--debug"]  # noqa: S105 - no password
    # At exit Python looks through a million objects of torch and its kin for cycles, which takes a part seconds.
    atexit.register(gc.freeze)
    sys.exit(_guarded(lambda: app(command, print_error=False, exit_on_error=False), debug=debug))


def _guarded(call: Callable[[], Any], *, debug: bool) -> int:
    """The exit code of the call; its error in words unless somebody wants the traceback."""
    try:
        result = call()
    except KeyboardInterrupt:
        return 130
    except CycloptsError as error:
        _say(str(error), "sept --help lists the commands, sept COMMAND --help what they take")
        return exit_codes.BAD_CONFIG
    except Exception as error:  # the last stop: every error is shown here, once
        if debug:
            raise
        return _explain(error)
    return result if isinstance(result, int) else exit_codes.OK


def _explain(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, SeptError):
        _say(f"{type(error).__name__}: {error}", "this is a defect of sept; --debug before the command shows where")
        return exit_codes.FAILED
    _say(error.message, error.hint)
    return exit_codes.code_of(error)


def _say(message: str, hint: str) -> None:
    sys.stderr.write(f"sept: {message}\n" + (f"\nhint: {hint}\n" if hint else ""))
