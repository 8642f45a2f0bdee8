"""How the ranks of one engine agree.

Two operations, which every rank calls in the same order. Both raise where the group does not work any more: a rank that cannot hear the
others must not decide anything, so the policy lets that through.
"""

from __future__ import annotations

from typing import Optional, Protocol


class Agreement(Protocol):
    rank: int
    size: int

    def gather(self, word: bytes) -> list[bytes]:
        """Every rank's word, in the order of ranks. Words have one length."""

    def spread(self, message: Optional[bytes]) -> bytes:
        """Rank 0's message, on every rank. The others pass None."""


class TorchAgreement:
    """Over a torch process group of CPU tensors (gloo).

    Of torch's collectives only all_reduce is used: it is the one that vLLM itself calls on this group, so it works on every kind of
    group that vLLM makes. Sums of which all terms but one are zero are copies.
    """

    _LENGTH_BYTES = 8

    def __init__(self, group) -> None:
        self._group = group
        self.rank = group.rank()
        self.size = group.size()

    def gather(self, word: bytes) -> list[bytes]:
        import torch

        table = torch.zeros((self.size, len(word)), dtype=torch.uint8)
        table[self.rank] = torch.frombuffer(bytearray(word), dtype=torch.uint8)
        torch.distributed.all_reduce(table, group=self._group)
        return [bytes(row.tolist()) for row in table]

    def spread(self, message: Optional[bytes]) -> bytes:
        import torch

        own = message or b""
        lengths = self.gather(len(own).to_bytes(self._LENGTH_BYTES, "little"))
        sent = torch.zeros(int.from_bytes(lengths[0], "little"), dtype=torch.uint8)
        if self.rank == 0:
            sent[:] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        torch.distributed.all_reduce(sent, group=self._group)
        return sent.numpy().tobytes()
