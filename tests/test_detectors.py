"""Detectors do what their own texts and examples say, and the engine makes one alert of one episode."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import re

import numpy as np
import orjson
import pytest

from rldk.detectors import (
    ABSENT,
    FINE,
    WARMING,
    Detector,
    Finding,
    detector_classes,
    make_detectors,
)
from rldk.detectors._threshold import ThresholdDetector
from rldk.event import PHASES, Event, Severity, decode, encode
from rldk.exceptions import ConfigurationError
from rldk.metrics import METRICS, lookup
from rldk.monitor import MAX_ALERTS, Monitor
from rldk.recorder import Recorder
from rldk.runfiles import RunFiles

HEADINGS = ["What it sees", "Why it matters", "When it fires", "What to do", "False alarms", "Sources"]
CLASSES = detector_classes()
COOLDOWN = Detector.cooldown
DOCUMENTED = ["clip_fraction", "gradient_norm", "kl_divergence", "memory_usage"]

every = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES.keys())
thresholded = pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES.values() if issubclass(cls, ThresholdDetector)], ids=lambda cls: cls.code
)


def phase_of(cls) -> str:
    return "train" if "train" in cls.phases else sorted(cls.phases)[0]


def play_example(cls, example, rows=None):
    """Plays an example, with its arguments, through a new monitor; gives the monitor and the steps of new alerts."""
    monitor = Monitor([cls()])
    if example.arguments:
        monitor.begin({"step": 0, "wall_time": 0.0, "arguments": dict(example.arguments), "facts": {}})
    return monitor, play(monitor, example.metrics if rows is None else rows, phase_of(cls))[0]


def stream_of(cls, steps, seed=5):
    """A long noisy stream of what a detector watches, every metric in each row."""
    draw = np.random.default_rng(seed)
    names = [*cls.watches, "loss", "grad_norm", "lr", "reward_mean", "rewards/f/mean", "rewards/f/std"]
    for step in range(1, steps + 1):
        yield Event(step, step * 0.1, {name: float(draw.lognormal()) for name in names}, phase_of(cls))


def play(monitor, metrics, phase="train", first=1):
    """Shows one event a row, steps counted from `first`; gives the steps of new alerts and of resolutions."""
    raised, resolved = [], []
    for step, row in enumerate(metrics, first):
        for alert in monitor.observe(Event(step, float(step), row, phase)):
            if alert.resolved_step is None:
                if alert.step == step:
                    raised.append(step)
                else:
                    assert alert.evidence["escalated_at"] == step
            else:
                assert alert.resolved_step == step
                resolved.append(step)
    assert monitor.guard.failures == {}
    return raised, resolved


def norms(*values):
    """A stream for the detector of gradient norms with a threshold of 1."""
    return [{"grad_norm": value} for value in values]


def monitor_of(code="gradient_norm", threshold=1.0) -> Monitor:
    return Monitor([CLASSES[code](threshold=threshold)])


def test_the_documented_ones_are_there():
    """The four names that users know exist, and all detectors are armed whether or not they are given a number."""
    assert set(DOCUMENTED) <= CLASSES.keys()
    assert {detector.code for detector in make_detectors()} == CLASSES.keys()
    assert {detector.code for detector in make_detectors(dict.fromkeys(DOCUMENTED, 0.5))} == CLASSES.keys()


@every
class TestEach:
    def test_docstring(self, cls):
        """The docstring has a first sentence and all headings, in their order, each with something under it."""
        text = inspect.cleandoc(cls.__doc__).partition("\n\nArgs:")[0]
        assert text.splitlines()[0].endswith(".")
        found = re.findall(r"^([A-Z][a-z ]+): (.*)", text, flags=re.MULTILINE)
        assert [heading for heading, _ in found] == HEADINGS
        assert all(body.strip() for _, body in found)

    def test_identity(self, cls):
        """Code, title, advice and the watched metrics are given, and true."""
        assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.code)
        assert CLASSES[cls.code] is cls
        assert cls.__module__ == f"rldk.detectors.{cls.code}"
        assert cls.title
        assert cls.advice.endswith(".")
        assert set(cls.watches) <= METRICS.keys()
        assert cls.phases <= {*PHASES, "setup"}
        assert cls.phases

    def test_parameters_are_documented(self, cls):
        """Each parameter is a keyword and is explained in a docstring."""
        for name, item in inspect.signature(cls).parameters.items():
            assert item.kind is item.KEYWORD_ONLY
            assert any(re.search(rf"^\s+{name}: \S", base.__doc__ or "", flags=re.MULTILINE) for base in cls.__mro__)

    def test_examples(self, cls):
        """Each example raises alerts at exactly the steps that it states, live and from the written events."""
        examples = list(cls.examples())
        assert any(not example.raised_at for example in examples), "no healthy example"
        assert any(example.raised_at for example in examples), "no ill example"
        for example in examples:
            assert example.about
            assert play_example(cls, example)[1] == example.raised_at, example.about
            written = [decode(orjson.loads(encode(Event(1, 0.0, row)))).metrics for row in example.metrics]
            assert play_example(cls, example, written)[1] == example.raised_at, example.about

    def test_findings_are_whole(self, cls):
        """An alert says what happened with a number, what to try, and how bad it is, and is valid JSON."""
        for example in cls.examples():
            monitor, _ = play_example(cls, example)
            for alert in monitor.alerts:
                assert (alert.code, alert.name, alert.advice) == (cls.code, cls.title, cls.advice)
                assert Severity(alert.severity) in Severity
                assert lookup(alert.metric) is not None
                assert alert.metric in alert.message
                assert re.search(r"\d|nan|inf", alert.message)
                assert json.loads(orjson.dumps(alert.to_dict()))["code"] == cls.code

    @pytest.mark.parametrize("row", [{}, {"my_metric": 1.0}], ids=["nothing", "custom"])
    def test_absent_is_not_seen(self, cls, row):
        """An event without what a detector watches is no evidence of health: it answers absent, or watches all."""
        answer = cls().judge(Event(1, 0.0, row, phase_of(cls)))
        assert answer is ABSENT or not cls.watches

    def test_survives_anything(self, cls):
        """No sequence of numbers, NaN, infinities, None and gaps makes a detector fail."""
        draw = np.random.default_rng(5)
        names = [
            *cls.watches,
            "loss",
            "grad_norm",
            "param_nonfinite",
            "custom",
            "rewards/f/mean",
            "ratio_var",
            "eval_loss",
        ]
        odd = [math.nan, math.inf, -math.inf, None, 0.0, -0.0, 0, 1e308, -1e308, 5e-324, 2**63 - 1, 0.5, 1.0, 2]
        monitor = Monitor([cls()])
        for step in range(3000):
            row = {
                str(name): odd[draw.integers(len(odd))]
                for name in draw.choice(names, draw.integers(0, 4), replace=False)
            }
            for phase in cls.phases:
                monitor.observe(Event(step, 0.0, row, phase))
        assert monitor.guard.failures == {}
        assert len(monitor.coverage()) == 1

    def test_reset(self, cls):
        """After a reset it judges as a new one, whatever it saw before; its parameters stay."""
        used, new = cls(), cls()
        for event in stream_of(cls, 200):
            used.judge(event)
        used.reset()
        assert used.parameters() == new.parameters()
        again = list(stream_of(cls, 200, seed=6))
        assert [used.judge(event) for event in again] == [new.judge(event) for event in again]

    def test_pickles(self, cls):
        """A copy goes on where the original was."""
        original = cls()
        for event in stream_of(cls, 100):
            original.judge(event)
        copy = pickle.loads(pickle.dumps(original))  # our own bytes
        later = list(stream_of(cls, 100, seed=7))
        assert [copy.judge(event) for event in later] == [original.judge(event) for event in later]

    def test_what_it_need_not_see(self, cls):
        """An event without what it watches changes nothing in a detector that says so: it is not shown such events."""
        if not cls.only_watched:
            return
        draw = np.random.default_rng(8)
        for trainer in ("grpo", "ppo", "sft", "dpo", "kto", "reward", None):
            detector, info = cls(), {"trainer": trainer}
            for step in range(1, 100):
                row = {name: float(draw.lognormal()) for name in METRICS}
                detector.judge(Event(step, step * 0.1, row, phase_of(cls), model_info=info))
                before = pickle.dumps(detector)
                rest = {name: value for name, value in row.items() if name not in cls.watches}
                for phase in cls.phases:
                    assert detector.judge(Event(step, step * 0.1, rest, phase, model_info=info)) is ABSENT
                assert pickle.dumps(detector) == before

    def test_whom_it_leaves_out(self, cls):
        """Runs of a family that it says it leaves out get no answer but absent."""
        draw = np.random.default_rng(9)
        for trainer in cls.left_out:
            detector = cls()
            for step in range(1, 50):
                row = {name: float(draw.lognormal()) for name in METRICS}
                for phase in cls.phases:
                    event = Event(step, step * 0.1, row, phase, model_info={"trainer": trainer})
                    assert detector.judge(event) is ABSENT

    def test_constant_memory(self, cls):
        """Its state after 20,000 events is no larger than after 2,000."""
        detector = cls()
        sizes = []
        for event in stream_of(cls, 20_000):
            detector.judge(event)
            if event.step in (2_000, 20_000):
                sizes.append(len(pickle.dumps(detector)))
        assert sizes[1] <= sizes[0] * 1.1 + 200


@thresholded
class TestThresholds:
    def test_above_only(self, cls):
        """A value at the threshold is fine, one above it is not, and the alert shows both numbers."""
        name = cls.watches[0]
        detector = cls(threshold=0.5)
        assert detector.judge(Event(1, 0.0, {name: 0.5})) is FINE
        finding = detector.judge(Event(1, 0.0, {name: 0.75}))
        assert isinstance(finding, Finding)
        assert (finding.metric, finding.value, finding.threshold) == (name, 0.75, 0.5)
        assert "0.75" in finding.message
        assert "0.5" in finding.message

    def test_every_watched_metric(self, cls):
        """Each metric that it watches is judged where the ones before it are not logged."""
        for name in cls.watches:
            assert play(monitor_of(cls.code, 0.5), [{name: 0.4}, {name: 0.6}])[0] == [2]

    def test_nan_ends_no_episode(self, cls):
        """NaN is neither above nor below: it raises nothing, resolves nothing, and does not count as health."""
        name = cls.watches[0]
        monitor = monitor_of(cls.code, 0.5)
        assert monitor.observe(Event(1, 0.0, {name: math.nan})) == []
        assert monitor.coverage()[0]["state"] == "warming"
        assert play(monitor, [{name: 1.0}, {name: math.nan}, {name: None}, {name: 0.1}], first=2) == ([2], [5])

    def test_infinity_is_above(self, cls):
        """An infinite value is above any threshold."""
        assert play(monitor_of(cls.code, 0.5), [{cls.watches[0]: math.inf}])[0] == [1]


class TestConfiguration:
    @pytest.mark.parametrize(
        ("thresholds", "words"),
        [
            ({"kl_divergance": 1.0}, ["'kl_divergance'", "Did you mean 'kl_divergence'?"]),
            ({"qqqq": 1.0}, ["'qqqq'", "Known: ", *DOCUMENTED]),
            ({5: 1.0}, ["5"]),
            ({"gradient_norm": -1.0}, ["gradient_norm", "0 or more", "-1.0"]),
            ({"gradient_norm": math.nan}, ["gradient_norm", "nan"]),
            ({"gradient_norm": math.inf}, ["gradient_norm", "inf"]),
            ({"gradient_norm": "5"}, ["gradient_norm", "'5'"]),
            ({"gradient_norm": True}, ["gradient_norm", "True"]),
            ({"gradient_norm": [1.0]}, ["gradient_norm", "[1.0]"]),
            ({"gradient_norm": 10**400}, ["gradient_norm", "0 or more"]),
            ({"memory_usage": 80}, ["not a percentage", "80", "0.8"]),
            ({"memory_usage": 0.0 - 0.1}, ["between 0 and 1"]),
            ({"memory_usage": 101}, ["between 0 and 1", "101"]),
            ({"clip_fraction": 20}, ["between 0 and 1", "20"]),
            ({"kl_divergence": {"treshold": 1.0}}, ["'treshold'", "Did you mean 'threshold'?"]),
            ({"kl_divergence.limit": 1.0}, ["kl_divergence", "'limit'", "threshold"]),
            ({"zero_loss": 1.0}, ["zero_loss", "'threshold'", "patience"]),
            ({"zero_loss.patience": 0}, ["zero_loss", "patience", "1 or more", "0"]),
            ({"zero_loss": {"patience": "3"}}, ["patience", "'3'"]),
            ({"non_finite": 1}, ["non_finite", "none"]),
            ({"kl_divergence": 1.0, "kl_divergence.threshold": 2.0}, ["given twice", "kl_divergence"]),
            ({"kl": 1.0, "kl_divergence": 2.0}, ["given twice", "kl_divergence"]),
        ],
        ids=str,
    )
    def test_refused(self, thresholds, words):
        """What cannot be meant is refused at construction, with the value seen and the nearest thing that is known."""
        with pytest.raises(ConfigurationError) as caught:
            make_detectors(thresholds)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    @pytest.mark.parametrize(
        "thresholds",
        [
            {"kl_divergence": 2}, {"kl_divergence": {"threshold": 2.0}}, {"kl_divergence.threshold": 2.0},
            {"kl_divergence": np.float64(2.0)}, {"kl": 2.0},
        ],
        ids=str,
    )
    def test_ways_to_write(self, thresholds):
        """A threshold may be a number, a mapping of parameters, or a parameter by its full name."""
        found = [detector for detector in make_detectors(thresholds) if detector.code == "kl_divergence"]
        assert [detector.threshold for detector in found] == [2.0]

    def test_parameters_of_others(self):
        """Every detector's own parameters can be set."""
        found = {
            detector.code: detector
            for detector in make_detectors({"zero_loss": {"patience": 5}, "zero_loss.warmup": 7})
        }
        assert (found["zero_loss"].patience, found["zero_loss"].warmup) == (5, 7)

    def test_zero_is_a_threshold(self):
        """Zero is a number like any other."""
        assert play(monitor_of("kl_divergence", 0), [{"kl_mean": 0.0}, {"kl_mean": 1e-9}])[0] == [2]


