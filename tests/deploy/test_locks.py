"""One learner per run folder, whichever way and wherever it was started: real processes, real locks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.locks import learner_lock
from services.errors import DeadlineError
from services.run_folder import RunFolder

HOLDER = """
import sys
from pathlib import Path
from deploy.locks import learner_lock
from services.run_folder import RunFolder
with learner_lock(RunFolder(Path(sys.argv[1])), 30):
    print("training", flush=True)
    sys.stdin.readline()
"""


def test_a_second_learner_waits_for_the_end_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "training\n"
        expected = r"another learner: .* is still being trained by it"
        with pytest.raises(DeadlineError, match=expected), learner_lock(RunFolder(tmp_path), 0.1):
            pass
        first.kill()
    with learner_lock(RunFolder(tmp_path), 30):
        pass
