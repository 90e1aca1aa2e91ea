"""Several processes that work on one thing: found by the environment, joined, and ended together.

``torchrun``, ``accelerate launch`` and MPI announce the processes in environment variables. ``join`` starts accelerate on
the back end that fits them, NCCL where there are GPUs and gloo where there are none, and never leaves a process to believe
that it is alone. ``leave`` ends all of them: what went wrong in one is said once, and all have its exit code.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtlsi.errors import MistakeError, message_of
from mtlsi.later import Later

if TYPE_CHECKING:
    import accelerate
    import torch
    import torch.distributed as dist
else:  # one process needs none of them to know that it is alone
    torch, dist, accelerate = Later("torch"), Later("torch.distributed"), Later("accelerate")

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Variables that say how many processes there are and which of them this is: torchrun's, then those of MPI."""
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What accelerate's configurations can ask for beside plain data parallelism."""
POLL_S = 0.2
"""So often a process looks whether another one has ended the work."""
PATIENCE_S = 10.0
"""A process that ends the work waits for the others to notice at most this long."""
SILENCE_S = 30.0
"""The first process, which leaves last, takes the others for lost after as long without a sign of life."""
LOADER = "DataLoader worker (pid"
"""What torch calls a loader process that is gone."""
LOST = "another process is gone: it was killed, or its machine failed; a training run goes on with --resume"


def announced(variables: Sequence[str] = SIZES) -> int:
    """How many processes the environment announces in ``variables``; 1 where it announces none. Imports nothing.

    Raises ``MistakeError`` for a launcher that was asked for several processes and starts one.
    """
    for name in variables:
        if (text := os.environ.get(name)) is not None:
            if not _is_number(text) or int(text) < 1:
                raise MistakeError(f"{name}={text} in the environment; expected the number of processes")
            return int(text)
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
        raise MistakeError(
            "accelerate launch was asked for several processes and started one, as it does without GPUs; start them with "
            "torchrun --nproc_per_node 2 -m mtlsi.cli ..."
        )
    return 1


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def check_tasks_of_slurm() -> None:
    """Raises ``MistakeError`` where srun started several tasks of one step, which are not told of one another."""
    number = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if announced() == 1 and _is_number(number) and int(number) > 1 and "SLURM_PROCID" in os.environ:
        raise MistakeError(
            f"srun started {number} tasks that do not know of one another; start one task on each machine, and in it "
            "torchrun, as docs/many_machines.md has it"
        )


def index() -> int:
    """Which of the announced processes this is, from 0. Imports nothing."""
    return next((int(os.environ[name]) for name in RANKS if _is_number(os.environ.get(name, ""))), 0)


def join(*, cpu: bool = False) -> None:
    """Meet the other processes that the environment announces; may be called again. One process goes on as it is.

    ``cpu``: leave GPUs alone. Raises ``MistakeError`` where fewer processes are met than are announced.
    """
    wanted = announced()
    if wanted == 1 or has_joined():
        return
    for name, engine in SHARDED.items():
        if os.environ.get(name, "").lower() in ("1", "true", "yes"):
            raise MistakeError(
                f"accelerate's configuration asks for {engine}, which shards a network; launch with torchrun, or with "
                "accelerate launch --multi_gpu, and share the network out with --train.shard true"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "OMP_NUM_THREADS"
        )  # accelerate shares the cores out, which is as it should be
        try:
            state = accelerate.PartialState(cpu=cpu or not _has_gpu())
        except (ValueError, RuntimeError) as error:
            raise MistakeError(
                f"the {wanted} processes that the environment announces cannot meet ({message_of(error, 200)}); "
                "start them with torchrun, as docs/many_machines.md has it"
            ) from error
    if state.num_processes != wanted:
        raise MistakeError(
            f"the environment announces {wanted} processes and accelerate {accelerate.__version__} meets "
            f"{state.num_processes}; start them with torchrun --nproc_per_node {wanted} -m mtlsi.cli ..."
        )
    # some kernels give the gradients of small convolutions in another order of memory: a copy more
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    global _watch
    _watch = _Watch()
    atexit.register(_watch.stop)  # a script of one's own need not call leave


def _has_gpu() -> bool:
    """Whether there is an accelerator that processes can meet on: Apple's has no back end for it."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return here is not None and here.type != "mps" and not forced


def has_joined() -> bool:
    """Whether this process works with others."""
    return "torch" in sys.modules and dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return dist.get_rank() == 0 if has_joined() else index() == 0


def number() -> int:
    """How many processes work together."""
    return dist.get_world_size() if has_joined() else 1


def in_all(verdict: torch.Tensor) -> torch.Tensor:
    """Whether the bool ``verdict`` is true in every process, on its device."""
    if not has_joined():
        return verdict
    shared = verdict.float()
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return shared > 0


def own_device() -> torch.device | None:
    """The device of this process among those of the others; None where it works alone."""
    return accelerate.PartialState().device if has_joined() else None


def share(items: Sequence[Any], batch_size: int) -> list[Any]:
    """The items of this process, each in one process: batches are those of one process, and every n-th is its own."""
    if not has_joined():
        return list(items)
    starts = range(dist.get_rank() * batch_size, len(items), number() * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def gathered(value: Any) -> list[Any]:
    """What each process gave, in their order, in all of them."""
    if not has_joined():
        return [value]
    found: list[Any] = [None] * number()
    dist.all_gather_object(found, value)
    return found


def of_first(value: Any) -> Any:
    """What the first process gave, in all of them."""
    if not has_joined():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def means(values: Mapping[str, float]) -> dict[str, float]:
    """Each figure's mean over the processes, which all name the same ones."""
    if not has_joined():
        return dict(values)
    names = sorted(values)
    sums = torch.tensor([values[name] for name in names], dtype=torch.float64, device=own_device())
    dist.all_reduce(sums)
    found = dict(zip(names, (sums / number()).tolist(), strict=True))
    return {name: found[name] for name in values}


