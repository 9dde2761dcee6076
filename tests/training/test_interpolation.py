import pytest
import torch

from finetune.networks.freezing import split_at
from finetune.spec.network import NetworkSpec
from finetune.spec.preprocessing import Preprocessing
from finetune.training.checkpoints import describe
from finetune.training.interpolation import best_between, held_out_answers, interpolate
from finetune.training.model_selection import Candidate

LABELS = torch.zeros(40, dtype=torch.long)


def confidence(state):
    """Answers that are all right, and the surer the nearer the weight is to 0."""
    sure = (3 - state["network.w"].abs()).expand(40)
    return torch.stack([sure, torch.zeros(40)], dim=1)


def candidate(weight, answer=confidence):
    state = {"network.w": torch.tensor([weight]), "network.steps": torch.tensor(round(weight))}
    val = {"logits": answer(state), "labels": LABELS, "paths": []}
    names, network = ("a", "b"), NetworkSpec("test_resnet")
    fit = {"phase": 1}
    entry = describe(names, "test_resnet", Preprocessing(), network=network, val=val, fit=fit)
    return Candidate(state, {"lr": 0.1}, entry)


def test_ends_are_exact_and_integers_are_the_later_ones():
    earlier = {"w": torch.rand(50), "steps": torch.tensor(3)}
    later = {"w": torch.rand(50), "steps": torch.tensor(8)}
    for share, end in ((0.0, earlier), (1.0, later)):
        assert torch.equal(interpolate(earlier, later, share)["w"], end["w"])
    half = interpolate(earlier, later, 0.5)
    torch.testing.assert_close(half["w"], (earlier["w"] + later["w"]) / 2)
    assert half["steps"] == 8


def test_the_best_point_replaces_the_later_end():
    earlier, later = candidate(-1.0), candidate(3.0)
    found = best_between(earlier, later, confidence, monitor="val/nll")
    assert found.state_dict["network.w"].item() == 0.0
    assert found.state_dict["network.steps"] == 3
    assert torch.equal(found.outputs[0], confidence(found.state_dict))
    assert found.facts == {"phase": 1, "share": 0.25}
    assert found.hyper_parameters == {"lr": 0.1}
    for end, weight in ((earlier, -1.0), (later, 3.0)):  # values: neither end has changed
        assert end.state_dict["network.w"].item() == weight
        assert end.facts == {"phase": 1}
        assert torch.equal(end.outputs[0], confidence(end.state_dict))


def test_a_better_end_stays_as_it_is():
    later = candidate(0.0)
    assert best_between(candidate(2.0), later, confidence, monitor="val/nll") is later


@pytest.mark.parametrize(("monitor", "share"), [("val/accuracy", 0.5), ("val/nll", None)])
def test_the_wanted_figure_decides_in_its_own_direction(monitor, share):
    def answer(state):
        """All right but hardly sure half-way, one wrong and the rest sure at the ends."""
        half = abs(state["network.w"].item()) < 0.1
        sure = torch.full((40,), 0.01 if half else 5.0)
        sure[0] = 0.01 if half else -0.01
        return torch.stack([sure, torch.zeros(40)], dim=1)

    found = best_between(candidate(-1.0, answer), candidate(1.0, answer), answer, monitor=monitor)
    assert found.facts.get("share") == share


def test_the_confidence_of_a_point_is_put_right_in_weights_and_answers():
    features = torch.randn(40, generator=torch.Generator().manual_seed(0))

    def answer(state):
        """One in four is wrong, and how sure all are grows with the weight."""
        right = torch.where(torch.arange(40) % 4 == 0, -1.0, 1.0) + 0.3 * features
        return torch.stack([right * state["network.w"], torch.zeros(40)], dim=1)

    ends = candidate(4.0, answer), candidate(40.0, answer)
    found = best_between(*ends, answer, monitor="val/nll", rescaled_head=["w"])
    assert found.facts["share"] < 1
    # Every point of this line is the same classifier once its confidence is put right.
    assert found.state_dict["network.w"].item() == pytest.approx(1.0, abs=0.5)
    torch.testing.assert_close(found.outputs[0], answer(found.state_dict))


def test_other_weights_answer_as_if_they_were_loaded(colour_folder, data_of, classifier_of):
    datamodule = data_of(colour_folder)
    classifier, other = (classifier_of(datamodule, seed=seed) for seed in (0, 1))
    own = {name: value.clone() for name, value in classifier.state_dict().items()}
    batches = [torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        expected = other.eval()(batches[0])
        kept = split_at(other.network, "layer4").bottom((batches[0] - other.mean) / other.std)
    given = other.state_dict()
    torch.testing.assert_close(held_out_answers(classifier, [(batches[0],)], given), expected)
    classifier.upper = split_at(classifier.network, "layer4").top
    torch.testing.assert_close(held_out_answers(classifier, [(kept,)], given), expected)
    assert all(torch.equal(value, own[name]) for name, value in classifier.state_dict().items())
