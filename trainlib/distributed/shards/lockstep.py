"""Threads with a barrier at each synchronised layer, of which only one runs at a time.

A rank of elastic mode computes several virtual shards. Where layers need the statistics of all of them, the forward
passes of these shards must be at the same layer at the same time, while each still runs by itself, on tensors of its
own shape. So each runs in a thread; only one of the threads runs at a time, always in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

Value = TypeVar("Value")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

Meet = Callable[[Value], Answer]  # hand in a value at a meeting; returns what the meeting came to


class _AbandonedError(BaseException):
    """Ends a thread that waits at a meeting which will not take place, as another one failed."""


class _Turn(Generic[Value, Answer, Result]):
    """A function in a thread of its own, which runs from one meeting to the next when it is told to.

    Torch's generators belong to the process: each function goes on with the numbers that it would have drawn alone.
    """

    def __init__(self, function: Callable[[Meet[Value, Answer]], Result], device: torch.device):
        self.value: Value
        self.answer: Answer
        self.result: Result
        self.error: BaseException | None = None
        self.is_finished = False
        self._function, self._device = function, device
        self._is_abandoned = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Run up to the next meeting, or the end."""
        self._go.release()
        self._back.acquire()
        if self.is_finished:
            self._thread.join()

    def abandon(self) -> None:
        """End the thread where it waits."""
        self._is_abandoned = True
        if not self.is_finished:
            self.go_on()

    def _meet(self, value: Value) -> Answer:
        self.value = value
        states = _generator_states(self._device)
        self._back.release()
        self._wait()
        _set_generator_states(self._device, states)
        return self.answer

    def _wait(self) -> None:
        self._go.acquire()
        if self._is_abandoned:
            raise _AbandonedError

    def _run(self) -> None:
        try:
            self._wait()
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            self.result = self._function(self._meet)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self.error = error
        self.is_finished = True
        self._back.release()


def run_in_lockstep(
    functions: Sequence[Callable[[Meet[Value, Answer]], Result]],
    join: Callable[[Sequence[Value]], Sequence[Answer]],
    device: torch.device,
) -> list[Result]:
    """Run functions that all come to the same meetings, and return their results.

    functions   each gets a `meet`, with which it hands in a value, and which returns its answer
    join        called at each meeting with the values in order, in the caller's thread; returns the answers

    Threads are new each time: autograd numbers the operations of a thread from 0, and goes through the backward pass by
    these numbers, so that each function's gradients are added up in the same order, whatever runs beside it. Raises
    what a function or `join` raises.
    """
    turns = [_Turn(function, device) for function in functions]
    try:
        while True:
            for turn in turns:
                turn.go_on()
                if turn.error is not None:
                    raise turn.error
            finished = [turn.is_finished for turn in turns]
            if all(finished):
                return [turn.result for turn in turns]
            assert not any(finished), "functions that run in lockstep come to the same number of meetings"
            for turn, answer in zip(turns, join([turn.value for turn in turns]), strict=True):
                turn.answer = answer
    finally:
        for turn in turns:
            turn.abandon()


def _generator_states(device: torch.device) -> tuple[Any, Any]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_generator_states(device: torch.device, states: tuple[Any, Any]) -> None:
    of_cpu, of_device = states
    torch.set_rng_state(of_cpu)
    if of_device is not None:
        torch.cuda.set_rng_state(of_device, device)
