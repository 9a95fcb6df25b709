"""What a flight record holds."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.local.flight_record import write_flight_record
from deploy.local.supervisor_log import SupervisorLog
from services.run_folder import RunFolder


def test_a_flight_record_holds_events_and_the_ends_of_all_logs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    (folder.logs / "learner.log").write_text("goodbye\n")
    log = SupervisorLog(folder.logs / "supervisor.log", lambda text: None)
    log.record("part_died", part="learner")
    record = json.loads(write_flight_record(folder, log, "why", [{"kind": "published"}]).read_text())
    assert record["reason"] == "why"
    assert record["supervisor"][0]["part"] == "learner"
    assert record["logs"]["learner"] == ["goodbye"]
    assert record["parts"] == [{"kind": "published"}]
