"""The command line. It is the top: it imports everything, and nothing imports it.

Importing it decides where modules come from, before any other of ours is imported: from this package's own folder.
"""
# ruff: noqa: PTH109, PTH119, PTH120 - pathlib itself could come from the wrong place here

import os
import sys


def _prefer_own_code() -> None:
    """Keep the working directory out of sys.path, and let PYTHONPATH add modules but replace none.

    A person's own services/ or redis.py, or another checkout, must not become part of a run.
    """
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    if not sys.flags.safe_path and sys.path and _is_working_directory(sys.path[0]):
        del sys.path[0]
    given = os.environ.get("PYTHONPATH")  # an empty entry, as a colon at its end makes one, is the working directory
    added = {os.path.realpath(entry) for entry in given.split(os.pathsep)} if given else set()
    installed = [entry for entry in sys.path if os.path.realpath(entry) not in added]
    if os.path.basename(root) not in ("site-packages", "dist-packages"):  # a checkout, which has no standard library
        installed = [root, *(entry for entry in installed if entry != root)]
    sys.path[:] = [*installed, *(entry for entry in sys.path if entry not in installed)]


def _is_working_directory(entry: str) -> bool:
    try:
        return entry in ("", os.getcwd())
    except FileNotFoundError:  # it was removed
        return False


_prefer_own_code()
