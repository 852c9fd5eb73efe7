"""Processes of their own for trainings that fail or are killed.

They are copies of a server that has imported what is slow to import and does no work. A copy of
the tests' process could wait for ever for a lock that one of its threads held at that moment.
"""

import contextlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["pytest", "torch._dynamo", "qrnn.allennlp", "qrnn.joeynmt.resuming"]
)


def start(function: Callable[..., Any], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """The process that calls the function, which a module has to hold, and what it says at its
    end."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, function, *arguments))
    process.start()
    sender.close()
    return process, receiver


def work(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception:
        sender.send(traceback.format_exc())
        sys.exit(1)


def ended(function: Callable[..., Any], *arguments: Any) -> int:
    """The exit code: 1 after an error, which is printed, and minus the number of a signal."""
    process, receiver = start(function, *arguments)
    with contextlib.suppress(EOFError):  # it ended without an error
        print(receiver.recv(), file=sys.stderr)
    process.join()
    assert process.exitcode is not None
    return process.exitcode
