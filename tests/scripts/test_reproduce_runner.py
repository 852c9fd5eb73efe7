"""The runner, with steps that write a file instead of training."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import reproduce_runner
from reproduce_runner import Outcome, Runner, Step

SCRIPTS = Path(reproduce_runner.__file__).parent


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def step(name, *needs, code=""):
    """Notes when and where it ran in NAME.done, after `code`."""
    program = (
        f"import os, time; start = time.time(); {code or 'pass'}; import json\n"
        f"place = os.environ.get('CUDA_VISIBLE_DEVICES')\n"
        f"open('{name}.part', 'w').write(json.dumps([start, time.time(), place]))\n"
        f"os.replace('{name}.part', '{name}.done')\n"
    )
    return Step(name, ("-S", "-c", program), Path(f"{name}.done"), needs)


def run(*steps, environments=({},)):
    outcomes = {}
    Runner(steps, Path("logs"), environments, outcomes).run()
    return outcomes


def told(name):
    return json.loads(Path(f"{name}.done").read_text())


def test_steps_run_in_order_and_only_once():
    steps = [step("a"), step("b", "a"), step("c", "a", "b")]
    assert {o.state for o in run(*steps).values()} == {"done"}
    a, b, c = map(told, "abc")
    assert a[1] <= b[0] and b[1] <= c[0]
    again = run(*steps)
    assert set(again.values()) == {Outcome("done", "before")} and told("a") == a


def test_a_failure_stops_only_what_needs_it():
    bad = step("bad", code="print('it is broken'); raise SystemExit(3)")
    steps = [bad, step("after", "bad"), step("later", "after"), step("other")]
    outcomes = run(*steps)
    assert outcomes["bad"] == Outcome("failed", "ended with exit status 3: it is broken")
    assert outcomes["after"] == Outcome("not started", "because of bad")
    assert outcomes["later"] == Outcome("not started", "because of after")
    assert outcomes["other"].state == "done" and not Path("after.done").exists()
    assert "it is broken" in Path("logs/bad.log").read_text()


def test_a_step_that_is_killed_or_leaves_nothing_has_failed():
    steps = [
        step("killed", code="os.kill(os.getpid(), 9)"),
        Step("nothing", ("-c", ""), Path("nothing.done")),
        Step("always", ("-c", ""), None),
    ]
    outcomes = run(*steps)
    assert outcomes["killed"] == Outcome("failed", "was killed by signal 9, perhaps out of memory")
    assert outcomes["nothing"] == Outcome("failed", "ended without nothing.done")
    assert outcomes["always"].state == "done"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("open('/dev/full', 'wb', 0).write(b'it')", "ended with exit status 1: OSError"),
        ("print('PytorchStreamWriter failed writing file data/0'); os.kill(os.getpid(), 6)", "6"),
    ],
)
def test_a_full_disk_is_named(code, text):
    outcomes = run(step("full", code=code))
    assert outcomes["full"].detail.startswith("the disk is full; ")
    assert text in outcomes["full"].detail
    again = run(step("full", code="raise SystemExit(1)"))  # as the log says of another start
    assert again["full"].detail.startswith("ended with exit status 1")


def test_a_step_that_cannot_be_started_stops_nothing_else():
    cannot = Step("cannot", ("-c", "\0"), Path("cannot.done"))
    outcomes = run(cannot, step("a"), step("b", "a"), environments=[{}, {}])
    assert outcomes["cannot"] == Outcome("failed", "ValueError: embedded null byte")
    assert outcomes["a"].state == outcomes["b"].state == "done"


def test_each_gpu_has_one_step_at_a_time():
    """Two at once, each waiting for the other to have begun; the third when one of them is over."""
    meet = "open('{0}.here', 'w')\nwhile not os.path.exists('{1}.here'): time.sleep(0.01)"
    first = step("first", code="exec({!r})".format(meet.format("first", "second")))
    second = step("second", code="exec({!r})".format(meet.format("second", "first")))
    more = [step(name, code="time.sleep(0.1)") for name in ("x", "y", "z")]
    gpus = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "3")]
    outcomes = run(first, second, *more, step("last", "x", "y", "z"), environments=gpus)
    assert {o.state for o in outcomes.values()} == {"done"}
    spans = [told(name) for name in ("first", "second", "x", "y", "z", "last")]
    assert {place for _, _, place in spans} == {"0", "3"}
    for gpu in ("0", "3"):
        mine = sorted(span for span in spans if span[2] == gpu)
        assert all(a[1] <= b[0] for a, b in pairwise(mine))


RUNNER = """
import signal
import sys
from pathlib import Path
from reproduce_runner import Runner, Step
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
code = "import os, time; open('begun', 'w'); time.sleep({}); os.mkdir('slow.done')"
slow = Step("slow", ("-S", "-c", code.format(sys.argv[1])), Path("slow.done"))
Runner([slow], Path("logs"), [{}], {}).run()
"""


def begun(seconds):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", RUNNER, str(seconds)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while not Path("begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_what_a_killed_runner_leaves_at_work_is_waited_for():
    process = begun(2)
    process.kill()
    process.wait()
    assert not Path("slow.done").exists()
    code = "raise SystemExit('begun twice')"
    again = Step("slow", ("-S", "-c", code), Path("slow.done"))
    assert run(again)["slow"] == Outcome("done", "by an earlier start")


def test_ctrl_c_ends_all_that_runs():
    process = begun(60)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30)
    with open("logs/slow.log", "ab") as log:
        deadline = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody writes it any more
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert not Path("slow.done").exists()
