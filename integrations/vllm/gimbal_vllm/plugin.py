"""How vLLM comes to use the policy: its plug-in mechanism calls `register` in each of its processes.

vLLM has a table of EPLB policies and a configuration that allows one name in it, "default". There is no way to add a name, so the entry
behind that one is replaced, in memory and before the engine reads it. Whether this vLLM's policies are called as ours can be is read off
the signature of the one that is replaced; where it is another, nothing is changed and the log says so.
"""

from __future__ import annotations

import inspect
import os
import threading
from typing import Any, Callable, Optional

from .agreement import Agreement, TorchAgreement
from .client import PlacementClient
from .policy import PlacementPolicy, logger

_NAME = "default"
_MARK = "_is_gimbal_placement_policy"
_TIMEOUT_SECONDS = 10.0


def register() -> None:
    """The entry point. Does nothing without GIMBAL_PLACEMENT_URL; may be called again and again."""
    url = os.environ.get("GIMBAL_PLACEMENT_URL")
    if not url:
        return
    try:
        from vllm.distributed.eplb.policy import EPLB_POLICIES
    except ImportError as error:
        logger.warning("this vLLM has no table of EPLB policies (%s); it plans by itself", error)
        return
    engine = EPLB_POLICIES.get(_NAME)
    if getattr(engine, _MARK, False):
        return
    three_maps = _form_of(engine)
    if three_maps is None:
        logger.warning("this vLLM calls its EPLB policies in a way that is not known here; it plans by itself")
        return
    client = PlacementClient(
        url,
        model=os.environ.get("GIMBAL_PLACEMENT_MODEL", "default"),
        timeout_seconds=float(os.environ.get("GIMBAL_PLACEMENT_TIMEOUT_SECONDS", _TIMEOUT_SECONDS)),
        api_key=os.environ.get("GIMBAL_PLACEMENT_API_KEY"),
    )
    policy = PlacementPolicy(client, engine_agreement, engine.rebalance_experts, three_maps)
    EPLB_POLICIES[_NAME] = _policy_class(engine, policy)
    logger.info("EPLB asks %s for placements", url)


def _form_of(engine: Any) -> Optional[bool]:
    """Whether the engine wants three maps; None where this cannot be told, or where its policies are not told the map in force."""
    try:
        signature = inspect.signature(engine.rebalance_experts)
    except (AttributeError, TypeError, ValueError):
        return None
    expected = ["weight", "num_replicas", "num_groups", "num_nodes", "num_ranks", "old_global_expert_indices"]
    if list(signature.parameters) != expected:
        return None
    returned = signature.return_annotation
    text = returned if isinstance(returned, str) else repr(returned)
    if "tuple" in text.lower():
        return True if text.count("Tensor") == 3 else None
    return False if "Tensor" in text else None


def _policy_class(engine: Any, policy: PlacementPolicy) -> type:
    """vLLM keeps classes in its table, and calls the method on the class."""

    def rebalance_experts(cls: type, *args: Any, **kwargs: Any) -> Any:
        return policy.rebalance_experts(*args, **kwargs)

    members = {"rebalance_experts": classmethod(rebalance_experts), _MARK: True, "__doc__": PlacementPolicy.__doc__}
    return type("GimbalPlacementPolicy", (engine,), members)


def engine_agreement() -> Optional[Agreement]:
    """In the group that vLLM keeps for EPLB, which no other thread uses while it plans. Versions without one share the group of expert
    parallelism with the forward pass, so there only the thread of the forward pass may use it. All ranks run one version, and plan on
    the same thread: so they come to the same result here."""
    group = _group("get_eplb_group")
    if group is None and threading.current_thread() is threading.main_thread():
        group = _group("get_ep_group")
    return None if group is None else TorchAgreement(group)


def _group(getter: str) -> Any:
    from vllm.distributed import parallel_state

    get: Optional[Callable[[], Any]] = getattr(parallel_state, getter, None)
    try:
        return None if get is None else getattr(get(), "cpu_group", None)
    except AssertionError:  # What vLLM's getters raise before there is a group.
        return None