class TestEpisodes:
    def test_one_alert_an_episode(self):
        """However long a bad state lasts, it is one alert, at the step where it began."""
        monitor = monitor_of()
        assert play(monitor, norms(*[0.5] * 5, *[9.0] * 500)) == ([6], [])
        assert len(monitor.alerts) == 1
        assert monitor.alerts[0].resolved_step is None
        assert monitor.alerts[0].value == 9.0

    def test_resolution(self):
        """The alert keeps the step at which its state had passed, and is told of twice: raised, resolved."""
        monitor = monitor_of()
        assert play(monitor, norms(0.5, 9.0, 9.0, 0.5, 0.5)) == ([2], [4])
        assert [alert.resolved_step for alert in monitor.alerts] == [4]

    @pytest.mark.parametrize("gap", [0, 1, COOLDOWN - 1])
    def test_reopened(self, gap):
        """A state that is back within ten judged events of its resolution is the same episode, which resolves anew."""
        monitor = monitor_of()
        fine = [0.5] * (gap + 1)
        raised, resolved = play(monitor, norms(9.0, *fine, 9.0, 0.5))
        assert raised == [1]
        assert resolved == [2, gap + 4]
        assert [(alert.step, alert.resolved_step) for alert in monitor.alerts] == [(1, gap + 4)]

    def test_a_second_episode(self):
        """A state that is back later is a second alert."""
        monitor = monitor_of()
        fine = [0.5] * (COOLDOWN + 1)
        assert play(monitor, norms(9.0, *fine, 8.0)) == ([1, COOLDOWN + 3], [2])
        assert [alert.value for alert in monitor.alerts] == [9.0, 8.0]
        assert [alert.resolved_step for alert in monitor.alerts] == [2, None]

    def test_absent_events_do_not_count(self):
        """Events that a detector cannot judge neither end an episode nor keep it from being the same one."""
        monitor = monitor_of()
        nothing = [{"other": 1.0}] * 50
        assert play(monitor, [*norms(9.0), *nothing, *norms(0.5), *nothing, *norms(9.0), *nothing]) == ([1], [52])
        assert monitor.alerts[0].resolved_step is None

    def test_crossing_back_and_forth(self):
        """A value that swings around the threshold is one alert."""
        monitor = monitor_of()
        assert len(play(monitor, norms(*[9.0, 0.5] * 200))[0]) == 1
        assert len(monitor.alerts) == 1

    def test_phases(self):
        """A detector is shown only the phases that it asks for."""
        monitor = monitor_of()
        assert play(monitor, norms(9.0), "eval") == ([], [])
        assert monitor.coverage()[0]["state"] == "unseen"

    def test_alerts_end_somewhere(self):
        """Alerts beyond the limit are counted and not kept; the last ones kept still resolve."""
        monitor = monitor_of()
        stream = norms(*[9.0, *[0.5] * (COOLDOWN + 1)] * (MAX_ALERTS + 5))
        raised, resolved = play(monitor, stream)
        assert len(raised) == len(resolved) == MAX_ALERTS + 5
        assert len(monitor.alerts) == MAX_ALERTS
        assert monitor.dropped_alerts == 5
        assert all(alert.resolved_step == alert.step + 1 for alert in monitor.alerts)


