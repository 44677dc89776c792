"""Losses: properties over random scores, numbers worked out by hand, and scipy as the second opinion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import Tensor

from rldistill.play.envs import make_task
from rldistill.students.fitting import GradientFitting
from rldistill.students.losses import (
    DISCRETE,
    LOSSES,
    WeightedLoss,
    huber,
    js,
    kl,
    kl_gaussian,
    kl_gaussian_reverse,
    kl_hinton,
    kl_reverse,
    mse,
    mse_mean,
    mse_prob,
    nll,
    parse_loss,
)
from rldistill.students.networks import Architecture, build
from rldistill.students.objectives import Match
from rldistill.types import Lesson, ScoreKind, UserError, labelled
from rldistill.verbs.distill import DistillConfig, checked

TEMPERATURES = (0.001, 0.01, 0.1, 1.0, 3.0)
A_LOSS = st.sampled_from(sorted(LOSSES))
A_TEMPERATURE = st.sampled_from(TEMPERATURES)


def scores(rows: int = 3, actions: int = 4, bound: float = 20.0) -> st.SearchStrategy[Tensor]:
    """Multiples of 1/64, so that float64 adds a constant to them without rounding."""
    whole = int(bound * 64)
    return arrays(np.int64, (rows, actions), elements=st.integers(-whole, whole)).map(
        lambda numbers: torch.from_numpy(numbers).double() / 64
    )


@given(scores(), A_TEMPERATURE)
def test_divergence_of_equals_is_0(teacher: Tensor, temperature: float) -> None:
    softened = teacher / temperature
    assert kl(softened, teacher, temperature).abs().max() < 1e-9
    assert mse_prob(softened, teacher, temperature).abs().max() < 1e-9
    assert torch.equal(mse(teacher, teacher), torch.zeros(3).double())
    assert kl_hinton(teacher, teacher, temperature).abs().max() < 1e-9
    assert kl_reverse(softened, teacher, temperature).abs().max() < 1e-9
    assert js(softened, teacher, temperature).abs().max() < 1e-9
    for loss in (kl_gaussian, kl_gaussian_reverse, mse_mean, huber):
        assert torch.equal(loss(teacher, teacher), torch.zeros(3).double())


@given(scores(), scores(), A_TEMPERATURE)
def test_no_loss_is_negative(student: Tensor, teacher: Tensor, temperature: float) -> None:
    for loss in LOSSES.values():
        assert loss(student, teacher, temperature).min() > -1e-9


@given(scores(), scores(), A_TEMPERATURE)
def test_divergence_of_different_policies_is_positive(student: Tensor, teacher: Tensor, temperature: float) -> None:
    apart = ((teacher / temperature).softmax(dim=1) - student.softmax(dim=1)).abs().max(dim=1).values
    assume(float(apart.min()) > 1e-3)
    assert kl(student, teacher, temperature).min() > 1e-7  # Pinsker: at least twice the square of a distance of 1e-3
    assert mse_prob(student, teacher, temperature).min() > 1e-7
    assert kl_reverse(student, teacher, temperature).min() > 1e-7
    assert js(student, teacher, temperature).min() > 1e-7  # at least an eighth of the squared sum of the distances


@given(scores(), scores(), A_TEMPERATURE)
def test_jensen_shannon_is_symmetric_and_at_most_log_2(student: Tensor, teacher: Tensor, temperature: float) -> None:
    divergence = js(student, teacher, temperature)
    assert divergence.max() <= math.log(2) + 1e-12
    torch.testing.assert_close(js(teacher / temperature, student, 1.0), divergence, rtol=1e-9, atol=1e-12)


def test_jensen_shannon_of_policies_without_a_common_action_is_log_2() -> None:
    apart = js(torch.tensor([[1e3, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.001)
    assert apart.item() == pytest.approx(math.log(2), abs=1e-6)


@given(scores(), scores(), A_TEMPERATURE)
def test_reverse_kl_is_kl_with_the_softened_teacher_as_student(
    student: Tensor, teacher: Tensor, temperature: float
) -> None:
    exchanged = kl(teacher / temperature, student, 1.0)
    torch.testing.assert_close(kl_reverse(student, teacher, temperature), exchanged, rtol=1e-9, atol=1e-9)


def test_forward_kl_covers_both_good_actions_and_reverse_kl_seeks_one() -> None:
    """Teacher (0.49, 0.49, 0.02). A student that can only be uniform or (0.98, 0.01, 0.01) is one or the other."""
    teacher = torch.tensor([[0.49, 0.49, 0.02]]).log()
    uniform, one = torch.zeros(1, 3), torch.tensor([[0.98, 0.01, 0.01]]).log()
    # 0.98 ln(0.49 * 3) + 0.02 ln(0.02 * 3) = 0.3776 - 0.0563; 0.49 ln(1/2) + 0.49 ln 49 + 0.02 ln 2 = -0.3396 + 1.9070 + 0.0139
    assert kl(uniform, teacher, 1.0).item() == pytest.approx(0.3213, abs=1e-4)
    assert kl(one, teacher, 1.0).item() == pytest.approx(1.5812, abs=1e-4)
    # 2/3 ln(1/1.47) + 1/3 ln(1/0.06) = -0.2568 + 0.9378; 0.98 ln 2 + 0.01 ln(1/49) + 0.01 ln(1/2) = 0.6793 - 0.0389 - 0.0069
    assert kl_reverse(uniform, teacher, 1.0).item() == pytest.approx(0.6810, abs=1e-4)
    assert kl_reverse(one, teacher, 1.0).item() == pytest.approx(0.6334, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "masked"), [*((name, False) for name in sorted(LOSSES)), *((name, True) for name in sorted(DISCRETE))]
)
def test_gradient_is_that_of_finite_differences(name: str, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    masks = torch.tensor([[True, False, True, True], [False, True, False, True], [True, True, True, True]])

    def loss(scores: Tensor) -> Tensor:
        return DISCRETE[name](scores, teacher, 0.7, masks) if masked else LOSSES[name](scores, teacher, 0.7)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


@given(scores(), scores(), A_TEMPERATURE, st.integers(-1000, 1000))
def test_a_constant_added_to_the_values_of_a_state_moves_no_loss_on_policies(
    student: Tensor, teacher: Tensor, temperature: float, constant: int
) -> None:
    for name in ("kl", "kl_hinton", "kl_reverse", "js", "nll", "mse_prob"):
        before, after = (LOSSES[name](student, values, temperature) for values in (teacher, teacher + constant))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-6)


@given(scores(), scores(), A_TEMPERATURE)
def test_a_constant_added_to_the_students_scores_moves_no_loss_on_policies(
    student: Tensor, teacher: Tensor, temperature: float
) -> None:
    for name in ("kl", "kl_reverse", "js", "nll", "mse_prob"):
        before, after = (LOSSES[name](shifted, teacher, temperature) for shifted in (student, student + 7))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@given(A_LOSS, scores(rows=5), scores(rows=5), A_TEMPERATURE, st.integers(0, 4))
def test_loss_of_a_sample_does_not_depend_on_its_batch(
    name: str, student: Tensor, teacher: Tensor, temperature: float, row: int
) -> None:
    whole = LOSSES[name](student, teacher, temperature)
    assert whole.shape == (5,), "one number a sample, no sum over the batch"
    alone = LOSSES[name](student[row : row + 1], teacher[row : row + 1], temperature)
    torch.testing.assert_close(alone[0], whole[row], rtol=1e-12, atol=1e-12)
    twice = LOSSES[name](student.repeat(2, 1), teacher.repeat(2, 1), temperature)
    torch.testing.assert_close(twice, whole.repeat(2), rtol=1e-12, atol=1e-12)


@given(scores(bound=5), scores(bound=5), st.sampled_from((0.1, 1.0, 3.0)))
def test_divergences_are_those_of_scipy(student: Tensor, teacher: Tensor, temperature: float) -> None:
    def softmax(x: Tensor) -> np.ndarray:
        raised = np.exp(x.numpy() - x.numpy().max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))

    p, q = softmax(teacher / temperature), softmax(student)
    for loss, expected in (
        (kl, entropy(p, q, axis=1)),
        (kl_reverse, entropy(q, p, axis=1)),
        (js, jensenshannon(p, q, axis=1) ** 2),  # scipy's is the distance
    ):
        np.testing.assert_allclose(loss(student, teacher, temperature).numpy(), expected, rtol=1e-6, atol=1e-8)


def test_values_worked_out_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4); softmax(0, 0) = (1/2, 1/2); softmax(2 ln 3 - 0) = (1/10, 9/10).
    log3 = math.log(3)
    student, teacher = torch.zeros(1, 2), torch.tensor([[0.0, log3]])
    # 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2) = -ln(2)/4 + 3/4 ln(3/2) = -0.173287 + 0.304099
    assert kl(student, teacher, 1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # Temperature 1/2 doubles the teacher's values: 1/10 ln(1/5) + 9/10 ln(9/5) = -0.160944 + 0.529008
    assert kl(student, teacher, 0.5).item() == pytest.approx(0.368064, abs=1e-6)
    # The student is not softened: KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln(2/3) = 0.346574 - 0.202733
    assert kl(teacher, student, 0.5).item() == pytest.approx(0.143841, abs=1e-6)
    # Hinton's form softens both and multiplies by 1/4: KL((1/2, 1/2) || (1/10, 9/10)) / 4
    # = (1/2 ln 5 + 1/2 ln(5/9)) / 4 = (0.804719 - 0.293893) / 4
    assert kl_hinton(teacher, student, 0.5).item() == pytest.approx(0.127706, abs=1e-6)
    # The sides of the first and the second exchanged: 1/2 ln 2 + 1/2 ln(2/3), and 1/2 ln 5 + 1/2 ln(5/9)
    assert kl_reverse(student, teacher, 1.0).item() == pytest.approx(0.143841, abs=1e-6)
    assert kl_reverse(student, teacher, 0.5).item() == pytest.approx(0.510826, abs=1e-6)
    # Their mean is (3/8, 5/8): (1/4 ln(2/3) + 3/4 ln(6/5) + 1/2 ln(4/3) + 1/2 ln(4/5)) / 2
    assert js(student, teacher, 1.0).item() == pytest.approx(0.033822, abs=1e-6)
    # -ln softmax(student) at the teacher's best action, the second: -ln(1/2); the other way round the first: -ln(1/4)
    assert nll(student, teacher).item() == pytest.approx(0.693147, abs=1e-6)
    assert nll(teacher, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(1.386294, abs=1e-6)
    # (0 - 1)^2 + (2 - 4)^2 = 5
    assert mse(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 4.0]])).item() == 5.0
    # (1/2 - 1/4)^2 + (1/2 - 3/4)^2 = 1/8, and at temperature 1/2 (1/2 - 1/10)^2 + (1/2 - 9/10)^2 = 0.32
    assert mse_prob(student, teacher, 1.0).item() == pytest.approx(0.125, abs=1e-6)
    assert mse_prob(student, teacher, 0.5).item() == pytest.approx(0.32, abs=1e-6)
    # The student is not softened: (1/4 - 1/2)^2 + (3/4 - 1/2)^2
    assert mse_prob(teacher, student, 0.5).item() == pytest.approx(0.125, abs=1e-6)


def test_nll_takes_the_first_of_equally_good_actions() -> None:
    student = torch.tensor([[0.0, 1.0, 2.0]])
    tied = torch.tensor([[5.0, 5.0, 1.0]])
    assert nll(student, tied).item() == pytest.approx(nll(student, torch.tensor([[5.0, 4.0, 1.0]])).item())


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_loss_and_gradient_are_finite_for_a_sharp_teacher_with_large_values(name: str, size: float) -> None:
    student = torch.tensor([[0.3, -1.0, 2.0, 0.5], [50.0, 0.0, -50.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1.0, 1.0, 0.999, 0.5], [0.0, 0.0, 1.0, -1.0]]) * size
    loss = LOSSES[name](student, teacher, 0.001)
    loss.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
    assert loss.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_gradient_of_kl_is_the_difference_of_the_probabilities() -> None:
    """Of each sample's loss: softmax(student) - softmax(teacher / temperature), from no more than calculus."""
    student = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[0.02, 0.01, 0.03]])
    kl(student, teacher, 0.01).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
    expected = student.detach().softmax(dim=1) - (teacher / 0.01).softmax(dim=1)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected)


