"""Several processes that train one model: each takes a share of every batch, and all take the same step.

Started by torchrun (`torchrun --nproc-per-node 2 cli.py train-retriever`), over gloo on CPUs and NCCL on GPUs.
Every process holds the data and draws the same orders and the same negatives, so that W processes with shares of a
batch take the step that one process would take with the whole of it. Not so with in-batch negatives: the targets that
a process shares are those of its own part of the batch. Only the leader, process 0, writes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from store.errors import BadInput, Mismatch
from store.fingerprint import fingerprint

BUCKET_BYTES = 25 << 20
"""Gradients travel in pieces of about this size: the copies that this takes are no larger."""

# The others wait while the leader reads a catalog or validates. One that died is noticed at once, by torchrun.
_PATIENCE = timedelta(hours=12)
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Share:
    """One process's part of a batch.

    Attributes:
        place: which examples of the batch; never none, since every process takes part in every step.
        counts: 1, or 0 where the batch has too few examples and this is one that another process has, too.
    """

    place: slice
    counts: int


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it; every method but `share` is called by all of them.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: where small values travel between them.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, logs and validates."""
        return self.rank == 0

    def share(self, examples: int) -> Share:
        """This process's part of a batch of `examples` ≥ 1: every `size`-th, so that long ones are spread."""
        if self.rank < examples:
            return Share(slice(self.rank, None, self.size), 1)
        return Share(slice(0, 1), 0)

    def seed_step(self, seed: int, step: int) -> None:
        """Seeds torch for one step, so that dropout differs between processes, and a resumed step repeats it.

        A process that is alone goes on with the generator that it has.
        """
        if self.size > 1:
            torch.manual_seed(int(np.random.SeedSequence((seed, step, self.rank)).generate_state(1, np.uint64)[0]))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes, place by place, in float64; NaN stays NaN, for all alike."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def from_leader(self, compute: Callable[[], float]) -> float:
        """What `compute` gives in the leader, for all; the others wait and do not call it."""
        return self.sum([compute() if self.leads else 0.0])[0]

    def array_from_leader(self, compute: Callable[[], npt.NDArray[Any]], *, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array that `compute` gives in the leader, for all; the others wait and do not call it.

        Args:
            like: an array of its shape and type.
        """
        if self.size == 1:
            return compute()
        sent = torch.from_numpy(compute() if self.leads else np.empty_like(like)).to(self.device)
        dist.broadcast(sent, src=0)
        return sent.cpu().numpy()

    def wait(self) -> None:
        """Until all are here."""
        self.sum([0.0])

    def check_same(self, value: Any, what: str) -> None:
        """Makes sure that all processes have what the leader has.

        Args:
            value: anything that `store.fingerprint.fingerprint` takes.
            what: it is, for the message.

        Raises:
            Mismatch: in every process, naming those that differ.
        """
        own = int(fingerprint(value), 16) % (1 << 52)  # exact in float64
        found = self.sum([float(own) if rank == self.rank else 0.0 for rank in range(self.size)])
        if other := [str(rank) for rank, number in enumerate(found) if number != found[0]]:
            raise Mismatch(
                f"process {', '.join(other)} of {self.size} has other {what} than process 0: start all of them with "
                "one command line, on a run directory that all of them can read"
            )

    def broadcast_weights(self, model: nn.Module) -> None:
        """Gives every process the weights and saved buffers of the leader's model."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensor in model.state_dict().values():
                sent = tensor.contiguous()
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)

    def average_gradients(self, weights: Iterable[nn.Parameter], *, part: float) -> None:
        """Replaces the gradients of a mean over this process's positions by those of the mean over all.

        Sparse gradients stay sparse: rows and values are gathered, a row that several processes have is summed.

        Args:
            weights: the same in all processes.
            part: this process's positions divided by those of all; the parts sum to 1.
        """
        if self.size == 1:
            return
        trained = [weight for weight in weights if weight.grad is not None]
        dense = [weight.grad for weight in trained if weight.grad is not None and not weight.grad.is_sparse]
        for bucket in _buckets(dense):
            joined = torch.cat([gradient.reshape(-1) for gradient in bucket]).mul_(part)
            dist.all_reduce(joined)
            start = 0
            for gradient in bucket:
                gradient.copy_(joined[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()
        for weight in trained:
            if weight.grad is not None and weight.grad.is_sparse:
                weight.grad = self._sum_sparse(weight.grad * part)

    def _sum_sparse(self, gradient: Tensor) -> Tensor:
        """The sum of sparse gradients, whose numbers of rows differ from process to process."""
        own = gradient.coalesce()
        rows, values = own.indices(), own.values()  # (1, n), (n, D)
        counts = [int(n) for n in self.sum([float(rows.shape[1] * (rank == self.rank)) for rank in range(self.size)])]
        longest = max(counts)
        all_rows = self._gather(torch.cat([rows, rows.new_zeros(len(rows), longest - rows.shape[1])], dim=1))
        all_values = self._gather(torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])]))
        cut_rows = [part[:, :count] for part, count in zip(all_rows, counts, strict=True)]
        cut_values = [part[:count] for part, count in zip(all_values, counts, strict=True)]
        # Rank after rank, so that every process adds up in the same order and arrives at the same bits.
        return torch.sparse_coo_tensor(
            torch.cat(cut_rows, dim=1), torch.cat(cut_values), gradient.shape, check_invariants=False
        ).coalesce()

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts


ALONE = Team()
"""One process without others: every method is then the identity."""


@contextmanager
def joined_team() -> Iterator[Team]:
    """The team that torchrun has started this process for; `ALONE` where it was started by itself.

    Raises:
        BadInput: when the environment is half that of torchrun, or there are more processes than GPUs.
    """
    # Kubernetes and others set WORLD_SIZE=1 for single processes, too.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if missing := [name for name in _NEEDED if name not in os.environ]:
        raise BadInput(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set: start several processes "
            "with 'torchrun --nproc-per-node N cli.py …', or unset WORLD_SIZE to train in one"
        )
    device = device_of(int(os.environ["LOCAL_RANK"]), gpus=torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Its functions keep the group of the moment of their import as a default, and AdamW imports it in its first step:
    # the group would outlive `destroy_process_group`, and its threads now and then crash the end of the process.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def device_of(local_rank: int, *, gpus: int) -> torch.device:
    """The processor of one of a machine's processes: a GPU for each, or the CPU for all where there is none.

    Raises:
        BadInput: when there are fewer GPUs than processes.
    """
    if not gpus:
        return torch.device("cpu")
    if local_rank >= gpus:
        raise BadInput(
            f"this machine has {gpus} GPUs, too few for process {local_rank + 1}: start at most "
            f"--nproc-per-node {gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return torch.device("cuda", local_rank)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and processor, together of at most BUCKET_BYTES, or one alone."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        alike = not bucket or (gradient.dtype, gradient.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or size + gradient.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
