"""The rehearsal of the paper's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.paper import STUDY, fit, model_name, rehearse
from studies.study_file import cells, load_study

pytestmark = pytest.mark.usefixtures("signal_handlers")


def test_all_cells_fit_eight_gpus_of_80_gb() -> None:
    runs = cells(load_study(STUDY))
    needed = {cell.name: fit(cell) for cell in runs}
    assert len(needed) == 30
    assert all((memory.sequences or 0) >= 16 for memory in needed.values())


def test_a_cell_walks_one_round_with_its_stand_in(tmp_path: Path, redis_url: str) -> None:
    """One of GRPO: it has rewards, groups and old log-probabilities beside all that the others have."""
    runs = [cell for cell in cells(load_study(STUDY)) if cell.method == "grpo" and model_name(cell).startswith("Llama")]
    (found,) = rehearse(runs, tmp_path, redis_url)
    assert found.rollouts == 4 * 8


@pytest.mark.slow
def test_every_cell_walks_one_round(tmp_path: Path, redis_url: str) -> None:
    found = rehearse(cells(load_study(STUDY)), tmp_path, redis_url)
    assert len({one.name for one in found}) == 25