class Broken(Detector):
    """Fails at its third event."""

    code = "broken"
    title = "Broken"

    def __init__(self):
        self.left = 2

    def judge(self, event):
        self.left -= 1
        return FINE if self.left >= 0 else 1 / 0


def test_a_detector_that_raises():
    """A detector that raises is left out and named, once; the others see every event, the one that it failed on too."""
    monitor = Monitor([Broken(), CLASSES["gradient_norm"](threshold=1.0), CLASSES["non_finite"]()])
    raised = [
        alert.code
        for step in range(1, 8)
        for alert in monitor.observe(Event(step, 0.0, {"grad_norm": 9.0 if step == 3 else 0.5}))
        if alert.resolved_step is None
    ]
    assert raised == ["gradient_norm"]
    assert monitor.alerts[0].step == 3
    assert {place: failure["count"] for place, failure in monitor.guard.failures.items()} == {"detector broken": 1}
    assert "ZeroDivisionError" in monitor.guard.failures["detector broken"]["error"]
    coverage = {row["code"]: (row["state"], row["events_judged"]) for row in monitor.coverage()}
    assert coverage == {"broken": ("failed", 2), "gradient_norm": ("fired", 7), "non_finite": ("quiet", 7)}


class TestNonFinite:
    def monitor(self):
        return Monitor([CLASSES["non_finite"]()])

    @pytest.mark.parametrize(
        "name",
        [
            *(metric.name for metric in METRICS.values() if metric.nan_is_normal),
            "rewards/f/mean",
            "rewards/f/std",
            "eval_rewards/f/mean",
        ],
    )
    def test_normal_nan(self, name):
        """A metric that is NaN by construction in healthy runs raises nothing; an infinity there does."""
        monitor = self.monitor()
        assert play(monitor, [{name: math.nan, "loss": 1.0}] * 5) == ([], [])
        assert monitor.coverage()[0]["state"] == "quiet"
        assert play(monitor, [{name: math.inf}], first=6)[0] == [6]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss", "kl_mean"])
    def test_any_other(self, name, value):
        """Any other metric that rldk knows raises a critical alert, in evaluation too."""
        monitor = self.monitor()
        assert play(monitor, [{name: 1.0}, {name: value}], "eval" if name.startswith("eval_") else "train")[0] == [2]
        assert monitor.alerts[0].severity == "critical"
        assert monitor.alerts[0].metric == name

    def test_custom(self):
        """A metric of the user's own is a warning, and a known one beside it is what the alert speaks of."""
        monitor = self.monitor()
        play(monitor, [{"mine": math.nan}])
        assert [(alert.metric, alert.severity) for alert in monitor.alerts] == [("mine", "warning")]
        monitor = self.monitor()
        play(monitor, [{"mine": math.nan, "grad_norm": math.nan}])
        assert [(alert.metric, alert.severity) for alert in monitor.alerts] == [("grad_norm", "critical")]
        assert "mine" in monitor.alerts[0].message

    def test_none_is_not_nan(self):
        """None, which a trainer logs for lack of a value, raises nothing."""
        assert play(self.monitor(), [{"rewards/f/mean": None, "kl_mean": None, "loss": 1.0}]) == ([], [])

    def test_all_must_be_finite_again(self):
        """The episode lasts until every metric that was bad has been seen finite."""
        bad = {"loss": math.nan, "grad_norm": math.nan}
        stream = [bad, {"loss": 1.0}, {"loss": 1.0, "grad_norm": math.nan}, {"grad_norm": 1.0}, {"loss": 1.0}]
        assert play(self.monitor(), stream) == ([1], [4])

    def test_infinities_that_cancel(self):
        """Opposite infinities, and finite values whose sum overflows, are told apart."""
        assert play(self.monitor(), [{"a": math.inf, "b": -math.inf}])[0] == [1]
        assert play(self.monitor(), [{"a": 1e308, "b": 1e308, "c": 1e308}])[0] == []

    def test_weights_of_a_checkpoint(self):
        """Non-finite weights raise an alert, which lasts over events without weights to a clean checkpoint."""
        monitor = self.monitor()
        assert play(monitor, [{"param_nonfinite": 0}], "checkpoint") == ([], [])
        assert play(monitor, [{"param_nonfinite": 12}], "checkpoint", 2) == ([2], [])
        assert "12" in monitor.alerts[0].message
        assert play(monitor, [{"loss": 1.0}, {"loss": 1.0, "kl_mean": None}], "train", 3) == ([], [])
        assert play(monitor, [{"loss": math.nan}, {"loss": 1.0}], "train", 5) == ([], [])
        assert play(monitor, [{"param_nonfinite": 0}], "checkpoint", 7) == ([], [7])

    def test_names_the_hidden_nan(self):
        """A loss of exactly 0.0 beside a NaN is named as what transformers makes of NaN."""
        monitor = self.monitor()
        play(monitor, [{"loss": 0.0, "grad_norm": math.nan}])
        assert "transformers" in monitor.alerts[0].message