@given(scores(), scores(), A_TEMPERATURE, st.floats(0.1, 10), st.floats(0.1, 10))
def test_weighted_sum_adds_its_parts(
    student: Tensor, teacher: Tensor, temperature: float, first: float, second: float
) -> None:
    loss = parse_loss(f"nll:{first!r}, mse_prob:{second!r}")
    expected = first * nll(student, teacher) + second * mse_prob(student, teacher, temperature)
    torch.testing.assert_close(loss(student, teacher, temperature), expected)
    loss = parse_loss(f"kl_reverse:{first!r},js:{second!r}")
    expected = first * kl_reverse(student, teacher, temperature) + second * js(student, teacher, temperature)
    torch.testing.assert_close(loss(student, teacher, temperature), expected)


def test_parse_loss_reads_names_and_weights() -> None:
    assert parse_loss("kl") == WeightedLoss((("kl", 1.0),), "logits")
    assert parse_loss("nll:1,mse_prob:0.5") == WeightedLoss((("nll", 1.0), ("mse_prob", 0.5)), "logits")
    assert parse_loss("mse").score_kind == "q_values", "a student matched with values has values"
    assert parse_loss("mse:1,kl:1").score_kind == parse_loss("kl").score_kind == "logits"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown loss ''"),
        ("l1", "unknown loss 'l1': take kl,"),
        ("kl,", "unknown loss ''"),
        ("kl:0", "weight of the loss kl is a positive number, not '0'"),
        ("kl:-1", "not '-1'"),
        ("kl:nan", "not 'nan'"),
        ("kl:inf", "not 'inf'"),
        ("kl:much", "not 'much'"),
        ("kl:1:2", "not '1:2'"),
        ("kl,kl:2", "a loss is named twice"),
    ],
)
def test_wrong_loss_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_loss(text)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("shapes", [((3, 2), (3, 4)), ((1, 4), (3, 4)), ((4,), (4,)), ((2, 3, 4), (2, 3, 4))])
def test_scores_of_other_shapes_are_not_broadcast(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"both \(B, A\)"):
        LOSSES[name](torch.zeros(shapes[0]), torch.zeros(shapes[1]), 1.0)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_step_size_does_not_depend_on_the_batch_size(loss: str) -> None:
    """The update takes the mean once: a batch said four times over moves the weights as far as it does said once."""
    task = make_task("CartPole-v1")
    # An optimizer that normalizes would hide a factor, so the gradients themselves are compared, unclipped.
    config = checked(DistillConfig.of(student="mlp:8", loss=loss, targets="raw", max_grad_norm=0.0))
    generator = torch.Generator().manual_seed(1)
    observations, values = torch.randn(32, 4, generator=generator), torch.randn(32, 2, generator=generator)
    gradients, means = [], []
    for times in (1, 4):
        network = build(Architecture("mlp:8", (4,), 2), 0)
        objective = Match(parse_loss(loss), task, "q_values", config.matching)
        update = GradientFitting(network, {Lesson.of(task): objective}, config.optimization, 10, 0)
        batch = labelled(observations.repeat(times, 1), values.repeat(times, 1))
        means.append(update({Lesson.of(task): batch})[Lesson.of(task)].loss)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert means[1] == pytest.approx(means[0], rel=1e-5)
    network = build(Architecture("mlp:8", (4,), 2), 0)
    assert means[0] == pytest.approx(parse_loss(loss)(network(observations), values, 1.0).mean().item(), rel=1e-5)


