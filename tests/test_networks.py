import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rldistill.students.networks import Architecture, Network, build, fit_initialization, parameter_count
from rldistill.types import UserError

ATARI = (4, 84, 84)


def pixels(rows: int, seed: int = 0, shape: tuple[int, ...] = ATARI) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(256, size=(rows, *shape), dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "actions", "parameters"),
    [
        ("dqn", 18, 1_693_362),
        ("net1", 18, 427_874),
        ("net2", 18, 113_346),
        ("net3", 18, 61_954),
        ("net2", 6, 111_798),
        ("cnn:8,8,8:16", 6, 10_062),
        ("cnn:4,4,4:8", 6, 3_066),
    ],
)
def test_networks_have_the_published_numbers_of_parameters(name: str, actions: int, parameters: int) -> None:
    assert parameter_count(build(Architecture(name, ATARI, actions), 0)) == parameters


def test_a_dense_network_has_the_parameters_counted_by_hand() -> None:
    # 4 x 64 + 64, 64 x 32 + 32, 32 x 2 + 2; a scale and a shift for each normalized unit.
    assert parameter_count(build(Architecture("mlp:64,32", (4,), 2), 0)) == 320 + 2_080 + 66
    assert parameter_count(build(Architecture("mlp:64,32", (4,), 2, "layer"), 0)) == 320 + 2_080 + 66 + 2 * (64 + 32)


def test_scores_are_those_of_the_layers_computed_one_by_one() -> None:
    network = build(Architecture("net3", ATARI, 6), 3)
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    hidden, head = (layer for layer in network.layers if isinstance(layer, nn.Linear))
    observations = pixels(3)
    x = observations.to(torch.float32) / 255
    for convolution, stride in zip(convolutions, (4, 2, 1), strict=True):
        x = nn.functional.conv2d(x, convolution.weight, convolution.bias, stride=stride).clamp(min=0)
    x = x.flatten(1) @ hidden.weight.T + hidden.bias
    expected = x.clamp(min=0) @ head.weight.T + head.bias
    torch.testing.assert_close(network(observations), expected)


def test_the_standardization_is_an_affine_step_before_the_first_layer() -> None:
    plain = build(Architecture("mlp:8", (3,), 2), 0)
    standardized = build(Architecture("mlp:8", (3,), 2), 0)
    shift, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([2.0, 0.1, 1.0])
    standardized.standardize(shift, scale)
    observations = torch.randn((5, 3), generator=torch.Generator().manual_seed(0))
    expected = torch.stack(
        [2.0 * (observations[:, 0] - 1), 0.1 * (observations[:, 1] + 2), observations[:, 2] - 0.5], 1
    )
    torch.testing.assert_close(standardized(observations), plain(expected))
    assert not torch.allclose(standardized(observations), plain(observations))


def test_the_standardization_of_pixels_takes_the_place_of_the_division_by_255() -> None:
    network = build(Architecture("net3", ATARI, 6), 0)
    observations = pixels(2)
    centred = 3 * (observations.to(torch.float32) / 255 - 0.35)
    network.standardize(torch.tensor([0.35 * 255]), torch.tensor([3 / 255]))
    torch.testing.assert_close(network(observations), network.layers(centred), rtol=1e-4, atol=1e-5)


def test_observations_are_left_as_they_were() -> None:
    network = build(Architecture("mlp:8", (3,), 2), 0)
    network.standardize(torch.ones(3), torch.ones(3))
    observations = torch.ones((2, 3))
    network(observations)
    assert torch.equal(observations, torch.ones((2, 3)))


def test_small_grids_are_not_divided_by_255() -> None:
    small, large = (build(Architecture("cnn:16:128", (4, side, side), 6), 0) for side in (10, 84))
    assert float(small.scale) == 1.0
    assert float(large.scale) == pytest.approx(1 / 255)


def test_dropout_acts_in_training_and_when_exploring_and_not_otherwise() -> None:
    network = build(Architecture("mlp:256", (4,), 3, dropout=0.5), 0).eval()
    observations = torch.ones((2, 4))
    with torch.no_grad():
        sure = network(observations)
        assert torch.equal(network(observations), sure)
        with network.acting(sampled=True):
            first, second = network(observations), network(observations)
        assert not torch.equal(first, sure)
        assert not torch.equal(first, second), "the mask is drawn anew each time"
        assert not torch.equal(first[0], first[1]), "each row has a mask of its own"
        assert torch.equal(network(observations), sure)
        network.train()
        assert not torch.equal(network(observations), sure)
        with network.acting(sampled=False):
            assert torch.equal(network(observations), sure)
        assert not torch.equal(network(observations), sure), "it trains on as before"


