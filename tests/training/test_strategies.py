import pytest

from finetune.errors import UsageError
from finetune.training.strategies import Phase, epochs_of, parse_strategy, phases_of

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
PROBE = Phase("probe", "head")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("head", [PROBE]),
        ("all", [Phase("train", "stem", 1.0)]),
        ("head-then-all", [PROBE, Phase("train", "stem", 1.0)]),
        ("partial:1", [PROBE, Phase("train", "layer4", 1.0)]),
        ("partial:5", [PROBE, Phase("train", "stem", 1.0)]),
    ],
)
def test_phases(strategy, expected):
    assert list(phases_of(strategy, STAGES)) == expected


def test_gradual_goes_from_the_top_to_the_stem():
    phases = phases_of("gradual", STAGES)
    assert [p.boundary for p in phases] == ["head", "layer4", "layer3", "layer2", "layer1", "stem"]
    assert sum(phase.share for phase in phases) == pytest.approx(1)


@pytest.mark.parametrize("epochs", [1, 3, 5, 6, 7, 11, 100])
@pytest.mark.parametrize("strategy", ["head", "all", "head-then-all", "gradual", "partial:2"])
def test_epochs_add_up_and_every_phase_trains(strategy, epochs):
    phases = phases_of(strategy, STAGES)
    counts = epochs_of(phases, epochs)
    training = [count for phase, count in zip(phases, counts, strict=True) if phase.share]
    assert [count for phase, count in zip(phases, counts, strict=True) if not phase.share] == (
        [0] * (len(phases) - len(training))
    )
    assert all(count >= 1 for count in training)
    assert sum(counts) == (max(epochs, len(training)) if training else 0)
    assert training == sorted(training)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("heads", "head"), ("partial", "partial:N"), ("partial:0", "partial:N"), ("head:2", "head")],
)
def test_mistakes_name_the_nearest(wrong, hint):
    with pytest.raises(UsageError, match=f"did you mean {hint}"):
        parse_strategy(wrong)


def test_more_stages_than_there_are():
    with pytest.raises(UsageError, match="partial:1 to partial:5"):
        phases_of("partial:6", STAGES)