# Continuous actions, and several discrete ones at once


def gaussians(bound: float = 3.0) -> st.SearchStrategy[Tensor]:
    """Means and log standard deviations of two dimensions, three rows."""
    return scores(rows=3, actions=4, bound=bound)


@given(gaussians(), gaussians())
def test_kl_gaussian_is_torchs_divergence(student: Tensor, teacher: Tensor) -> None:
    def normal(values: Tensor) -> torch.distributions.Distribution:
        mean, log_std = values[:, :2], values[:, 2:].clamp(max=2)  # multiples of 1/64 between -3 and 3
        return torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)

    expected = torch.distributions.kl_divergence(normal(teacher), normal(student))
    torch.testing.assert_close(kl_gaussian(student, teacher), expected, rtol=1e-9, atol=1e-9)
    reverse = torch.distributions.kl_divergence(normal(student), normal(teacher))
    torch.testing.assert_close(kl_gaussian_reverse(student, teacher), reverse, rtol=1e-9, atol=1e-9)


@given(gaussians(), gaussians())
def test_kl_gaussian_of_different_gaussians_is_positive(student: Tensor, teacher: Tensor) -> None:
    student, teacher = (torch.cat([values[:, :2], values[:, 2:].clamp(max=2)], dim=1) for values in (student, teacher))
    different = (student != teacher).any(dim=1)
    assert (kl_gaussian(student, teacher)[different] > 0).all()