def test_dropout_keeps_the_expected_score() -> None:
    network = build(Architecture("mlp:64", (4,), 1, dropout=0.3), 0).eval()
    observations = torch.ones((20_000, 4))
    with torch.no_grad(), network.acting(sampled=True):
        with network.acting(sampled=False):
            sure = network(observations)[0, 0]
        sampled = network(observations)[:, 0]
    assert abs(float(sampled.mean() - sure)) < 5 * float(sampled.std()) / 20_000**0.5
    assert float(sampled.std()) > 0


def test_a_network_without_dropout_acts_as_it_is() -> None:
    network = build(Architecture("mlp:8", (4,), 2), 0)
    observations = torch.ones((2, 4))
    with torch.no_grad(), network.acting(sampled=True):
        assert torch.equal(network(observations), network(observations))


@pytest.mark.parametrize("name", ["mlp:16", "cnn:4,4:8"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_weights_follow_from_the_seed_and_the_global_generator_is_left_alone(name: str, dropout: float) -> None:
    architecture = Architecture(name, (4, 10, 10), 3, dropout=dropout)
    torch.manual_seed(11)
    untouched = torch.rand(3)
    torch.manual_seed(11)
    first = build(architecture, 5).train()
    torch.manual_seed(12)
    second, other = build(architecture, 5).train(), build(architecture, 6).train()
    observations = torch.ones((4, 4, 10, 10))
    assert torch.equal(first(observations), second(observations))
    assert not torch.equal(first(observations), other(observations))
    torch.manual_seed(11)
    build(architecture, 5).train()(observations)
    assert torch.equal(torch.rand(3), untouched)


@pytest.mark.parametrize("standardization", [(0.0, 1 / 255), (87.3, 1 / 33)])
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_bfloat16_stays_close_to_float32_and_keeps_the_weights(
    normalization: str, standardization: tuple[float, float]
) -> None:
    architecture = Architecture("net2", ATARI, 6, "layer" if normalization == "layer" else "none")
    network = build(architecture, 0)
    network.standardize(*(torch.tensor([number]) for number in standardization))
    observations = pixels(8)
    with torch.no_grad():
        exact = network(observations)
        network.bfloat16 = True
        rounded = network(observations)
    assert rounded.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).abs().max()) < 0.03 * float(exact.abs().max())


@pytest.mark.parametrize("name", ["net2", "mlp:16"])
def test_scores_of_a_bfloat16_network_are_not_rounded_to_it(name: str) -> None:
    # A state worth 1 has bfloat16 neighbours 0.004 away: a game of few rewards has all its actions between two of them.
    network = build(Architecture(name, ATARI, 64), 0)
    network.bfloat16 = True
    observations = pixels(8)
    with torch.no_grad():
        scores = network(observations)
    assert float((scores == scores.to(torch.bfloat16).to(torch.float32)).float().mean()) < 0.1


