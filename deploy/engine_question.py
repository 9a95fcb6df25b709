"""Whether an engine with these settings can serve their model; `sept run`, `eval`, `study`, `ray` and `doctor` ask."""

from __future__ import annotations

import asyncio
import os

from deploy.same_code import with_same_code
from deploy.settings import Settings
from generator.engines.ask import ask_engine
from learner.model_folder.check import weight_files
from learner.model_folder.local_folder import local_folder
from services.tensors import read_header


async def ask_about_model(settings: Settings) -> bool:
    """Whether the engine said that it can; ModelError with its reason if it cannot.

    A model that is still on the hub is not asked about.
    """
    folder = await asyncio.to_thread(local_folder, settings.model.path)
    if folder is None or not settings.generator.count:
        return False
    types = [place.dtype for file in weight_files(folder) for place in read_header(file).places.values()]
    return await ask_engine(
        settings.generator,
        folder,
        max_model_len=settings.longest_sequence,
        published_types=types,
        environ=with_same_code(os.environ),
    )
