"""How the plug-in enters a vLLM: every form of policy table that released versions have had, as modules made here."""

import inspect
import logging
import os
import pathlib
import sys
import threading
import types
import unittest
from unittest import mock

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "integrations" / "vllm"))

from gimbal_vllm import plugin, register  # noqa: E402
from gimbal_vllm.maps import digest_of, fault_of, logical_maps  # noqa: E402


class Tensor:
    """Stands in for torch's in annotations."""


class OneMap:
    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None) -> Tensor:
        return "engine"

    @staticmethod
    def another_method():
        return "kept"


class ThreeMaps:
    @classmethod
    def rebalance_experts(
        cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return "engine"


class WithoutOldMap:
    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks) -> tuple[Tensor, Tensor, Tensor]:
        return "engine"


class Unannotated:
    @classmethod
    def rebalance_experts(cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None):
        return "engine"


class OnInstances:
    def rebalance_experts(self, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None) -> Tensor:
        return "engine"


def fake_vllm(policy=None, **getters):
    """sys.modules of a vLLM with this policy table; without a table where `policy` is None."""
    names = ["vllm", "vllm.distributed", "vllm.distributed.parallel_state", "vllm.distributed.eplb"]
    modules = {name: types.ModuleType(name) for name in names}
    modules["vllm.distributed"].parallel_state = modules["vllm.distributed.parallel_state"]
    for name, getter in getters.items():
        setattr(modules["vllm.distributed.parallel_state"], name, getter)
    modules["vllm.distributed.eplb.policy"] = None
    if policy is not None:
        table = types.ModuleType("vllm.distributed.eplb.policy")
        table.EPLB_POLICIES = {"default": policy}
        modules["vllm.distributed.eplb.policy"] = table
    return mock.patch.dict(sys.modules, modules)


def group(size=1):
    made = types.SimpleNamespace(rank=lambda: 0, size=lambda: size)
    return types.SimpleNamespace(cpu_group=made)


class Register(unittest.TestCase):
    def setUp(self):
        patch = mock.patch.dict(os.environ, {"GIMBAL_PLACEMENT_URL": "http://127.0.0.1:1"})
        patch.start()
        self.addCleanup(patch.stop)
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def table_after(self, policy, calls=1):
        with fake_vllm(policy):
            for _ in range(calls):
                register()
            return sys.modules["vllm.distributed.eplb.policy"].EPLB_POLICIES

    def test_nothing_without_an_address(self):
        with mock.patch.dict(os.environ):
            del os.environ["GIMBAL_PLACEMENT_URL"]
            self.assertIs(self.table_after(OneMap)["default"], OneMap)

    def test_the_entry_is_replaced_and_is_still_the_engines_kind(self):
        table = self.table_after(OneMap)
        self.assertEqual(list(table), ["default"])
        self.assertIsNot(table["default"], OneMap)
        self.assertTrue(issubclass(table["default"], OneMap))
        self.assertEqual(table["default"].another_method(), "kept")

    def test_again_and_again_changes_nothing_more(self):
        logging.disable(logging.NOTSET)
        with self.assertLogs("vllm.plugins.gimbal_vllm") as logged:
            once = self.table_after(OneMap, calls=3)["default"]
        self.assertEqual(len(logged.records), 1)
        self.assertEqual(len(once.__mro__), len(OneMap.__mro__) + 1)

    def test_the_form_is_read_off_the_signature(self):
        self.assertIs(plugin._form_of(OneMap), False)
        self.assertIs(plugin._form_of(ThreeMaps), True)

    def test_text_annotations_are_read_too(self):
        signature = inspect.signature(ThreeMaps.rebalance_experts)
        text = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"
        with mock.patch("inspect.signature", return_value=signature.replace(return_annotation=text)):
            self.assertIs(plugin._form_of(ThreeMaps), True)
        with mock.patch("inspect.signature", return_value=signature.replace(return_annotation="torch.Tensor")):
            self.assertIs(plugin._form_of(OneMap), False)

    def test_unknown_forms_are_left_alone(self):
        for policy in (WithoutOldMap, Unannotated, OnInstances, object, None):
            with self.subTest(policy=policy):
                if policy is None:
                    with fake_vllm(None):
                        register()
                else:
                    self.assertIs(self.table_after(policy)["default"], policy)

    def test_it_is_called_as_the_engine_calls(self):
        replaced = self.table_after(OneMap)["default"]
        self.assertEqual(replaced.rebalance_experts(np.ones((1, 4)), 8, 1, 1, 2, None), "engine")
        old = np.array([[0, 1, 2, 3]])
        with fake_vllm(OneMap):  # No group at all: the map stays.
            kept = replaced.rebalance_experts(np.ones((1, 4)), 4, 1, 1, 2, old_global_expert_indices=old)
        self.assertEqual(kept.tolist(), old.tolist())


class TheGroup(unittest.TestCase):
    def agreement_on(self, thread, **getters):
        found = []
        with fake_vllm(None, **getters):
            if thread == "main":
                found.append(plugin.engine_agreement())
            else:
                other = threading.Thread(target=lambda: found.append(plugin.engine_agreement()))
                other.start()
                other.join()
        return found[0]

    def test_of_eplb_is_taken_on_any_thread(self):
        getters = {"get_eplb_group": lambda: group(8), "get_ep_group": lambda: group(2)}
        self.assertEqual([self.agreement_on(thread, **getters).size for thread in ("main", "other")], [8, 8])

    def test_of_expert_parallelism_on_the_forward_pass_thread_alone(self):
        getters = {"get_ep_group": lambda: group(2)}
        self.assertEqual(self.agreement_on("main", **getters).size, 2)
        self.assertIsNone(self.agreement_on("other", **getters))

    def test_is_none_before_the_engine_has_made_one(self):
        def absent():
            raise AssertionError("group is not initialized")

        self.assertIsNone(self.agreement_on("main", get_eplb_group=absent, get_ep_group=absent))


class Maps(unittest.TestCase):
    def test_faults_are_named(self):
        good = np.array([[0, 1, 2, 0]])
        self.assertIsNone(fault_of(good, 1, 4, 3))
        self.assertIn("shape", fault_of(good, 1, 5, 3))
        self.assertIn("outside", fault_of(np.array([[0, 1, 3, 0]]), 1, 4, 3))
        self.assertIn("outside", fault_of(np.array([[0, 1, -1, 2]]), 1, 4, 3))
        self.assertIn("layer 1", fault_of(np.array([[0, 1, 2, 0], [0, 1, 1, 0]]), 2, 4, 3))

    def test_logical_maps_of_a_hand_worked_case(self):
        slots_of, replicas = logical_maps(np.array([[2, 0, 1, 0]]), 3)
        self.assertEqual(slots_of.tolist(), [[[1, 3], [2, -1], [0, -1]]])
        self.assertEqual(replicas.tolist(), [[2, 1, 1]])

    def test_digests_tell_values_shapes_and_types_apart(self):
        base = np.arange(4)
        others = [base + 1, base.reshape(2, 2), base.astype(np.int32), base.astype(np.float64)]
        self.assertEqual(digest_of(base, (1, 2)), digest_of(base.copy(), (1, 2)))
        digests = {digest_of(array, (1, 2)) for array in [base, *others]} | {digest_of(base, (1, 3)), digest_of(base)}
        self.assertEqual(len(digests), 7)


if __name__ == "__main__":
    unittest.main()
