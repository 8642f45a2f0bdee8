"""Plays the ranks of one engine: forks them, has each call the policy, and prints what each got, as JSON.

    python3 ranks.py < CONFIG

The ranks talk over sockets through a hub in this process; or, with "torch", over torch's own gloo group. Where a rank dies, the hub
hangs up on all, as a process group would. "fault" says what goes wrong on one of them.
"""

import base64
import json
import logging
import os
import pathlib
import socket
import struct
import sys
import tempfile
import threading

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "integrations" / "vllm"))
sys.dont_write_bytecode = True

from gimbal_vllm import PlacementClient, PlacementPolicy, TorchAgreement  # noqa: E402

DIED = 9


class SocketAgreement:
    def __init__(self, rank, size, wire):
        self.rank, self.size, self._wire = rank, size, wire

    def gather(self, word):
        send(self._wire, word)
        return [receive(self._wire) for _ in range(self.size)]

    def spread(self, message):
        return self.gather(message or b"")[0]


def send(wire, word):
    wire.sendall(struct.pack("<I", len(word)) + word)


def receive(wire):
    (length,) = struct.unpack("<I", receive_bytes(wire, 4))
    return receive_bytes(wire, length)


def receive_bytes(wire, length):
    received = b""
    while len(received) < length:
        part = wire.recv(length - len(received))
        if not part:
            raise ConnectionError("the group has lost a rank")
        received += part
    return received


def hub(wires):
    """Round by round, until one hangs up."""
    try:
        while True:
            words = [receive(wire) for wire in wires]
            for wire in wires:
                for word in words:
                    send(wire, word)
    except OSError:
        pass
    finally:
        for wire in wires:
            wire.close()


class Faulty:
    """An agreement with which something goes wrong at one rank, in one of the policy's three operations: 0, 1 or 2."""

    def __init__(self, inner, fault):
        self._inner, self._fault, self._operation = inner, fault, -1
        self.rank, self.size = inner.rank, inner.size

    def gather(self, word):
        self._next()
        return self._inner.gather(word)

    def spread(self, message):
        self._next()
        received = bytearray(self._inner.spread(message))
        if self._is_here("flip"):
            received[self._fault["byte"]] ^= 1
        return bytes(received)

    def _next(self):
        self._operation = (self._operation + 1) % 3
        if self._is_here("die"):
            os._exit(DIED)

    def _is_here(self, what):
        fault = self._fault
        return fault.get("do") == what and fault["rank"] == self.rank and fault["operation"] == self._operation


def play(rank, config, agreement):
    fault = config.get("fault", {})
    client = PlacementClient(config["url"], "model", config.get("timeoutSeconds", 10.0))
    weight = np.array(config["weight"], dtype=config.get("dtype", "int64"))
    old = np.array(config["old"], dtype=np.int64)
    if fault.get("do") == "other-weight" and fault["rank"] == rank:
        weight[0, 0] += 1
    if fault.get("do") == "other-old" and fault["rank"] == rank:
        old[0, [0, 1]] = old[0, [1, 0]]
    if fault.get("do") == "die-asking" and rank == 0:
        client.ask = lambda *_: os._exit(DIED)
    policy = PlacementPolicy(client, lambda: Faulty(agreement, fault), engine_of(config), config.get("threeMaps", False))
    counts = (config.get("groups", 1), config.get("nodes", 1), config["ranks"])
    maps = []
    for _ in range(config.get("calls", 1)):
        given = [weight, old]
        if config.get("torch"):
            import torch

            given = [torch.from_numpy(array.copy()) for array in given]
        result = policy.rebalance_experts(given[0], config.get("slots", old.shape[1]), *counts, given[1])
        maps.append([described(array) for array in (result if isinstance(result, tuple) else [result])])
        first = result[0] if isinstance(result, tuple) else result
        old = np.asarray(first)
    return maps


def engine_of(config):
    """The engine's own policy, which must not be asked unless the test says so."""

    def plan(weight, slots, *_):
        if not config.get("enginePlans"):
            raise AssertionError("the engine's own policy was asked")
        return np.tile(np.arange(slots) % weight.shape[1], (weight.shape[0], 1))

    return plan


def described(array):
    kind = type(array).__module__.split(".")[0]
    array = np.asarray(array)
    data = base64.b64encode(array.astype("<i4").tobytes()).decode()
    return {"kind": kind, "dtype": str(array.dtype), "shape": list(array.shape), "map": data, "writeable": array.flags.writeable}


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


def be(rank, config, wire, store, report):
    logger, lines = logging.getLogger("vllm.plugins.gimbal_vllm"), Lines()
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    result = {"rank": rank}
    try:
        agreement = SocketAgreement(rank, config["ranks"], wire)
        if config.get("torch"):
            import torch

            torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=config["ranks"])
            agreement = TorchAgreement(torch.distributed.group.WORLD)
        result["calls"] = play(rank, config, agreement)
    except BaseException as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["log"] = lines.lines
    # Reports to the service run behind the call.
    for thread in threading.enumerate():
        if thread.name == "gimbal-report":
            thread.join(10)
    report.write_text(json.dumps(result))


def main():
    config = json.load(sys.stdin)
    pairs = [socket.socketpair() for _ in range(config["ranks"])]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        children = []
        for rank in range(config["ranks"]):
            child = os.fork()
            if child == 0:
                for index, (own, other) in enumerate(pairs):
                    own.close()
                    if index != rank:
                        other.close()
                be(rank, config, pairs[rank][1], folder / "store", folder / f"{rank}.json")
                os._exit(0)
            children.append(child)
        for _, other in pairs:
            other.close()
        threading.Thread(target=hub, args=([own for own, _ in pairs],), daemon=True).start()
        exits = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        results = []
        for rank, code in enumerate(exits):
            report = folder / f"{rank}.json"
            results.append(json.loads(report.read_text()) if report.exists() else {"rank": rank, "died": code})
    json.dump(results, sys.stdout)


main()
