"""The question to the placement service, over HTTP by the standard library alone."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

_VERSION = 1
_MOST_ANSWER_BYTES = 64 * 2**20
_REPORT_SECONDS = 10.0
_MOST_DETAIL = 1024


class ServiceFailure(Exception):
    """No answer that can be used: too late, refused, or not what was asked for."""


@dataclass(frozen=True)
class Answer:
    key: str
    plan_id: str
    rearrange: bool
    reason: str
    map: np.ndarray
    """[layers, slots] of int64"""
    shadow: Optional[str]
    """In shadow mode: what would have been gained, in words."""


class PlacementClient:
    """Asks as one engine; `timeout_seconds` bounds a question as a whole, whatever the service does."""

    def __init__(self, url: str, model: str, timeout_seconds: float, api_key: Optional[str] = None) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._api_key = api_key
        # Two engines, or one that was restarted, never share a key.
        self._instance = os.urandom(8).hex()
        self._numbers = itertools.count()

    def ask(self, weight: np.ndarray, old: np.ndarray, groups: int, nodes: int, ranks: int) -> Answer:
        """`weight` [layers, experts] of int64 or float32, `old` [layers, slots]. Raises ServiceFailure."""
        layers, experts = weight.shape
        slots = old.shape[1]
        question = {
            "version": _VERSION,
            "model": self._model,
            "key": f"{self._instance}-{next(self._numbers)}",
            "layers": layers,
            "experts": experts,
            "slots": slots,
            "groups": groups,
            "nodes": nodes,
            "ranks": ranks,
            "weight": _encoded_weight(weight),
            "old": _base64(old.astype("<i4")),
        }
        body = within(self._timeout_seconds, lambda: self._post("/v1/placement", question, self._timeout_seconds))
        return _read_answer(body, question["key"], (layers, slots))

    def report(self, answer: Answer, agreed: bool, detail: str) -> None:
        """Tells what became of an answer, behind the caller's back: nothing hangs on it."""
        message = {
            "version": _VERSION,
            "key": answer.key,
            "planId": answer.plan_id,
            "agreed": agreed,
            "detail": detail[:_MOST_DETAIL],
        }

        def tell() -> None:
            try:
                self._post("/v1/placement/agreed", message, _REPORT_SECONDS)
            except Exception:  # noqa: BLE001  A report that is lost shows in the service, which waits for it.
                pass

        threading.Thread(target=tell, name="gimbal-report", daemon=True).start()

    def _post(self, path: str, message: dict, timeout_seconds: float) -> bytes:
        headers = {"content-type": "application/json"}
        if self._api_key:
            headers["authorization"] = f"Bearer {self._api_key}"
        body = json.dumps(message).encode()
        request = urllib.request.Request(self._url + path, data=body, headers=headers, method="POST")
        # The service is a neighbour: a proxy from the environment is for the way out.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_seconds) as response:
                answer = response.read(_MOST_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise ServiceFailure(f"the service answered {error.code}: {error.read(_MOST_DETAIL)!r}") from error
        if len(answer) > _MOST_ANSWER_BYTES:
            raise ServiceFailure(f"the answer has more than {_MOST_ANSWER_BYTES} bytes")
        return answer


def within(seconds: float, call: Callable[[], bytes]) -> bytes:
    """The call's result, or ServiceFailure. Sockets' time-outs bound single waits; a service that sends a byte now and then has none."""
    done: list[bytes] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    worker = threading.Thread(target=run, name="gimbal-placement", daemon=True)
    worker.start()
    worker.join(seconds)
    if done:
        return done[0]
    if failed:
        raise failed[0] if isinstance(failed[0], ServiceFailure) else ServiceFailure(repr(failed[0])) from failed[0]
    raise ServiceFailure(f"no answer within {seconds} s")


def _read_answer(body: bytes, key: str, shape: tuple[int, int]) -> Answer:
    try:
        answer = json.loads(body)
        data = base64.b64decode(answer["physicalToLogical"], validate=True)
        plan_id, decision = answer["planId"], answer["decision"]
        if (answer["version"], answer["key"]) != (_VERSION, key) or tuple(answer["shape"]) != shape:
            raise ServiceFailure("the answer is to another question")
        if not isinstance(plan_id, str) or not plan_id or decision not in ("rearrange", "keep"):
            raise ServiceFailure("the answer names no plan or no decision")
        if hashlib.sha256(data).hexdigest() != answer["sha256"]:
            raise ServiceFailure("the map is not the one that was sent")
        if len(data) != 4 * shape[0] * shape[1]:
            raise ServiceFailure(f"the map has {len(data)} bytes")
        new = np.frombuffer(data, dtype="<i4").reshape(shape).astype(np.int64)
        shadow = answer.get("shadow")
        gained = None if shadow is None else f"would {shadow['decision']}: {answer.get('predicted')}"
        return Answer(key, plan_id, decision == "rearrange", str(answer.get("reason")), new, gained)
    except ServiceFailure:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceFailure(f"the answer cannot be read: {error!r}") from error


def _encoded_weight(weight: np.ndarray) -> dict:
    dtype = "int64" if weight.dtype.kind in "iu" else "float32"
    return {"dtype": dtype, "data": _base64(weight.astype("<i8" if dtype == "int64" else "<f4"))}


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
