"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Sets = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", show_default=False, help="section.key=value; wins over file and environment"),
]
Config = Annotated[Path, Parameter(name="--config", help="TOML file, or config.toml of a run's folder")]
OptionalConfig = Annotated[Path | None, Parameter(name="--config")]
Flag = Annotated[bool, Parameter(negative="")]
RunDir = Annotated[
    Path | None, Parameter(name="--run", help="the run's folder; default: the one that is active under runs/")
]
