"""How often the browser is told of a run, and that the last word always reaches it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from comfyui_fewstep.commands.embedded import import_host

import_host()


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self):
        self.now = 100.0
        self.sent = []

    def sleep(self, seconds):
        assert seconds > 0.0
        self.now += seconds

    def send(self, event, message):
        self.sent.append((self.now, event, message))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def messages(clock):
    from comfyui_fewstep.nodes.distillation.telling import Messages

    return Messages(clock.send, clock=lambda: clock.now, sleep=clock.sleep)


def most_in_a_second(sent):
    times = [time for time, *_ in sent]
    return max(sum(start <= time < start + 1.0 for time in times) for start in times)


def test_no_second_has_more_than_five_messages(clock, messages):
    """A thousand iterations in ten seconds, every tenth of them with a preview."""
    from comfyui_fewstep.nodes.distillation.telling import METRICS

    for i in range(1000):
        messages.offer(METRICS, {"run": "a", "iteration": i}, important=i % 10 == 9)
        clock.now += 0.01
    assert most_in_a_second(clock.sent) <= 5
    sent = [message["iteration"] for *_, message in clock.sent]
    assert set(range(9, 1000, 10)) <= set(sent), "what is important is never dropped"
    assert sent == sorted(sent)


def test_what_is_not_important_never_waits(clock, messages):
    from comfyui_fewstep.nodes.distillation.telling import METRICS

    assert messages.offer(METRICS, {"run": "a", "iteration": 1})
    assert not messages.offer(METRICS, {"run": "a", "iteration": 2})
    assert (clock.now, len(clock.sent)) == (100.0, 1)


def test_what_comes_in_time_is_not_delayed(clock, messages):
    from comfyui_fewstep.nodes.distillation.telling import METRICS

    for i in range(5):
        assert messages.offer(METRICS, {"run": "a", "iteration": i})
        clock.now += 0.3
    assert clock.now == pytest.approx(101.5)


def test_a_start_does_not_wait_for_its_words(clock, messages):
    """Begun, hashing, encoding, probing and the first iteration, in a moment; a sixth message makes the second full."""
    from comfyui_fewstep.nodes.distillation.telling import METRICS

    with messages.of_run(Named("a"), node="5"):
        for phase in ("hashing", "encoding", "probing"):
            messages.begin(phase)
        messages.offer(METRICS, {"run": "a", "iteration": 1}, important=True)
        assert clock.now == 100.0
        messages.offer(METRICS, {"run": "a", "iteration": 2}, important=True)
        assert clock.now == 101.0


def test_a_tab_that_opens_later_finds_the_newest_message(clock, messages):
    from comfyui_fewstep.nodes.distillation.telling import METRICS

    with messages.of_run(Named("a"), node="5"):
        messages.offer(METRICS, {"run": "a", "iteration": 1}, important=True)
        messages.offer(METRICS, {"run": "a", "iteration": 2}, important=True)
        assert messages.newest["a"]["iteration"] == 2
    assert messages.newest == {}


def test_a_tab_that_opens_later_finds_the_phase_too(clock, messages):
    """Also where a second is full of other words, and of what is no run yet."""
    from comfyui_fewstep.nodes.distillation.telling import METRICS, PHASE, PROBING
    from comfyui_fewstep.nodes.host import signals

    with messages.phase(PROBING, run="a", node="5"):
        signals.progressed(1, 4)
        signals.progressed(2, 4)
        assert (messages.phases["a"]["phase"], messages.phases["a"]["share"]) == (PROBING, 0.5)
        assert clock.sent[-1][2]["share"] < 0.5
    assert messages.phases == {}
    with messages.of_run(Named("a"), node="5"):
        with messages.phase(PROBING):
            assert messages.phases["a"]["node"] == "5"
        messages.offer(METRICS, {"run": "a", "iteration": 1})
        assert messages.phases == {}
        messages.offer(PHASE, {"run": "a", "node": "5", "phase": PROBING, "share": None, "seconds_left": None})
    assert messages.phases == {}


def test_weights_that_are_read_inside_a_phase_are_told_as_such(clock, messages):
    """With a pace of their own: a plan of 90 minutes said "45 %, 0 s left" of them."""
    from comfyui_fewstep.nodes.distillation.telling import HASHING, PROBING
    from comfyui_fewstep.nodes.host import identity, signals

    def told(seconds, *share, of=None):
        clock.now += seconds
        signals.progressed(*share, of=of)
        return [clock.sent[-1][2][key] for key in ("phase", "share", "seconds_left")]

    with messages.phase(PROBING, run="a", node="5"):
        assert told(1, 1, 4, of=HASHING) == [HASHING, 0.25, None]
        assert told(2, 2, 4, of=HASHING) == [HASHING, 0.5, 2.0]
        assert told(3, 1, 4, of=HASHING) == [HASHING, 0.25, None], "of the next weights"
        assert told(2, 1, 4) == [PROBING, 0.25, 24.0]
    heard = []
    with signals.following(lambda share, of: heard.append((share, of))):
        identity.weights_sha256({"a": torch.ones(2), "b": torch.ones(3)}, owner=torch.nn.Identity(), file=None)
    assert heard
    assert {of for _, of in heard} == {HASHING}


def test_the_browser_asks_for_it():
    from comfyui_fewstep.nodes import routes
    from comfyui_fewstep.nodes.distillation.telling import MESSAGES, PROBING

    asked = SimpleNamespace(match_info={"run": "no run yet"}, query={})
    with MESSAGES.phase(PROBING, run="no run yet", node="5"):
        told = routes.run_now(asked)
    assert (told["state"], told["phase"]["phase"], told["phase"]["node"]) == ("absent", PROBING, "5")
    assert routes.run_now(asked)["phase"] is None


class Named:
    def __init__(self, name):
        self.name = name


def ending(messages, clock, error):
    with pytest.raises(type(error)), messages.of_run(Named("a"), node="5"):
        raise error
    return clock.sent[-1][2]


def test_how_a_run_ended_is_told(clock, messages):
    from comfyui_fewstep.nodes import host

    with messages.of_run(Named("a"), node="5"):
        pass
    assert [message["state"] for *_, message in clock.sent] == ["begun", "finished"]
    assert ending(messages, clock, host.signals.Cancelled()) == {"run": "a", "node": "5", "state": "stopped"}
    failed = ending(messages, clock, ValueError("no such thing"))
    assert failed == {"run": "a", "node": "5", "state": "failed", "error": "no such thing"}


def test_a_number_that_is_none_becomes_null():
    from comfyui_fewstep.trainers.storage.reading import without_nan

    made = without_nan({"loss": math.nan, "iteration": 3, "name": "x", "memory": None, "errors": [1.0, -math.inf]})
    assert made == {"loss": None, "iteration": 3, "name": "x", "memory": None, "errors": [1.0, None]}
    json.dumps(made, allow_nan=False)


def test_a_training_process_elsewhere_stops_when_the_folder_asks_it_to():
    """At a checkpoint, after its metrics were told, and as Ctrl-C does it; not before it was asked."""
    from types import SimpleNamespace

    from comfyui_fewstep.nodes.distillation.worker import _Tell

    run = SimpleNamespace(stop_asked=False, cancel_asked=False)
    told = []
    tell = _Tell(SimpleNamespace(run=run, options=SimpleNamespace(checkpoint_every=5)), None, told.append)
    tell(SimpleNamespace(iteration=5))
    run.stop_asked = True
    tell(SimpleNamespace(iteration=9))
    with pytest.raises(KeyboardInterrupt):
        tell(SimpleNamespace(iteration=10))
    assert [metrics.iteration for metrics in told] == [5, 9, 10]
    run.stop_asked, run.cancel_asked = False, True
    with pytest.raises(KeyboardInterrupt):
        tell(SimpleNamespace(iteration=11))


def test_work_heeds_the_cancel_of_its_run_alone():
    """Encoding data asks so too, long before the first iteration."""
    from comfyui_fewstep.nodes import host

    asked = []
    host.signals.check_cancelled()
    with host.signals.heeding(lambda: bool(asked)):
        host.signals.check_cancelled()
        asked.append(1)
        with pytest.raises(host.signals.Cancelled):
            host.signals.check_cancelled()
    host.signals.check_cancelled()
