"""A client far slower than the others, and one whose modality is gone with it: rounds go on and say how."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from florilegium.runs.reader import read_lines
from tests.faults.conftest import Deployment, ended, until

pytestmark = pytest.mark.faults
DEADLINE = 20  # seconds; more than a toy client needs on a busy machine
SLOWER = 200  # times: a toy client's work is done in a third of a second, ten times as long would miss no deadline


@contextlib.contextmanager
def slowed(federation: Deployment, site: str, factor: float, period: float = 0.5) -> Iterator[None]:
    """In the block, the client processes of a site run one part of `factor` of the time."""
    over = threading.Event()

    def hold_back() -> None:
        while not over.is_set():
            held: list[psutil.Process] = federation.descendants(site, "flwr-clientapp")
            for act, seconds in (("suspend", period * (factor - 1) / factor), ("resume", period / factor)):
                for process in held:
                    with contextlib.suppress(psutil.Error):
                        getattr(process, act)()
                time.sleep(seconds)

    thread = threading.Thread(target=hold_back)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_client_far_too_slow_holds_no_round_up_and_its_late_weights_count_less(
    deployment: Callable[[int], Deployment],
) -> None:
    federation = deployment(2)
    run = federation.launch(
        "method=fedavg",
        "method.server.groups=architecture",
        "rounds=99",
        "timeouts.quorum=1",
        f"timeouts.exchange={DEADLINE}",
        "timeouts.late=decay",
        "evaluation.every=100",
    )
    records, ledger = (federation.folder / "run" / f"{name}.jsonl" for name in ("rounds", "ledger"))
    until("round 0 to be over", lambda: read_lines(records), process=run)

    def missed() -> int | None:
        return next((e["round"] for e in read_lines(ledger) if e["client"] == 1 and e["fault"]), None)

    with slowed(federation, "site-1", SLOWER):
        until("a round without it", missed, process=run)
    until("its late reply", lambda: any("late" in e for e in read_lines(ledger)), process=run)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "interrupted" in err.splitlines()[-1], out + err

    entries = read_lines(ledger)
    (late,) = [e for e in entries if "late" in e]
    asked_in, now = missed(), late["round"]
    assert f"within {DEADLINE} s" in next(e["fault"] for e in entries if e["fault"])
    # used in round `now` with half the weight for every round between, and not asked meanwhile
    assert late["client"] == 1 and late["up"] > 1000 and now > asked_in
    assert late["late"] == f"asked in round {asked_in}; counts {0.5 ** (now - asked_in):g}"
    asked = [e["round"] for e in entries if e["client"] == 1 and e["phase"] == "train" and "late" not in e]
    assert not set(asked) & set(range(asked_in + 1, now))
    rounds = read_lines(records)[1:]
    assert max(r["seconds"] for r in rounds) < DEADLINE + 5 and rounds[asked_in - 1]["seconds"] > DEADLINE
    assert all(r["seconds"] < DEADLINE for r in rounds if asked_in < r["round"] < now)
    assert {e["round"] for e in entries if e["client"] == 0 and e["phase"] == "train" and not e["fault"]} >= set(
        range(1, now + 1)
    )


def test_fedmmkt_goes_on_with_images_when_the_last_text_site_is_gone(deployment: Callable[[int], Deployment]) -> None:
    federation = deployment(2)
    run = federation.launch(
        "method=fedmmkt",
        "rounds=2",
        "timeouts.quorum=1",
        "timeouts.exchange=90",
        "evaluation.every=100",
        "method.server.samples=12",
        "evaluation.images_per_class=1",
    )
    records, ledger = (federation.folder / "run" / f"{name}.jsonl" for name in ("rounds", "ledger"))
    until("round 0 to be over", lambda: read_lines(records), process=run)
    federation.working("site-1", run, "round 1")
    federation.processes["site-1"].terminate()
    ended(run)

    rounds = [r["metrics"] for r in read_lines(records)]
    assert [m["clients/modalities"] for m in rounds] == [2, 1, 1]
    assert "client/accuracy/text" in rounds[0] and "client/accuracy/text" not in rounds[2]
    assert rounds[2]["client/accuracy/image"] == rounds[2]["client/accuracy"]
    assert {e["client"] for e in read_lines(ledger) if e["round"] == 2 and not e["fault"]} == {0}
    said = (federation.folder / "run" / "run.log").read_text()
    assert (
        "no text client answered" in said
        and "it goes on with image clients alone, fused in the one-modality form (eq 33)" in said
    )
    assert "client 1 (text, bert) left" in said
