"""The policy: what vLLM calls `rebalance_experts`, on every rank, with the same arguments.

A call has four steps, of which no rank leaves one out alone:

1. the ranks compare digests of their arguments;
2. rank 0 asks the placement service, within its time limit;
3. rank 0's outcome, the plan with its map or that there is none, goes to all ranks, and each checks it for itself;
4. the ranks compare what they hold. Where all hold the same good plan, all return its map; else all return the map in force.

Where the group itself fails, the call raises: a rank that cannot hear the others must not return anything.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Callable, Optional

import numpy as np

from .agreement import Agreement
from .client import Answer, PlacementClient, ServiceFailure
from .maps import digest_of, fault_of, logical_maps

# A child of vLLM's own logger, so that its level and handlers hold.
logger = logging.getLogger("vllm.plugins.gimbal_vllm")

_GOOD, _BAD = b"\x01", b"\x00"


class PlacementPolicy:
    """`three_maps`: whether this vLLM wants the maps that follow from the first one too.

    `agreement()` gives the group, or None where the ranks have no safe way to talk; it must do the same on every rank. `engine` is the
    engine's own policy: it plans where there is no map to keep, when the number of ranks changes.
    """

    def __init__(
        self,
        client: PlacementClient,
        agreement: Callable[[], Optional[Agreement]],
        engine: Callable[..., Any],
        three_maps: bool = False,
    ) -> None:
        self._client = client
        self._agreement = agreement
        self._engine = engine
        self._three_maps = three_maps

    def rebalance_experts(
        self,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any:
        """`weight` [layers, experts], `old_global_expert_indices` [layers, num_replicas]; tensors or arrays. Returns what came in:
        tensors on the weight's device, or arrays."""
        loads = _as_array(weight)
        old = None if old_global_expert_indices is None else _as_array(old_global_expert_indices).astype(np.int64)
        # When an engine grows or shrinks its ranks, no old map fits: there is nothing to fall back to but the engine's own plan. All
        # ranks see these numbers alike, since the engine configures them.
        if old is None or old.shape != (loads.shape[0], num_replicas):
            logger.info("no map of %d slots is in force; the engine's own policy plans", num_replicas)
            return self._engine(weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices)
        agreement = self._agreement()
        if agreement is None:
            logger.warning("the ranks have no group of their own to agree in; the map stays as it is")
            chosen = old
        elif agreement.size != num_ranks:
            logger.warning("%d ranks can agree, %d are to be served; the map stays as it is", agreement.size, num_ranks)
            chosen = old
        else:
            chosen = self._agreed(agreement, loads, old, (num_groups, num_nodes, num_ranks))
        return self._in_form(chosen, loads.shape[1], weight)

    def _agreed(self, agreement: Agreement, loads: np.ndarray, old: np.ndarray, counts: tuple[int, int, int]) -> np.ndarray:
        words = agreement.gather(digest_of(loads, old, counts))
        if len(set(words)) > 1:
            logger.error("the ranks were called with %d different arguments; the map stays as it is", len(set(words)))
            return old
        # Before any traffic, as when the engine measures its memory.
        if not loads.any():
            return old

        answer: Optional[Answer] = None
        message: Optional[bytes] = None
        if agreement.rank == 0:
            answer, message = self._outcome(loads, old, counts)
        message = agreement.spread(message)
        chosen, plan, why = _read_outcome(message, loads, old)

        verdict = _BAD if chosen is None else _GOOD
        held = b"" if chosen is None else chosen.tobytes()
        words = agreement.gather(verdict + digest_of(message, held))
        agreed = len(set(words)) == 1 and chosen is not None
        if answer is not None:
            self._client.report(answer, agreed, why)
        if not agreed:
            logger.error("no plan that all ranks hold (%s); the map stays as it is on all of them", why)
            return old
        assert chosen is not None
        if agreement.rank == 0:
            moved = int((chosen != old).sum())
            logger.info("plan %s, %s: %d of %d slots change", plan, why, moved, old.size)
        return chosen

    def _outcome(self, loads: np.ndarray, old: np.ndarray, counts: tuple[int, int, int]) -> tuple[Optional[Answer], bytes]:
        """Rank 0's: a line of JSON, then the map. Whatever goes wrong here is an outcome too, for the others wait for it."""
        try:
            answer = self._client.ask(loads, old, *counts)
        except Exception as error:  # noqa: BLE001
            failure = str(error) if isinstance(error, ServiceFailure) else repr(error)
            return None, json.dumps({"failure": failure}).encode() + b"\n"
        if answer.shadow is not None:
            logger.info("shadow mode: the service %s", answer.shadow)
        header = json.dumps({"plan": answer.plan_id, "rearrange": answer.rearrange, "why": answer.reason})
        return answer, header.encode() + b"\n" + answer.map.tobytes()

    def _in_form(self, chosen: np.ndarray, experts: int, like: Any) -> Any:
        if not self._three_maps:
            return _like(chosen, like)
        slots_of, replicas = logical_maps(chosen, experts)
        return _like(chosen, like), _like(slots_of, like), _like(replicas, like)


def _read_outcome(message: bytes, loads: np.ndarray, old: np.ndarray) -> tuple[Optional[np.ndarray], str, str]:
    """The map, the plan's id, and why; no map where there is none or it is not to be served by. Never raises: the other ranks would
    wait for the comparison in vain."""
    head, _, data = message.partition(b"\n")
    try:
        header = json.loads(head)
        if "failure" in header:
            return None, "", str(header["failure"])
        plan, rearrange, why = header["plan"], header["rearrange"], header["why"]
    except (ValueError, KeyError, TypeError) as error:
        return None, "", f"rank 0's outcome did not arrive whole: {error!r}"
    if len(data) != old.nbytes:
        return None, plan, f"plan {plan} has a map of {len(data)} bytes"
    # A copy: what is read from bytes cannot be written to.
    new = np.frombuffer(data, dtype=np.int64).reshape(old.shape).copy()
    fault = fault_of(new, *old.shape, loads.shape[1])
    if fault is not None:
        return None, plan, f"plan {plan} cannot be served: {fault}"
    if not rearrange and not np.array_equal(new, old):
        return None, plan, f"plan {plan} is to keep the map, and has another"
    return new, plan, why


def _as_array(values: Any) -> np.ndarray:
    """Of a tensor on any device, or of an array."""
    return np.asarray(values.detach().cpu()) if hasattr(values, "detach") else np.asarray(values)


def _like(array: np.ndarray, values: Any) -> Any:
    """A tensor on the device of `values` where these are one."""
    if not hasattr(values, "detach"):
        return array
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(values.device)
