"""Runs steps, each a command of Python, in the order of what they need.

What is finished is not repeated, whenever the runner was killed.
"""

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import experiment

HEARTBEAT = 300.0  # seconds between two lines about what is running
DISK_FULL = ("No space left on device", "PytorchStreamWriter failed writing file")


@dataclass(frozen=True)
class Step:
    """One command of Python.

    result: the file whose existence says that the step is done; None for one that is always run.
    needs: names of steps that come before it. hours, gigabytes: estimates; source: of the hours.
    """

    name: str
    command: tuple[str, ...]
    result: Path | None
    needs: tuple[str, ...] = ()
    hours: float | None = None
    source: str = ""
    gigabytes: float | None = None

    @property
    def done(self) -> bool:
        return self.result is not None and self.result.exists()


class Outcome(NamedTuple):
    state: str  # "done", "failed", "interrupted", "not started"
    detail: str = ""


class Runner:
    """Runs steps, as many at once as there are environments, each in an environment of its own.

    steps: in an order in which everything comes after what it needs. logs: folder of NAME.log, to
    which a step's output is appended. A log is locked for as long as anything that writes it lives,
    also what a killed runner has left behind: a step is not begun before that has ended.
    outcomes: filled while it runs.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        logs: Path,
        environments: Sequence[Mapping[str, str]],
        outcomes: dict[str, Outcome],
    ) -> None:
        self.waiting = [step for step in steps if not step.done]
        self.logs = logs
        self.environments = environments
        self.outcomes = outcomes
        self.outcomes.update({s.name: Outcome("done", "before") for s in steps if s.done})
        self.running: dict[str, subprocess.Popen[bytes] | None] = {}  # None: about to begin
        self.stopped = False
        self.changed = threading.Condition()

    def run(self) -> None:
        """Raises KeyboardInterrupt, after everything that runs has been killed."""
        threads = [
            threading.Thread(target=self._work, args=(environment,), daemon=True)
            for environment in self.environments
        ]
        spoken = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.1)
                if time.monotonic() - spoken > HEARTBEAT:
                    spoken = time.monotonic()
                    for name in list(self.running):
                        say(f"{name}: {last_line(self.logs / f'{name}.log')}")
        except KeyboardInterrupt:
            with self.changed:
                self.stopped = True
                for process in self.running.values():
                    if process and process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
            raise

    def _work(self, environment: Mapping[str, str]) -> None:
        while step := self._next():
            try:
                outcome = self._attempt(step, environment)
            except Exception as error:  # a thread that ends would leave the others waiting
                outcome = Outcome("failed", f"{type(error).__name__}: {error}")
            with self.changed:
                del self.running[step.name]
                self.outcomes[step.name] = outcome
                self.changed.notify_all()
            say(f"{step.name}: {outcome.state} {outcome.detail}")

    def _next(self) -> Step | None:
        """Waits for a step that has all it needs; None when there will be no more."""
        with self.changed:
            while not self.stopped:
                for step in list(self.waiting):
                    found = {n: o.state for n in step.needs if (o := self.outcomes.get(n))}
                    if lacking := [name for name, state in found.items() if state != "done"]:
                        self.waiting.remove(step)
                        detail = f"because of {', '.join(lacking)}"
                        self.outcomes[step.name] = Outcome("not started", detail)
                    elif len(found) == len(step.needs):
                        self.waiting.remove(step)
                        self.running[step.name] = None
                        return step
                if not self.running:
                    return None
                self.changed.wait()
        return None

    def _attempt(self, step: Step, environment: Mapping[str, str]) -> Outcome:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{step.name}.log"
        with open(log, "ab") as output:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{step.name}: waiting for what an earlier start has left at work on it")
                fcntl.flock(output, fcntl.LOCK_EX)
                if step.done:
                    return Outcome("done", "by an earlier start")
            started, before = time.monotonic(), log.stat().st_size
            with self.changed:
                if self.stopped:
                    return Outcome("not started")
                output.write(f"\n$ {shown(step)}\n".encode())
                output.flush()
                process = self.running[step.name] = subprocess.Popen(
                    [sys.executable, *step.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                    # out of reach of the terminal's Ctrl-C, on which frameworks do things of their
                    # own: a step is killed, which it survives
                    start_new_session=True,
                )
            where = "".join(f" {name}={value}" for name, value in environment.items() if value)
            say(f"{step.name}: started{where}, log {log}")
            status = process.wait()
        if self.stopped:
            return Outcome("interrupted")
        if status:
            full = "the disk is full; " if disk_full(log, before) else ""
            detail = f"{full}{experiment.ending(status)}"
            return Outcome("failed", f"{detail}: {last_line(log)}" if status > 0 else detail)
        if step.result and not step.done:
            return Outcome("failed", f"ended without {step.result}")
        return Outcome("done", f"in {duration((time.monotonic() - started) / 3600)}")


def shown(step: Step) -> str:
    return shlex.join([sys.executable, *step.command])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def last_line(log: Path) -> str:
    """Of what is seen: a progress bar overwrites its line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def disk_full(log: Path, before: int) -> bool:
    """Whether a step failed for that: it says so after so many bytes of its log, or could not."""
    with open(log, "rb") as file:
        file.seek(max(before, log.stat().st_size - (1 << 20)))
        said = file.read().decode(errors="replace")
    return any(text in said for text in DISK_FULL) or shutil.disk_usage(log).free < (1 << 20)


def duration(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
