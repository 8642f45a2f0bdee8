"""Maps of physical to logical experts, as numpy arrays: what vLLM demands of one, and what it derives from one.

Shapes: a map is [layers, slots] of int64; the slots of rank r are r*K ... r*K+K-1.
"""

from __future__ import annotations

import hashlib
from typing import Optional

import numpy as np


def fault_of(candidate: np.ndarray, layers: int, slots: int, experts: int) -> Optional[str]:
    """What is wrong with a map; None where an engine can serve by it."""
    if candidate.shape != (layers, slots):
        return f"its shape is {candidate.shape}, not {(layers, slots)}"
    if candidate.size and (candidate.min() < 0 or candidate.max() >= experts):
        return f"it names experts outside 0 to {experts - 1}"
    for layer, row in enumerate(candidate):
        held = np.unique(row).size
        if held < experts:
            return f"{experts - held} experts of layer {layer} have no slot"
    return None


def logical_maps(physical_to_logical: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots by expert [layers, experts, slots - experts + 1], padded with -1, and replicas by expert [layers, experts]."""
    layers, slots = physical_to_logical.shape
    replicas = np.zeros((layers, experts), dtype=np.int64)
    slots_of = np.full((layers, experts, slots - experts + 1), -1, dtype=np.int64)
    for layer in range(layers):
        for slot, expert in enumerate(physical_to_logical[layer]):
            slots_of[layer, expert, replicas[layer, expert]] = slot
            replicas[layer, expert] += 1
    return slots_of, replicas


def digest_of(*parts: object) -> bytes:
    """32 bytes that differ where any of the parts does: arrays, or what has a plain repr."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            whole.update(repr((part.shape, part.dtype.str)).encode())
            whole.update(np.ascontiguousarray(part).tobytes())
        else:
            whole.update(repr(part).encode())
        whole.update(b"\0")
    return whole.digest()
