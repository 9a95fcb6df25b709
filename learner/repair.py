"""Makes the published versions whole again whose bytes are not what was written, or drops them.

A learner that starts looks at all of them. While it trains it looks when a generator reports that it cannot build a
version: a report costs reading the store and nothing more, so a false one does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from learner.monitoring.heartbeat import LEARNER_ID
from learner.publisher import VersionContents
from services.errors import UnavailableError, WeightError
from services.streams.events import EventLog
from services.weights.damage import find_damage
from services.weights.publisher import WeightPublisher

log = structlog.get_logger()

REPORTED = "version_damaged"
"""Kind of the event with which a generator reports."""
LISTEN_S = 1.0
JOIN_S = 5.0
QUIET_S = 60.0
"""After a look that found nothing wrong, reports are not followed for so long."""


class StoreRepair:
    """Repairs one run's store; `make_base` makes version 0 of the model as it was before training.

    Call it where nothing is being published: on the publisher's thread.
    """

    def __init__(self, store: WeightPublisher, make_base: Callable[[], VersionContents], events: EventLog) -> None:
        self._store = store
        self._make_base = make_base
        self._events = events

    def at_start(self, *, resumed: bool = False) -> None:
        """Version 0 is made again; others are dropped, as the learner publishes what it needs of them.

        `resumed`: there has to be a version 0.
        """
        if resumed and not self._store.versions():
            self._restore_base("the folder of the versions is empty")
        self._drop(self._look()[1], keep=None)

    def while_training(self) -> bool:
        """As `at_start`, but the newest version is made again; whether anything was wrong.

        WeightError when it cannot be made from memory: the learner then has to start again from its checkpoint.
        """
        found, damaged = self._look()
        published = self._store.last_published
        newest = self._store.versions()[-1] if published is None else published.weight_version
        if newest not in self._store.versions():
            damaged[newest] = "it is gone"
        held = self._store.held() if newest in damaged else None
        self._drop(damaged, keep=newest)
        if held is not None:
            self._store.restore(newest, held[1], canaries=held[0].canaries)
            self._tell("version_restored", newest, "from memory")
        elif newest in damaged:
            raise WeightError(
                f"weight version {newest} is damaged ({damaged[newest]}) and no longer in memory",
                hint="the learner starts again from its checkpoint and publishes it anew",
            )
        return found or bool(damaged)

    def _look(self) -> tuple[bool, dict[int, str]]:
        """Make version 0 again if that is needed; whether anything was wrong, and what still is: version -> why."""
        started = time.monotonic()
        damaged = find_damage(self._store)
        found = bool(damaged)
        if 0 in damaged:
            self._restore_base(damaged[0])
            damaged = find_damage(self._store)  # what is made of version 0 may be sound
        log.info("versions_checked", damaged=sorted(damaged), seconds=round(time.monotonic() - started, 2))
        for version, reason in damaged.items():
            self._tell("version_unusable", version, reason)
        return found, damaged

    def _restore_base(self, reason: str) -> None:
        self._tell("version_unusable", 0, reason)
        base = self._make_base()
        self._store.restore(0, base.tensors, base.model_files, base.canaries)
        self._tell("version_restored", 0, "from model.path")

    def _drop(self, damaged: dict[int, str], keep: int | None) -> None:
        for version in sorted(damaged, reverse=True):
            if version != keep:
                self._store.drop(version)

    def _tell(self, kind: str, version: int, reason: str) -> None:
        log.warning(kind, weight_version=version, reason=reason)
        self._events.append(LEARNER_ID, kind, weight_version=version, reason=reason)


class DamageReports:
    """Calls `repair` on a thread of its own when a generator reports; `failed` gets what it raises.

    reports = DamageReports(events, repair, failed)
    reports.start()
    """

    def __init__(
        self,
        events: EventLog,
        repair: Callable[[], bool],
        failed: Callable[[BaseException], None],
        *,
        listen_s: float = LISTEN_S,
    ) -> None:
        self._events = events
        self._repair = repair
        self._failed = failed
        self._listen_s = listen_s
        self._seen = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="damage-reports", daemon=True)

    def start(self) -> None:
        """Follow the reports that come from now on."""
        self._seen, _ = self._events.read_new("")
        self._thread.start()

    def close(self) -> None:
        """Follow no more; a repair that takes longer than `JOIN_S` is finished by whoever owns its thread."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        quiet_until = 0.0
        while not self._closing.wait(self._listen_s):
            try:
                self._seen, events = self._events.read_new(self._seen)
            except UnavailableError as error:  # the loop's own requests decide how long that may last
                log.warning("reports_unread", error=error.message)
                continue
            reports = [event for event in events if event.kind == REPORTED]
            if not reports or time.monotonic() < quiet_until:
                continue
            log.warning("damage_reported", by=reports[-1].source, reason=str(reports[-1].fields.get("reason"))[:200])
            try:
                if not self._repair():
                    quiet_until = time.monotonic() + QUIET_S
            except BaseException as error:
                self._failed(error)
                return