# ---- the end


def say(line: str) -> None:
    """``line`` on standard error, unless another process has said what is wrong already."""
    if _watch is None:
        speaks = index() == 0  # what goes wrong before they meet goes wrong in all of them
    else:
        try:
            speaks = _watch.store.add("mtlsi/said", 1) == 1
        except RuntimeError:  # the process that keeps the store was killed: nobody knows what has been said
            speaks = True
    if speaks:
        print(line, file=sys.stderr, flush=True)


def lost_another(error: Exception) -> bool:
    """Whether ``error`` came of a call that another process was to answer, and did not."""
    return has_joined() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def lost_loader(error: Exception) -> str | None:
    """What became of a loader process, in words, where ``error`` came of its end; None where it did not."""
    if LOADER not in str(error) and "Too many open files" not in str(error):
        return None
    return (
        f"a loader process ended unexpectedly ({message_of(error, 160)}): what it could not have is told above, or else the "
        "system has killed it, as it does when memory runs out; ask for fewer with data.num_workers or --workers"
    )


def leave(code: int) -> None:
    """The last call of a process that has joined others. With another ``code`` than 0 all of them end with it.

    Ctrl-C from now on ends this one at once: it would break off what the others wait for, with a traceback.
    """
    global _watch
    watch, _watch = _watch, None
    if watch is None:
        return
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: _end_at_once(130))
    code = watch.leave(code)
    if code == 0 and has_joined():
        dist.destroy_process_group()
    elif code:
        atexit.register(_end_at_once, code)


def _end_at_once(code: int) -> None:
    """End without the engine's own farewell, which may wait for the others, or abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Watch:
    """A thread that ends this process when another one has ended the work: a collective call would wait for it forever.

    All know of one another by the store that they met at. It lives in the first process or with the launcher.
    """

    def __init__(self) -> None:
        store = dist.distributed_c10d._get_default_store()
        # its own connection: it could else not look while the main thread waits for an answer; older torch has but one
        self.store = store.clone() if hasattr(store, "clone") else store
        self.over = threading.Event()
        self.told: set[str] = set()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Look no more. Python aborts where it ends while a thread is in a call of the store."""
        self.over.set()
        self.thread.join(10 * POLL_S)

    def leave(self, code: int) -> int:
        """Say that this process ends with ``code``, and wait for the others where they need it; the code of all of them."""
        self.stop()
        try:
            if code:
                code = self._ended() or code  # what breaks off because another one ended ends as that one did
                self.store.set("mtlsi/ended", str(code))
            elif index() == 0:
                code = self._ended() if self._others_end() else self._lost()
            else:
                code = self._ended()
                if not code:
                    self._count("done", 1)
            if code:
                self._part()
        except RuntimeError:  # the first process was killed
            return code or 1
        return code

    def _others_end(self) -> bool:
        """Whether the others are done, or end with another code than 0; False where one that does neither is silent."""
        heard, until = -1, 0.0
        while not (self._ended() or self._count("done") == number() - 1):
            if (beats := self._count("beats")) != heard:
                heard, until = beats, time.monotonic() + SILENCE_S
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S / 4)
        return True

    def _lost(self) -> int:
        """Say that another process is gone, to all that are left; the code to end with."""
        print(f"mtlsi: {LOST}", file=sys.stderr, flush=True)
        self.store.set("mtlsi/ended", "1")
        return 1

    def _part(self) -> None:
        """Wait until all know that the work has ended. The first process, which may keep the store, leaves last."""
        done = self._count("done")
        self._tell("noticed")
        self._wait(lambda: self._count("noticed") + done >= number(), PATIENCE_S)
        if index() == 0:
            others = self._count("noticed") - 1  # one that was killed is not waited for again
            self._wait(lambda: self._count("gone") >= others, PATIENCE_S)
        else:
            self._tell("gone")

    def _tell(self, name: str) -> None:
        """Count this process among those that have ``name``, once: its main thread and its watch may both come here."""
        if name not in self.told:
            self.told.add(name)
            self._count(name, 1)

    def _count(self, name: str, more: int = 0) -> int:
        return self.store.add(f"mtlsi/{name}", more)

    @staticmethod
    def _wait(fulfilled: Callable[[], Any], seconds: float = float("inf")) -> None:
        until = time.monotonic() + seconds
        while not fulfilled() and time.monotonic() < until:
            time.sleep(POLL_S / 4)

    def _ended(self) -> int:
        """The code with which some process has ended the work; 0 where none has."""
        return int(self.store.get("mtlsi/ended")) if self.store.check(["mtlsi/ended"]) else 0

    def _run(self) -> None:
        while not self.over.wait(POLL_S):
            try:
                if index() > 0:
                    self._count("beats", 1)
                code = self._ended()
                if code and not self.over.is_set():
                    self._part()
            except RuntimeError:  # the process that keeps the store was killed
                code = 1
                if not self.over.is_set():
                    print(f"mtlsi: {LOST}", file=sys.stderr, flush=True)
            if code and not self.over.is_set():
                os._exit(code)  # the main thread may be in a call that cannot be broken off


_watch: _Watch | None = None
