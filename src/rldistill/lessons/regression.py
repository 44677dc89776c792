"""Payments as a function of the context: ridge regression, and small networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rldistill.files import generator_state, load_generator_state
from rldistill.lessons.selection import Choice, Doubles, Ints
from rldistill.lessons.tallies import Statistics
from rldistill.types import Floats


class Model(Protocol):
    """Predicts what each arm is paid in a context, or something that is larger for better arms."""

    @property
    def of_payments(self) -> bool:
        """Whether predictions are payments, in their own units."""

    @property
    def unit(self) -> float:
        """The spread that predictions are measured by: that of the payments, or 1."""

    @property
    def estimates(self) -> Doubles:
        """(M,): the mean prediction over recent contexts, NaN for arms that were never paid."""

    def predict(self, contexts: Doubles) -> Doubles:
        """Predictions (R, M), NaN for arms that were never paid."""

    def deviations(self, contexts: Doubles) -> Doubles:
        """Standard deviations of the predictions (R, M), without the noise of a payment."""

    def learn(self, choice: Choice, payments: Doubles, contexts: Doubles) -> None:
        """Takes R payments with their choices and contexts (R, C)."""

    def state_dict(self) -> dict[str, Any]:
        """The state that the next predictions depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""


_WIDEST = 5.0
"""Standard deviations from the mean that a column of a context counts at most."""
_SHARE = 0.05
"""The weights are solved anew when the payments have grown by this share."""