def test_deviations_beyond_their_range_are_held_to_it() -> None:
    teacher, student = torch.tensor([[0.5, -20.0]]), torch.tensor([[0.0, 9.0]])
    held = kl_gaussian(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.5, -5.0]]))
    assert torch.equal(kl_gaussian(student, teacher), held)
    # ln(e^2 / e^-5) + (e^-10 + 1/4) / (2 e^4) - 1/2 = 7 + 0.0022899 - 0.5
    assert held.item() == pytest.approx(6.50229, abs=1e-5)


def test_losses_of_continuous_actions_worked_out_by_hand() -> None:
    # Means 0 and 1, both with a deviation of 1: half the squared distance. With the student's e: 1 + (1 + 1) / 2 e^2 - 1/2.
    assert kl_gaussian(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item() == 0.5
    wide = kl_gaussian(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])).item()
    assert wide == pytest.approx(0.5 + 1 / math.e**2, abs=1e-6)
    student, teacher = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[0.5, -1.0], [1.0, 0.0]])
    assert mse_mean(student, teacher).tolist() == [0.25 + 9, 1]
    # 0.5^2 / 2 + (3 - 1/2), and exactly 1 away both branches give 1/2.
    assert huber(student, teacher).tolist() == [0.125 + 2.5, 0.5]


