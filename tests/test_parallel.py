from __future__ import annotations

import os
from io import StringIO

import pytest
from rich.console import Console

from mtlsi.errors import MistakeError
from mtlsi.parallel import for_each


def square_and_process(index: int) -> tuple[int, int]:
    return index**2, os.getpid()


def refuse_seven(index: int) -> int:
    if index == 7:
        raise MistakeError("seven")
    return index


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_order_from_as_many_processes_as_asked(num_workers):
    said = Console(file=StringIO())
    results = list(for_each(square_and_process, 30, title="squares", num_workers=num_workers, console=said))
    assert [square for square, _ in results] == [index**2 for index in range(30)]
    processes = {process for _, process in results}
    assert (processes == {os.getpid()}) if num_workers == 0 else (os.getpid() not in processes)
    assert len(processes) <= max(num_workers, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_is_handed_on(num_workers):
    with pytest.raises(MistakeError, match="seven"):
        list(for_each(refuse_seven, 30, title="", num_workers=num_workers, console=Console(file=StringIO())))