class Ridge:
    """A ridge regression for each arm, on contexts that are standardized by their own mean and spread.

    Sums of squares and products are kept about the means, and each solution standardizes anew: contexts may have any scale, and may
    drift. Payments wait until they have grown by 5 %, and by C / 8; then they enter the sums, and the weights are solved.

    Predictions take a column as at most 5 standard deviations from its mean. A unit of the student that was nearly constant may
    come alive, and is then any number of them away.

    Args:
        arms: M.
        contexts: C, their columns.
        penalty: of the squared weights, times C: with 1 the contexts explain as much as the noise, a priori.
        forget: the share of all earlier payments that is forgotten with each payment.
    """

    of_payments = True

    def __init__(self, arms: int, contexts: int, penalty: float = 0.5, forget: float = 0.0) -> None:
        self._penalty, self._forget = penalty * contexts, forget
        self._ever = np.zeros(arms, dtype=np.bool_)
        self._waiting: list[tuple[Ints, Doubles, Doubles]] = []
        self._moments: dict[str, Doubles] = {
            "counts": np.zeros(arms),
            "contexts": np.zeros((arms, contexts)),
            "payments": np.zeros(arms),
            "squares": np.zeros((arms, contexts, contexts)),
            "products": np.zeros((arms, contexts)),
            "deviations": np.zeros(arms),
        }
        self._solution: dict[str, Doubles] = {}
        self._solve()

    @property
    def unit(self) -> float:
        """The spread of all payments."""
        return float(self._solution["spread"])

    @property
    def estimates(self) -> Doubles:
        """(M,): the prediction at the mean of all contexts, which is the mean of the predictions."""
        counts = self._moments["counts"]
        centre = counts @ self._moments["contexts"] / max(float(counts.sum()), 1e-300)
        return np.asarray(self.predict(centre[None])[0])

    def predict(self, contexts: Doubles) -> Doubles:
        """Predictions (R, M), NaN for arms that were never paid."""
        solution = self._solution
        means = (self._standardized(contexts) @ solution["weights"][..., None])[..., 0] + solution["offsets"][:, None]
        means[~self._ever] = np.nan
        return means.T

    def deviations(self, contexts: Doubles) -> Doubles:
        """Standard deviations of the predictions (R, M), without the noise of a payment."""
        about = self._standardized(contexts)
        variances = ((about @ self._solution["inverses"]) * about).sum(axis=2)
        variances += 1 / np.maximum(self._moments["counts"], 1e-9)[:, None]
        return np.asarray(self._solution["noise"] * np.sqrt(variances).T)

    def _standardized(self, contexts: Doubles) -> Doubles:
        """(M, R, C)"""
        about = (contexts - self._solution["centres"][:, None]) / self._solution["scales"]
        return np.clip(about, -_WIDEST, _WIDEST, out=about)

    def learn(self, choice: Choice, payments: Doubles, contexts: Doubles) -> None:
        """Takes payments."""
        new = not self._ever[choice.arms].all()
        self._ever[choice.arms] = True
        self._waiting.append((choice.arms.copy(), payments.astype(np.float64), contexts.astype(np.float64)))
        waiting = sum(len(arms) for arms, _, _ in self._waiting)
        if new or waiting >= max(_SHARE * self._moments["counts"].sum(), contexts.shape[1] / 8):
            self._take()
            self._solve()

    def _take(self) -> None:
        """Puts the payments that wait into the sums."""
        arms, payments, contexts = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting.clear()
        keep = (1 - self._forget) ** np.arange(len(arms))[::-1]
        for name in ("counts", "squares", "products", "deviations"):
            self._moments[name] *= keep[0] * (1 - self._forget)
        for arm in np.unique(arms):
            rows = arms == arm
            self._add(int(arm), contexts[rows], payments[rows], keep[rows])

    def _add(self, arm: int, contexts: Doubles, payments: Doubles, keep: Doubles) -> None:
        moments, number = self._moments, float(keep.sum())
        share = number / (moments["counts"][arm] + number)
        centre, mean = keep @ contexts / number, float(keep @ payments) / number
        moved, risen = centre - moments["contexts"][arm], mean - moments["payments"][arm]
        # The means' move is one more row of the products.
        roots = np.sqrt(np.append(keep, moments["counts"][arm] * share))
        about = np.vstack([contexts - centre, moved]) * roots[:, None]
        off = np.append(payments - mean, risen) * roots
        moments["squares"][arm] += about.T @ about
        moments["products"][arm] += off @ about
        moments["deviations"][arm] += off @ off
        moments["contexts"][arm] += share * moved
        moments["payments"][arm] += share * risen
        moments["counts"][arm] += number

    def _solve(self) -> None:
        moments = self._moments
        counts, centres = moments["counts"], moments["contexts"]
        total = max(float(counts.sum()), 1e-300)
        off = centres - counts @ centres / total
        variances = (np.diagonal(moments["squares"], axis1=1, axis2=2).sum(axis=0) + counts @ off**2) / total
        scales = np.where(variances > 1e-12 * (centres**2).max(axis=0, initial=0), np.sqrt(variances), np.inf)
        squares = moments["squares"] / scales[:, None] / scales
        inverses = np.linalg.inv(squares + self._penalty * np.eye(len(scales)))
        products = moments["products"] / scales
        weights = (inverses @ products[..., None])[..., 0]
        rises = moments["payments"] - counts @ moments["payments"] / total
        spread = (moments["deviations"].sum() + counts @ rises**2) / total
        residuals = moments["deviations"].sum() - (weights * (products + self._penalty * weights)).sum()
        freedom = total - len(counts) - (weights.size - self._penalty * np.trace(inverses, axis1=1, axis2=2).sum())
        noise = (residuals + len(counts) * spread) / max(freedom, 1.0)
        self._solution = {
            "offsets": moments["payments"].copy(),
            "centres": centres.copy(),
            "weights": weights,
            "scales": np.asarray(scales, dtype=np.float64),
            "inverses": np.asarray(inverses, dtype=np.float64),
            "spread": np.sqrt(np.asarray(spread, dtype=np.float64)),
            "noise": np.asarray(np.sqrt(np.clip(noise, 0, spread)), dtype=np.float64),
        }

    def state_dict(self) -> dict[str, Any]:
        """The moments, and the last solution."""
        return {
            "moments": {name: value.copy() for name, value in self._moments.items()},
            "solution": dict(self._solution),
            "waiting": [list(rows) for rows in self._waiting],
            "ever": self._ever.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for own, name in ((self._moments, "moments"), (self._solution, "solution")):
            own.update({key: np.asarray(value).astype(np.float64) for key, value in state[name].items()})
        self._waiting = [
            (np.asarray(arms).astype(np.int64), np.asarray(payments), np.asarray(contexts))
            for arms, payments, contexts in state["waiting"]
        ]
        self._ever = np.array(state["ever"], dtype=np.bool_)


class Rows:
    """The last payments with their contexts: what networks are fitted to again and again.

    Args:
        contexts: C.
        size: how many.
        members: networks of an ensemble; each counts a row as often as a Poisson number of mean 1 says, which is the bootstrap.
    """

    def __init__(self, contexts: int, size: int, members: int = 1) -> None:
        self.total = 0
        self._size = size
        self._arrays: dict[str, npt.NDArray[Any]] = {
            "contexts": np.zeros((size, contexts), dtype=np.float32),
            "arms": np.zeros(size, dtype=np.int64),
            "probabilities": np.ones(size),
            "payments": np.zeros(size),
            "repeats": np.ones((size, members), dtype=np.uint8),
        }

    def add(self, choice: Choice, payments: Doubles, contexts: Doubles, generator: np.random.Generator) -> None:
        """Puts rows in the places of the oldest ones."""
        places = np.arange(self.total, self.total + len(payments)) % self._size
        self.total += len(payments)
        members = self._arrays["repeats"].shape[1]
        repeats = generator.poisson(1.0, (len(places), members)) if members > 1 else 1
        values = (contexts, choice.arms, choice.probabilities, payments, repeats)
        for array, value in zip(self._arrays.values(), values, strict=True):
            array[places] = value

    def __getitem__(self, places: Ints) -> tuple[Choice, Doubles, Doubles, npt.NDArray[np.uint8]]:
        """Choices, payments, contexts and repeats of some rows."""
        contexts, arms, probabilities, payments, repeats = (array[places] for array in self._arrays.values())
        return Choice(arms, probabilities), payments, contexts.astype(np.float64), repeats

    def drawn(self, number: int, generator: np.random.Generator) -> Ints:
        """Places of rows that are drawn uniformly, with replacement."""
        return generator.integers(min(self.total, self._size), size=number)

    def last(self, number: int) -> Ints:
        """Places of the newest rows."""
        return np.arange(max(self.total - min(number, self._size), 0), self.total) % self._size

    def state_dict(self) -> dict[str, Any]:
        """The rows that are filled."""
        filled = min(self.total, self._size)
        return {"total": self.total} | {name: array[:filled].copy() for name, array in self._arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.total = int(state["total"])
        for name, array in self._arrays.items():
            array[: min(self.total, self._size)] = np.asarray(state[name])


class Layers:
    """Networks of one hidden layer or none, several side by side, moved by Adam.

    Args:
        sizes: inputs, hidden units (0 for a linear function), outputs.
        members: how many networks.
        rate: of Adam.
        generator: of the first weights. One network begins with outputs of 0; several differ.
    """

    def __init__(self, sizes: tuple[int, int, int], members: int, rate: float, generator: np.random.Generator) -> None:
        inputs, hidden, outputs = sizes
        widths = [inputs, hidden, outputs] if hidden else [inputs, outputs]
        shapes = [shape for ins, outs in zip(widths, widths[1:], strict=False) for shape in ((ins, outs), (1, outs))]
        ends = np.cumsum([members * rows * columns for rows, columns in shapes])
        self._values: Floats = np.zeros(ends[-1], dtype=np.float32)
        # Views: Adam moves all of them at once.
        parts = np.split(self._values, ends[:-1])
        self.arrays = [part.reshape(members, *shape) for part, shape in zip(parts, shapes, strict=True)]
        for layer, array in enumerate(self.arrays[::2]):
            last = 2 * layer + 2 == len(self.arrays)
            scale = (0.0 if last and members == 1 else 1.0) * (1 if last else 2) ** 0.5 / array.shape[1] ** 0.5
            array[:] = scale * generator.standard_normal(array.shape)
        self._rate, self._steps = rate, 0
        self._first, self._second = np.zeros_like(self._values), np.zeros_like(self._values)

    def __call__(self, inputs: Doubles) -> Floats:
        """Outputs (E, N, M) of inputs (N, C)."""
        return self._forward(inputs)[-1]

    def _forward(self, inputs: Doubles) -> list[Floats]:
        values = [inputs[None].astype(np.float32)]
        for weights, biases in zip(self.arrays[::2], self.arrays[1::2], strict=True):
            values.append(values[-1] @ weights + biases)
            if len(values) * 2 <= len(self.arrays):
                np.maximum(values[-1], 0, out=values[-1])
        return values

    def step(self, inputs: Doubles, slopes: Any) -> None:
        """One step of Adam.

        Args:
            inputs: (N, C).
            slopes: makes the derivative (E, N, M) of the loss, of outputs (E, N, M).
        """
        values = self._forward(inputs)
        slope = slopes(values[-1]).astype(np.float32)
        gradients: list[Floats] = []
        for layer in reversed(range(len(self.arrays) // 2)):
            gradients = [(values[layer].swapaxes(1, 2) @ slope).ravel(), slope.sum(axis=1).ravel(), *gradients]
            if layer:
                slope = (slope @ self.arrays[2 * layer].swapaxes(1, 2)) * (values[layer] > 0)
        gradient = np.concatenate(gradients)
        self._steps += 1
        rate = self._rate * (1 - 0.999**self._steps) ** 0.5 / (1 - 0.9**self._steps)
        self._first += 0.1 * (gradient - self._first)
        self._second += 0.001 * (gradient * gradient - self._second)
        self._values -= rate * self._first / (np.sqrt(self._second) + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        """Weights, and Adam's moments."""
        vectors = {"values": self._values, "first": self._first, "second": self._second}
        return {"steps": self._steps} | {name: vector.copy() for name, vector in vectors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._steps = int(state["steps"])
        for vector, name in ((self._values, "values"), (self._first, "first"), (self._second, "second")):
            vector[:] = np.asarray(state[name])


_LEAST_RATE = 0.001
"""The share of a new context in the running mean and variance is at least this."""


class Scaling:
    """Running means and variances of contexts, which forget slowly.

    Args:
        contexts: C.
    """

    def __init__(self, contexts: int) -> None:
        self._total = 0
        self._means, self._variances = np.zeros(contexts), np.zeros(contexts)
        self._scales = np.full(contexts, np.inf)

    def add(self, contexts: Doubles) -> None:
        """Takes contexts (R, C)."""
        self._total += len(contexts)
        rate = min(1.0, len(contexts) * max(1 / self._total, _LEAST_RATE))
        moved = contexts.mean(axis=0) - self._means
        self._variances += rate * (contexts.var(axis=0) + (1 - rate) * moved**2 - self._variances)
        self._means += rate * moved
        self._rescale()

    def _rescale(self) -> None:
        self._scales = np.where(self._variances > 1e-12 * self._means**2, np.sqrt(self._variances), np.inf)

    def __call__(self, contexts: Doubles) -> Doubles:
        """Standardized contexts, from -5 to 5; 0 in columns that never change."""
        return np.asarray(np.clip((contexts - self._means) / self._scales, -_WIDEST, _WIDEST))

    def state_dict(self) -> dict[str, Any]:
        """The running figures."""
        return {"total": self._total, "means": self._means.copy(), "variances": self._variances.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._total = int(state["total"])
        self._means, self._variances = (np.asarray(state[name]).astype(np.float64) for name in ("means", "variances"))
        self._rescale()


_BATCH = 64
_PER_STEP = 8
"""Payments of one call for each step of Adam; a call makes one step at least."""
_RECENT = 256
"""Contexts that estimates are means over."""


class Network:
    """A small network that predicts the payments of all arms, or an ensemble whose members differ by the bootstrap.

    Its outputs are distances from the mean payment of each arm. It is fitted to the last payments, each of which is drawn again
    and again.

    Args:
        arms: M.
        contexts: C.
        generator: of first weights and draws.
        hidden: units of the hidden layer.
        members: networks; one has no standard deviation.
        rate: of Adam.
        memory: payments that are kept.
    """

    of_payments = True

    def __init__(
        self,
        arms: int,
        contexts: int,
        generator: np.random.Generator,
        hidden: int = 32,
        members: int = 1,
        rate: float = 0.003,
        memory: int = 4096,
    ) -> None:
        self._generator = generator
        self._layers = Layers((contexts, hidden, arms), members, rate, generator)
        self._rows, self._scaling, self._paid = Rows(contexts, memory, members), Scaling(contexts), Statistics(arms)

    @property
    def unit(self) -> float:
        """The spread of the payments."""
        return self._paid.moments.spread

    @property
    def estimates(self) -> Doubles:
        """(M,): the mean prediction over the contexts of the last payments."""
        if not self._rows.total:
            return np.full(len(self._paid.counts), np.nan)
        return np.asarray(self.predict(self._rows[self._rows.last(_RECENT)][2]).mean(axis=0))

    def predict(self, contexts: Doubles) -> Doubles:
        """Predictions (R, M), the mean of the members; NaN for arms that were never paid."""
        outputs = self._layers(self._scaling(contexts)).mean(axis=0)
        return np.asarray(self._paid.means + self._paid.moments.spread * outputs)

    def deviations(self, contexts: Doubles) -> Doubles:
        """Standard deviations of the members' predictions (R, M)."""
        return np.asarray(self._paid.moments.spread * self._layers(self._scaling(contexts)).std(axis=0))

    def learn(self, choice: Choice, payments: Doubles, contexts: Doubles) -> None:
        """Takes payments, and makes some steps."""
        self._scaling.add(contexts)
        self._rows.add(choice, payments, contexts, self._generator)
        for arm, payment in zip(choice.arms.tolist(), payments.tolist(), strict=True):
            self._paid.add(arm, payment)
        for _ in range(max(1, len(payments) // _PER_STEP)):
            self._step()

    def _step(self) -> None:
        choice, payments, contexts, repeats = self._rows[self._rows.drawn(_BATCH, self._generator)]
        targets = (payments - self._paid.moments.means[choice.arms]) / max(self._paid.moments.spread, 1e-300)

        def slopes(outputs: Doubles) -> Doubles:
            slope, rows = np.zeros_like(outputs), np.arange(len(targets))
            slope[:, rows, choice.arms] = repeats.T * (outputs[:, rows, choice.arms] - targets) / len(targets)
            return slope

        self._layers.step(self._scaling(contexts), slopes)

    def state_dict(self) -> dict[str, Any]:
        """Weights, rows, running figures and the generator."""
        return {
            "layers": self._layers.state_dict(),
            "rows": self._rows.state_dict(),
            "scaling": self._scaling.state_dict(),
            "paid": self._paid.state_dict(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._layers.load_state_dict(state["layers"])
        self._rows.load_state_dict(state["rows"])
        self._scaling.load_state_dict(state["scaling"])
        self._paid.load_state_dict(state["paid"])
        load_generator_state(self._generator, state["generator"])