@given(scores(actions=5), scores(actions=5), A_TEMPERATURE)
def test_kl_of_several_actions_is_the_sum_of_the_kls_of_each(
    student: Tensor, teacher: Tensor, temperature: float
) -> None:
    loss = parse_loss("kl", "logits", (2, 3))
    parts = [kl(student[:, part], teacher[:, part], temperature) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(loss(student, teacher, temperature), parts[0] + parts[1], rtol=1e-9, atol=1e-9)
    nlls = [nll(student[:, part], teacher[:, part]) for part in (slice(0, 2), slice(2, 5))]
    both = parse_loss("kl:0.5,nll:2", "logits", (2, 3))
    expected = 0.5 * (parts[0] + parts[1]) + 2 * (nlls[0] + nlls[1])
    torch.testing.assert_close(both(student, teacher, temperature), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "teacher", "parts", "score_kind"),
    [
        ("auto", "q_values", (("kl", 1.0),), "logits"),
        ("auto", "logits", (("kl", 1.0),), "logits"),
        ("auto", "gaussian", (("kl_gaussian", 1.0),), "gaussian"),
        ("auto", "squashed_gaussian", (("kl_gaussian", 1.0),), "squashed_gaussian"),
        ("auto", "actions", (("mse_mean", 1.0),), "actions"),
        ("mse_mean", "gaussian", (("mse_mean", 1.0),), "actions"),
        ("huber:2,mse_mean", "squashed_gaussian", (("huber", 2.0), ("mse_mean", 1.0)), "actions"),
        ("mse", "logits", (("mse", 1.0),), "logits"),
        ("kl_reverse", "q_values", (("kl_reverse", 1.0),), "logits"),
        ("js:1,mse:2", "q_values", (("js", 1.0), ("mse", 2.0)), "logits"),
        ("kl_gaussian_reverse", "gaussian", (("kl_gaussian_reverse", 1.0),), "gaussian"),
        (
            "kl_gaussian:1,kl_gaussian_reverse:2",
            "squashed_gaussian",
            (("kl_gaussian", 1.0), ("kl_gaussian_reverse", 2.0)),
            "squashed_gaussian",
        ),
    ],
)
def test_what_the_student_becomes_follows_from_loss_and_teacher(
    text: str, teacher: ScoreKind, parts: tuple[tuple[str, float], ...], score_kind: ScoreKind
) -> None:
    assert parse_loss(text, teacher) == WeightedLoss(parts, score_kind)


@pytest.mark.parametrize(
    ("text", "teacher", "words"),
    [
        (
            "kl",
            "gaussian",
            "the loss kl does not suit a teacher of gaussian: take kl_gaussian, kl_gaussian_reverse, mse_mean, huber",
        ),
        ("nll:1,mse_prob:1", "squashed_gaussian", "nll does not suit a teacher of squashed_gaussian"),
        ("kl_gaussian", "q_values", "kl_gaussian does not suit a teacher of q_values: take kl,"),
        ("huber", "logits", "huber does not suit a teacher of logits"),
        ("kl_gaussian", "actions", "kl_gaussian does not suit a teacher of actions: take mse_mean, huber$"),
        ("kl_gaussian:1,mse_mean:1", "gaussian", "they cannot be added"),
        ("huber,kl_gaussian_reverse", "gaussian", "kl_gaussian_reverse matches means and deviations.*cannot be added"),
        ("js", "gaussian", "js does not suit a teacher of gaussian"),
        ("kl_gaussian_reverse", "actions", "kl_gaussian_reverse does not suit a teacher of actions"),
        ("kl:1,mse_mean:1", "q_values", "mse_mean does not suit"),
        ("auto", "votes", "a teacher's scores are q_values, .*, not 'votes'"),
    ],
)
def test_loss_that_does_not_suit_the_teacher_is_refused_in_one_line(text: str, teacher: ScoreKind, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        parse_loss(text, teacher)
    assert len(str(refusal.value).splitlines()) == 1