def test_gradients_of_a_bfloat16_network_are_those_of_float32_but_for_rounding() -> None:
    network = build(Architecture("net2", ATARI, 6), 0)
    network.standardize(torch.tensor([87.3]), torch.tensor([1 / 33]))
    observations, gradients = pixels(8), []
    for network.bfloat16 in (False, True):
        network.zero_grad()
        network(observations).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for exact, rounded in zip(*gradients, strict=True):
        assert exact is not None
        assert float((exact - rounded).norm()) < 0.15 * float(exact.norm())


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_the_order_of_channels_in_memory_changes_neither_scores_nor_gradients(normalization: str) -> None:
    network = build(Architecture("net2", ATARI, 6, "layer" if normalization == "layer" else "none"), 0)
    observations = pixels(8)
    scores = network(observations)
    scores.square().sum().backward()
    interleaved = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    plain = network.layers(network.standardized(observations))
    plain.square().sum().backward()
    torch.testing.assert_close(scores, plain)
    for ours, parameter in zip(interleaved, network.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "capability", "faster"),
    [
        ("net2", ATARI, "amx_bf16", True),
        ("net2", ATARI, "avx512_bf16", True),
        ("net2", ATARI, "avx512_f", False),
        ("cnn:4:16", (4, 10, 10), "amx_bf16", False),
        ("mlp:16", (8,), "amx_bf16", False),
    ],
)
def test_large_images_alone_train_faster_in_bfloat16_and_only_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], capability: str, faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert build(Architecture(name, shape, 3), 0).trains_faster_in_bfloat16 is faster


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_scores_of_a_row_do_not_depend_on_the_rest_of_the_batch(normalization: str) -> None:
    architecture = Architecture("net3", ATARI, 6, "layer" if normalization == "layer" else "none")
    network = build(architecture, 0)
    observations = pixels(5)
    with torch.no_grad():
        together = network(observations)
        alone = torch.cat([network(row[None]) for row in observations])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_layer_normalization_makes_scores_deaf_to_the_size_of_the_input() -> None:
    network = build(Architecture("mlp:32", (4,), 2, "layer"), 0)
    first = network.layers[1]
    assert isinstance(first, nn.Linear)
    nn.init.zeros_(first.bias)
    observations = torch.randn((3, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(observations), network(100 * observations), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("net9", ATARI, "unknown network 'net9': take dqn, net1, net2, net3"),
        ("cnn:8,8,8", ATARI, "unknown network"),
        ("cnn:8,,8:16", ATARI, "unknown network"),
        ("mlp:", (4,), "unknown network"),
        ("mlp:64\n", (4,), "unknown network"),
        ("", (4,), "unknown network"),
        ("cnn:8,0,8:16", ATARI, "without units"),
        ("mlp:99999999", (4,), "absurd"),
        ("cnn:8,8,8,8:16", ATARI, "4 convolutions; at most 3"),
        ("net2", (4,), "reads images, but the observations have shape"),
        ("net2", (4, 5, 5), r"too deep for observations of shape \(4, 5, 5\) \(channels, height, width\)"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_line(name: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(UserError, match=says) as refusal:
        build(Architecture(name, shape, 6), 0)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_must_be_a_probability_below_one(dropout: float) -> None:
    with pytest.raises(UserError, match="dropout is a probability below 1"):
        build(Architecture("mlp:8", (4,), 2, dropout=dropout), 0)


@given(
    channels=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    hidden=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    side=st.integers(7, 50),
    depth=st.integers(1, 5),
    actions=st.integers(1, 7),
)
def test_any_network_of_numbers_gives_one_score_an_action(
    channels: list[int], hidden: list[int], side: int, depth: int, actions: int
) -> None:
    name = f"cnn:{','.join(map(str, channels))}:{','.join(map(str, hidden))}"
    network: Network = build(Architecture(name, (depth, side, side), actions), 0)
    scores = network(torch.zeros((2, depth, side, side), dtype=torch.uint8))
    assert scores.shape == (2, actions)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_fitted_initialization_gives_every_unit_mean_0_and_variance_1_before_its_relu(normalization: str) -> None:
    """With layer normalization before that; afterwards they are still of that size, and no unit is dead."""
    generator = np.random.default_rng(5)
    # Frames of a fixed background with a little noise, of which the usual initialization would see nothing.
    background = generator.integers(0, 255, (1, 4, 84, 84))
    frames = np.clip(background + generator.integers(-9, 10, (64, 4, 84, 84)), 0, 255).astype(np.uint8)
    network = build(Architecture("net3", (4, 84, 84), 6, "layer" if normalization == "layer" else "none"), 0)
    observations = torch.from_numpy(frames)
    fit_initialization([network], [observations], 1)
    x = (observations.float() - network.shift) * network.scale
    with torch.no_grad():
        for layer in network.layers:
            x = layer(x)
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                units = x.transpose(0, 1).flatten(1)
                scale = 0.1 if layer is network.layers[-1] else 1.0  # the scores begin small
                assert units.mean(dim=1).abs().max() < 1e-2 * scale
                assert (units.std(dim=1) / scale - 1).abs().max() < 2e-2
            if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                assert 0.5 < float(x.std()) < 2
            if isinstance(layer, nn.ReLU):
                assert (x.transpose(0, 1).flatten(1) > 0).float().mean(dim=1).min() > 0.1


def test_a_network_reads_its_features_in_their_order_and_no_others() -> None:
    """Of five features the last and the second: as a network of those two alone."""
    part = build(Architecture("mlp:3", (5,), 2, reads=(4, 1)), 0)
    alone = build(Architecture("mlp:3", (2,), 2), 1)
    part.standardize(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0]))
    alone.load_state_dict(part.state_dict())
    observations = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part(observations), alone(observations[:, [4, 1]]))
    assert torch.equal(part.selected(observations), torch.stack([observations[:, 4], observations[:, 1]], dim=1))
    assert parameter_count(part) == 2 * 3 + 3 + 3 * 2 + 2
    fit_initialization([part], [observations], 3)
    fit_initialization([alone], [observations[:, [4, 1]]], 3)
    assert torch.equal(part(observations), alone(observations[:, [4, 1]]))


def test_a_network_without_features_named_sees_them_all() -> None:
    observations = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert build(Architecture("mlp:3", (5,), 2), 0).selected(observations) is observations


def test_convolutions_do_not_read_features() -> None:
    with pytest.raises(UserError, match="reads images"):
        build(Architecture("net3", ATARI, 6, reads=(0,)), 0)
