"""Delta_m: how much a multi-task network gains or loses against single-task networks."""

from __future__ import annotations

from collections.abc import Mapping

from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS, check_tasks


def delta_m(results: Mapping[str, float], single_task: Mapping[str, float]) -> float:
    """Mean over tasks of the relative change against the single-task scores, in percent; above 0 is better.

    Both map a task's name to its headline score (``Task.score``); a score where lower is better counts with its sign
    turned. Raises ``MistakeError`` where the two name different tasks or a single-task score is not above 0.
    """
    tasks = check_tasks(results)
    if set(tasks) != set(single_task):
        raise MistakeError(
            f"scores given for {', '.join(sorted(tasks))}, single-task scores for {', '.join(sorted(single_task))};"
            " expected the same tasks in both"
        )
    total = 0.0
    for task in tasks:
        baseline = float(single_task[task])
        if not baseline > 0:
            raise MistakeError(f"single-task score of {task}: {baseline}; expected a number above 0 to divide by")
        change = (float(results[task]) - baseline) / baseline
        total += change if TASKS[task].higher_is_better else -change
    return 100 * total / len(tasks)
