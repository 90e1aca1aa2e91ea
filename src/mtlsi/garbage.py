"""When Python looks for garbage: not while a command starts.

What importing torch and building a network make, hundreds of thousands of objects, stays until the process ends. To search
it for garbage, again and again while it grows and once more at the end, takes a fifth of the time to import torch. For a
process that is our own; another program's is left as it is.
"""

from __future__ import annotations

import gc

_paused = False


def pause() -> None:
    """Do not look for garbage until ``resume``, where Python does."""
    global _paused
    _paused = gc.isenabled()
    gc.disable()


def resume() -> None:
    """After ``pause``: look for garbage again, in what is made from now on. May be called again."""
    global _paused
    if _paused:
        _paused = False
        gc.freeze()
        gc.enable()