class TestZeroLoss:
    def test_warming(self):
        """Until enough positive logs were seen it cannot judge, and says so; GRPO's loss around zero never arms it."""
        monitor = Monitor([CLASSES["zero_loss"]()])
        play(monitor, [{"loss": 0.0}] * 20)
        assert monitor.coverage()[0]["state"] == "warming"
        detector = CLASSES["zero_loss"]()
        assert [detector.judge(Event(step, 0.0, {"loss": 1.0})) for step in range(3)] == [WARMING, WARMING, FINE]

    @pytest.mark.parametrize("gradient", [None, 0.0, math.nan, math.inf])
    def test_fires(self, gradient):
        """After positive losses, zeros without a usable gradient are an alert at the third."""
        logs = [{"loss": 2.0}] * 5 + [{"loss": 0.0} if gradient is None else {"loss": 0.0, "grad_norm": gradient}] * 5
        assert play(Monitor([CLASSES["zero_loss"]()]), logs)[0] == [8]

    def test_a_loop_of_ones_own_may_reach_zero(self):
        """Without a norm of the gradient, as transformers logs it, an unknown trainer's zero may be a hinge loss."""
        monitor = Monitor([CLASSES["zero_loss"]()])
        losses = [2.0] * 5 + [0.0] * 5
        assert not any(monitor.observe(Event(s, 0.0, {"loss": x}, model_info={"trainer": "generic"})) for s, x in enumerate(losses))

    def test_one_zero_is_none(self):
        """A single zero, or zeros with losses between, raise nothing."""
        assert play(Monitor([CLASSES["zero_loss"]()]), ([{"loss": 2.0}] * 3 + [{"loss": 0.0}] * 2) * 20) == ([], [])


class TestAlertsFile:
    def recorder(self, folder, resume_at=None, thresholds=None):
        return Recorder(
            "r", RunFiles.of(folder, "r"), make_detectors(thresholds or {"gradient_norm": 1.0}), resume_at=resume_at
        )

    def read(self, folder):
        def refuse(constant):
            raise ValueError(constant)

        return json.loads((folder / "r_alerts.json").read_text(), parse_constant=refuse)

    def test_current_at_every_moment(self, tmp_path):
        """After each event the file holds exactly the engine's alerts: raised, resolved, and open again."""
        recorder = self.recorder(tmp_path)
        for step, row in enumerate(norms(0.5, 9.0, 9.0, 0.5, 0.5, 9.0, 0.5, *[0.5] * 20, 9.0, 9.0), 1):
            recorder.record(Event(step, 0.0, row))
            assert self.read(tmp_path) == [alert.to_dict() for alert in recorder.monitor.alerts]
        assert [(alert["step"], alert["resolved_step"]) for alert in self.read(tmp_path)] == [(2, 7), (28, None)]

    def test_no_alerts(self, tmp_path):
        """Without an alert the file is there, and empty."""
        self.recorder(tmp_path).record(Event(1, 0.0, {"loss": 1.0}))
        assert self.read(tmp_path) == []

    def test_nan_in_an_alert(self, tmp_path):
        """An alert of NaN leaves a valid file, with the NaN as a string; a hostile name does not spoil it."""
        recorder = self.recorder(tmp_path)
        recorder.record(Event(1, math.nan, {"a\ud800\n\x1b": math.nan}))
        assert recorder.guard.failures == {}
        assert self.read(tmp_path)[0]["value"] == "nan"
        assert recorder.close("completed")["rldk_failures"] == {}

    def test_resumed(self, tmp_path):
        """A resumed run keeps the alerts of its earlier part in the file, and an open one resolves in the later."""
        before = [Event(step, 0.0, row) for step, row in enumerate(norms(0.5, 9.0, *[0.5] * 12, 9.0), 1)]
        first = self.recorder(tmp_path)
        for item in before:
            first.record(item)
        second = self.recorder(tmp_path, resume_at=15)
        second.replay(before)
        second.record(Event(15, 0.0, {}, notes=("resumed from step 15",)))
        assert [(alert["step"], alert["resolved_step"]) for alert in self.read(tmp_path)] == [(2, 3), (15, None)]
        second.record(Event(16, 0.0, {"grad_norm": 0.5}))
        assert [(alert["step"], alert["resolved_step"]) for alert in self.read(tmp_path)] == [(2, 3), (15, 16)]

    def test_notes(self, tmp_path):
        """The event line of the step at which an alert is raised carries its message, and no other does."""
        recorder = self.recorder(tmp_path)
        for step, row in enumerate(norms(0.5, 9.0, 9.0, 0.5), 1):
            recorder.record(Event(step, 0.0, row))
        recorder.close("completed")
        notes = [json.loads(line)["notes"] for line in (tmp_path / "r_events.jsonl").read_text().splitlines()]
        assert notes == [[], [recorder.monitor.alerts[0].message], [], []]
