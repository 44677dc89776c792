"""The statistics and tables of studies, against numbers worked out by hand and a second, slow implementation."""

from __future__ import annotations

import csv
import itertools
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from markup import Reader
from rldistill.runs.studies.analysis import Analysis, analyse
from rldistill.runs.studies.outcomes import Outcome, StudyCard
from rldistill.runs.studies.remarks import remarks
from rldistill.runs.studies.rows import game_rows
from rldistill.runs.studies.tables import markdown, write_outputs
from rldistill.stats import Estimate, interquartile_means, performance_profile, probability_of_improvement
from rldistill.types import UserError

SVG = "{http://www.w3.org/2000/svg}"
FIGURES = {"parameters": 1000.0, "bytes": 4000.0}


def outcome(
    setting: str, game: str, seed: int, *returns: float, teacher: Sequence[float] = (), zero: float = 0
) -> Outcome:
    """Of game a, whose teacher scores 10 and random play 0, or of game b, whose teacher scores 20 and random play 10."""
    level = teacher or ((10.0, 10.0) if game == "a" else (20.0, 20.0))
    low = zero if game == "a" else 10.0
    return Outcome(
        setting, game, f"{game}-dqn", seed, returns, tuple(level), low, FIGURES, f"cells/{setting}-{game}-{seed}"
    )


X = [outcome("x", "a", seed, mean, mean) for seed, mean in enumerate([10.0, 5.0, 20.0, 0.0])]
X += [outcome("x", "b", seed, mean, mean) for seed, mean in enumerate([20.0, 15.0, 25.0, 10.0])]
Y = [outcome("y", game, seed, mean) for game, mean in (("a", 10.0), ("b", 15.0)) for seed in range(4)]
CARD = StudyCard("Two settings", "setting", ("x", "y"), reference="y")


def of(analysis: Analysis, label: str) -> tuple[Estimate, Estimate, Estimate]:
    setting = next(setting for setting in analysis.settings if setting.label == label)
    return setting.normalized, setting.ratio, setting.geometric


def note(card: StudyCard, outcomes: Sequence[Outcome]) -> str:
    return "\n".join(remarks(analyse(card, outcomes, resamples=50)))


def test_figures_of_a_setting_worked_out_by_hand() -> None:
    normalized, ratio, geometric = of(analyse(CARD, X + Y), "x")
    # Normalized: 1, .5, 2, 0 and 1, .5, 1.5, 0. Ratios: 1, .5, 2, 0 and 1, .75, 1.25, .5.
    assert normalized.value == pytest.approx((0.5 + 0.5 + 1 + 1) / 4)
    assert ratio.value == pytest.approx((0.5 + 0.75 + 1 + 1) / 4)
    assert geometric.value == pytest.approx(math.sqrt(35 / 40 * 70 / 80))


def test_a_comparison_worked_out_by_hand() -> None:
    compared = analyse(CARD, X + Y).comparisons
    # In a two of four are beaten by nothing or tied: (1/2 + 0 + 1 + 0) / 4; in b (1 + 1/2 + 1 + 0) / 4.
    assert compared["x", "y"].improvement.value == pytest.approx((1.5 / 4 + 2.5 / 4) / 2)
    # Differences: 0, -.5, 1, -1 and .5, 0, 1, -.5.
    assert compared["x", "y"].difference.value == pytest.approx((-0.5 + 0 + 0 + 0.5) / 4)
    assert compared["x", "y"].cells == 8


def test_a_comparison_turned_round_is_its_mirror_image() -> None:
    one, other = analyse(CARD, X + Y[:7]).comparisons.values()
    assert other.improvement == pytest.approx(
        (1 - one.improvement.value, 1 - one.improvement.high, 1 - one.improvement.low)
    )
    assert other.difference == pytest.approx((-one.difference.value, -one.difference.high, -one.difference.low))


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    profile = analyse(CARD, X + Y).settings[0].profile
    assert profile is not None
    scores = np.array([1, 0.5, 2, 0, 1, 0.5, 1.5, 0])
    survival = scipy_stats.ecdf(scores).sf
    assert profile.shares == pytest.approx(survival.evaluate(profile.thresholds + 1e-12))
    assert profile.thresholds[[0, -1]] == pytest.approx([0, 2])
    assert (profile.lows <= profile.shares).all()
    assert (profile.shares <= profile.highs).all()


def test_statistics_of_arrays_agree_with_scipys() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(6, 5, 11))
    assert interquartile_means(scores) == pytest.approx(scipy_stats.trim_mean(scores, 0.25, axis=-1))
    first, second = generator.integers(6, size=(2, 9)) / 1.0, generator.integers(6, size=(2, 7)) / 1.0
    pairs = first[0].size * second[0].size
    shares = [scipy_stats.mannwhitneyu(a, b).statistic / pairs for a, b in zip(first, second, strict=True)]
    assert probability_of_improvement(list(first), list(second)) == pytest.approx(np.mean(shares))
    assert performance_profile(np.array([[0.0, 1.0, 3.0]]), np.array([-1.0, 0.0, 2.0])).tolist() == [[1, 2 / 3, 1 / 3]]


def noisy(setting: str, level: float, seeds: int = 5) -> list[Outcome]:
    generator = np.random.default_rng([ord(letter) for letter in setting])
    outcomes = []
    for game, scale in (("a", 10.0), ("b", 20.0)):
        teacher = tuple(scale + np.random.default_rng(int(scale)).normal(0, 2, 12))
        for seed in range(seeds):
            own = scale * level + generator.normal(0, 1) + generator.normal(0, 3, 12)
            outcomes.append(outcome(setting, game, seed, *own, teacher=teacher))
    return outcomes


def slow_bootstrap(
    settings: Sequence[Sequence[Outcome]], statistic: Callable[[list[list[list[float]]]], float], *, games_too: bool
) -> tuple[float, float]:
    """An interval by loops. The statistic gets normalized scores by setting, group and run."""
    draws, values = random.Random(1), []
    for _ in range(1500):
        teachers: dict[str, float] = {}
        resampled = []
        for outcomes in settings:
            groups = []
            for game in ("a", "b"):
                runs = [one for one in outcomes if one.game == game]
                if game not in teachers:
                    games = runs[0].teacher_returns
                    teachers[game] = sum(draws.choices(games, k=len(games))) / len(games)
                zero = runs[0].random_score
                chosen = draws.choices(runs, k=len(runs))
                played = [draws.choices(run.returns, k=12) if games_too else run.returns for run in chosen]
                means = [sum(own) / 12 for own in played]
                groups.append([(mean - zero) / (teachers[game] - zero) for mean in means])
            resampled.append(groups)
        values.append(statistic(resampled))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.slow
def test_intervals_agree_with_a_second_implementation() -> None:
    first, second = noisy("x", 0.9), noisy("y", 0.8)
    analysis = analyse(CARD, first + second, resamples=4000)

    def iqm(settings: list[list[list[float]]]) -> float:
        return float(scipy_stats.trim_mean(list(itertools.chain(*settings[0])), 0.25))

    def improvement(settings: list[list[list[float]]]) -> float:
        groups = zip(*settings, strict=True)
        return float(np.mean([np.mean([a > b for a in own for b in other]) for own, other in groups]))

    own = analysis.settings[0].normalized
    assert own[1:] == pytest.approx(slow_bootstrap([first], iqm, games_too=True), abs=0.015)
    assert analysis.comparisons["x", "y"].improvement[1:] == pytest.approx(
        slow_bootstrap([first, second], improvement, games_too=False), abs=0.04
    )


def test_games_of_a_single_run_are_resampled() -> None:
    analysis = analyse(replace(CARD, settings=("x",), reference=None), [outcome("x", "a", 0, 0.0, 20.0)])
    # The mean of two games drawn from 0 and 20 is 0, 10 or 20.
    assert of(analysis, "x")[0] == (1, 0, 2)


def test_the_teachers_games_are_resampled() -> None:
    runs = [outcome("x", "a", seed, 10.0, 10.0, teacher=(8.0, 12.0)) for seed in range(3)]
    analysis = analyse(replace(CARD, settings=("x",), reference=None), runs)
    assert of(analysis, "x")[1] == pytest.approx((1, 10 / 12, 10 / 8))
    assert of(analysis, "x")[2] == pytest.approx((1, 10 / 12, 10 / 8))


def test_runs_of_unequal_numbers_of_games_count_alike() -> None:
    analysis = analyse(
        replace(CARD, settings=("x",), reference=None), [outcome("x", "a", 0, 5.0), outcome("x", "a", 1, 6, 8, 10)]
    )
    normalized = of(analysis, "x")[0]
    assert normalized.value == pytest.approx((0.5 + 0.8) / 2)
    assert 0.5 <= normalized.low < 0.6
    assert 0.8 < normalized.high <= 1


def test_settings_with_the_same_seeds_are_compared_in_pairs() -> None:
    """A seed that is good for both says nothing about their difference."""
    first = [outcome("x", "a", seed, 2.0 * seed + 1, 2.0 * seed + 1) for seed in range(8)]
    second = [outcome("y", "a", seed, 2.0 * seed, 2.0 * seed) for seed in range(8)]
    assert analyse(CARD, first + second).comparisons["x", "y"].difference == pytest.approx((0.1, 0.1, 0.1))


def test_a_seed_that_is_good_for_both_leaves_the_improvement_uncertain() -> None:
    """Runs of the two settings are drawn independently, as Agarwal et al. draw them."""
    first = [outcome("x", "a", seed, 2.0 * seed + 1, 2.0 * seed + 1) for seed in range(2)]
    second = [outcome("y", "a", seed, 2.0 * seed, 2.0 * seed) for seed in range(2)]
    # 1 and 3 against 0 and 2. One in 16 resamples is 1, 1 against 2, 2.
    assert analyse(CARD, first + second).comparisons["x", "y"].improvement == (0.75, 0, 1)


def test_settings_are_compared_on_the_cells_that_both_have() -> None:
    compared = analyse(CARD, X[:6] + Y[2:]).comparisons["x", "y"]
    # Both have a of seeds 2 and 3, b of seeds 0 and 1.
    assert compared.cells == 4
    assert compared.improvement.value == pytest.approx(((1 + 0) / 2 + (1 + 0.5) / 2) / 2)
    text = note(replace(CARD, planned={"x": 8, "y": 8}), X[:6] + Y[2:])
    assert "x has 6 of 8, y has 6 of 8" in text
    assert "4 cells are finished in all of them" in text


def test_settings_without_a_common_cell_are_not_compared() -> None:
    compared = analyse(CARD, X[:2] + Y[2:]).comparisons["x", "y"]
    assert compared.cells == 0
    assert all(map(math.isnan, (*compared.improvement, *compared.difference)))


def test_the_same_outcomes_in_another_order_give_the_same_files(tmp_path: Path) -> None:
    outcomes = X + Y + noisy("z", 0.7)
    card = replace(CARD, settings=("x", "y", "z"), published={"x": 1.1}, published_source="a paper")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_outputs(tmp_path / name, card, outcomes)
        random.Random(3).shuffle(outcomes)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    assert {"table.md", "table.csv", "runs.csv"} <= set(files)


def test_a_setting_keeps_its_figures_when_another_is_added() -> None:
    alone = analyse(CARD, X + Y)
    more = analyse(replace(CARD, settings=("z", "x", "y")), noisy("z", 0.7) + X + Y)
    assert of(alone, "x") == of(more, "x")
    assert alone.comparisons["x", "y"] == more.comparisons["x", "y"]


def test_runs_csv_has_all_that_the_figures_come_from(tmp_path: Path) -> None:
    write_outputs(tmp_path, CARD, X + Y)
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert len(rows) == 16
    games = [[float(value) for value in row["returns"].split()] for row in rows if row["setting"] == "x"]
    assert [np.mean(own) for own in games] == [10, 5, 20, 0, 20, 15, 25, 10]
    normalized = [float(row["normalized"]) for row in rows if row["setting"] == "x"]
    table = next(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(table["iqm_normalized"]) == pytest.approx(scipy_stats.trim_mean(normalized, 0.25))


def test_a_teacher_below_0_has_no_ratio_but_a_normalized_score() -> None:
    weak = [replace(one, teacher_returns=(-5.0, -5.0), random_score=-20.0) for one in X if one.game == "a"]
    outcomes = [one for one in X if one.game == "b"] + weak
    card = replace(CARD, settings=("x",), reference=None)
    normalized, ratio, geometric = of(analyse(card, outcomes), "x")
    assert ratio.value == pytest.approx((0.75 + 1) / 2)  # of b alone
    assert geometric.value == pytest.approx(70 / 80)
    # (score + 20) / 15 in a: 2, 5/3, 8/3, 4/3.
    assert normalized.value == pytest.approx(scipy_stats.trim_mean([1, 0.5, 1.5, 0, 2, 5 / 3, 8 / 3, 4 / 3], 0.25))
    assert "a (a-dqn)" in note(card, outcomes)
    assert "b (b-dqn)" not in note(card, outcomes)


def test_a_student_at_or_below_0_makes_the_geometric_mean_0_and_is_named() -> None:
    outcomes = [replace(one, returns=(-3.0, 1.0)) if one.game == "a" else one for one in X]
    card = replace(CARD, settings=("x",), reference=None)
    assert of(analyse(card, outcomes), "x")[2].value == 0
    assert "a (a-dqn) at -1.0" in note(card, outcomes)


def test_a_teacher_no_better_than_random_play_counts_nowhere() -> None:
    outcomes = [replace(one, random_score=30.0) if one.game == "b" else one for one in X + Y]
    analysis = analyse(CARD, outcomes)
    assert of(analysis, "x")[0].value == pytest.approx((0.5 + 1) / 2)
    assert analysis.comparisons["x", "y"].cells == 4
    assert "b (b-dqn)" in note(CARD, outcomes)
    every = [replace(one, random_score=30.0, teacher_returns=(-1.0,)) for one in outcomes]
    assert all(map(math.isnan, itertools.chain(*of(analyse(CARD, every), "x"))))
    assert "- |" in markdown(analyse(CARD, every))


def test_settings_with_other_games_have_rows_of_their_own() -> None:
    """No mean of a teacher is over the games of two settings."""
    runs = [outcome("x", "a", 0, 5.0), outcome("y", "a", 0, 21.0, teacher=(40.0, 44.0), zero=30.0)]
    own, other = game_rows(analyse(CARD, runs, resamples=50))
    assert (own["random play"], own["teacher's mean"], own["x"], own["y"]) == ("0.0", "10.0", "5.0", "-")
    assert (other["random play"], other["teacher's mean"], other["x"], other["y"]) == ("30.0", "42.0", "-", "21.0")


def test_of_games_that_count_nowhere_the_setting_is_named_whose_they_are() -> None:
    runs = [outcome("x", "a", 0, 5.0), outcome("y", "a", 0, 21.0, teacher=(40.0, 44.0), zero=60.0)]
    assert "at 42.0 the teacher is not above random play (60.0) in the games of y" in note(CARD, runs)


def test_a_teacher_whose_resampled_games_may_be_at_random_play_leaves_no_interval() -> None:
    outcomes = [replace(one, teacher_returns=(-5.0, 25.0)) if one.game == "a" else one for one in X + Y]
    normalized = of(analyse(CARD, outcomes), "x")[0]
    assert math.isfinite(normalized.value)
    assert math.isnan(normalized.low)
    assert "normalized score of x" in note(CARD, outcomes)


def test_one_seed_and_few_seeds_are_named() -> None:
    one_seed = [one for one in X + Y if one.seed == 0]
    assert "one seed" in note(CARD, one_seed)
    assert "one seed" not in note(CARD, X + Y)
    assert "2 or 4 seeds" in note(CARD, [*X, *(one for one in Y if one.seed < 2)])
    assert "narrow" not in note(CARD, noisy("x", 1))
    assert "narrow" not in note(CARD, one_seed)
    mixed = [one for one in X if one.seed == 0] + Y
    assert "one seed for each game and teacher (x)" in note(CARD, mixed)


def test_one_game_of_one_seed_has_no_interval() -> None:
    analysis = analyse(CARD, [outcome("x", "a", 0, 9.0), outcome("y", "a", 0, 8.0)])
    assert all(math.isnan(bound) for estimate in of(analysis, "x") for bound in estimate[1:])
    assert math.isnan(analysis.comparisons["x", "y"].improvement.low)


def test_runs_without_a_teacher_are_compared_with_the_reference_setting(tmp_path: Path) -> None:
    outcomes = [replace(one, teacher="", teacher_returns=(10.0, 10.0)) for one in X[:4] + Y[:4]]
    write_outputs(tmp_path, CARD, outcomes)
    text = (tmp_path / "table.md").read_text()
    assert "| a | - | 0.0 | 10.0 | 8.8 | 10.0 |" in text
    assert "the mean of y" in text
    assert "1 is the mean of y" in (tmp_path / "plot.svg").read_text()


def test_a_cell_that_is_given_twice_counts_once() -> None:
    twice, once = analyse(CARD, X + X + Y), analyse(CARD, X + Y)
    assert of(twice, "x") == of(once, "x")
    assert len(twice.outcomes) == 16


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([*X, replace(X[0], run="cells/other")], ["cells/x-a-0", "cells/other"]),
        ([replace(X[0], setting="w")], ["'w'", "cells/x-a-0"]),
        ([replace(X[0], returns=())], ["cells/x-a-0"]),
        ([replace(X[0], teacher_returns=(1.0, math.nan))], ["cells/x-a-0", "teacher"]),
        ([replace(X[0], random_score=math.inf)], ["cells/x-a-0", "random"]),
    ],
)
def test_outcomes_that_contradict_each_other_are_refused(outcomes: list[Outcome], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        analyse(CARD, outcomes)
    assert all(word in str(error.value) for word in words)


def test_a_reference_that_is_no_setting_is_refused() -> None:
    with pytest.raises(UserError, match="'z'.*x, y"):
        analyse(replace(CARD, reference="z"), X)


def test_a_study_without_a_finished_cell_has_its_files(tmp_path: Path) -> None:
    write_outputs(tmp_path, replace(CARD, planned={"x": 8, "y": 8}), [])
    assert "0 of 8" in (tmp_path / "table.md").read_text()
    assert [row["cells"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["0", "0"]


def test_labels_with_the_characters_of_a_table_stay_labels() -> None:
    card = replace(CARD, settings=("x", "y|1"), reference=None)
    lines = markdown(analyse(card, X, resamples=50)).splitlines()
    assert any(line.startswith("| y\\|1 |") for line in lines)


def test_settings_with_the_names_of_columns_replace_none() -> None:
    names = {"x": "teacher", "y": "game"}
    card = StudyCard("Names", "parameters", ("teacher", "game"), reference="game")
    text = markdown(analyse(card, [replace(one, setting=names[one.setting]) for one in X + Y], resamples=50))
    assert "| parameters | cells |" in text
    assert "| parameters (of the runs) |" in text
    assert "| teacher | 8 |" in text
    assert "| game | teacher | random play | teacher's mean | teacher (setting) | game (setting) |" in text
    assert "| a | a-dqn | 0.0 | 10.0 | 8.8 | 10.0 |" in text


def page_of(folder: Path, card: StudyCard, outcomes: Sequence[Outcome]) -> tuple[str, Reader]:
    write_outputs(folder, card, outcomes)
    page = (folder / "index.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    return page, reader


def test_the_page_links_each_run_and_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / X[0].run).mkdir(parents=True)
    (tmp_path / X[0].run / "report.html").touch()
    odd = replace(X[1], run="cells/a#b <i>")
    page, reader = page_of(tmp_path, CARD, [X[0], odd, *Y])
    links = [address for address in reader.addresses if not address.startswith("#")]
    assert links[:2] == ["cells/x-a-0/report.html", "cells/a%23b%20%3Ci%3E/"]
    assert len(links) == 2 + len(Y)
    assert not [address for address in links if ":" in address]
    assert "{{" not in page
    assert page.count("<svg") == 1


def test_the_page_escapes_what_a_study_is_called(tmp_path: Path) -> None:
    outcomes = [replace(one, setting="<b>x</b>", game="<b>game</b>", teacher="<b>teacher</b>") for one in X[:4]]
    card = StudyCard("<b>title</b>", "<b>axis</b>", ("<b>x</b>", "y"), conditions="<b>conditions</b>")
    page, _ = page_of(tmp_path, card, outcomes)
    assert "<b>" not in page
    assert "&lt;b&gt;title" in page


def test_probabilities_of_improvement_have_the_colour_of_the_better_setting(tmp_path: Path) -> None:
    page, _ = page_of(
        tmp_path, replace(CARD, reference=None), [outcome("x", "a", 0, 9.0, 9.0), outcome("y", "a", 0, 3.0, 3.0)]
    )
    colours = re.findall(r"<td style=\"background: color-mix\(in srgb, var\((--\w+)\)[^>]*>([\d.]+)", page)
    assert colours == [("--student", "1.000"), ("--teacher", "0.000")]


@pytest.mark.slow
def test_the_plot_and_the_tables_show_published_figures(tmp_path: Path) -> None:
    card = replace(CARD, published={"x": 1.113}, published_source="Rusu et al. 2015")
    page, _ = page_of(tmp_path, card, X + Y)
    plot = (tmp_path / "plot.svg").read_text()
    assert "published geometric mean" in plot
    assert "1.113" in page
    assert "1.113" in (tmp_path / "table.md").read_text()
    write_outputs(tmp_path, replace(card, published_measure="best return on Pong"), X + Y)
    assert "published" not in (tmp_path / "plot.svg").read_text()


def test_settings_that_are_numbers_lie_on_an_axis(tmp_path: Path) -> None:
    labels = ("raw", "0.01", "1")
    outcomes = [replace(one, setting=label) for label in labels for one in X]
    write_outputs(tmp_path, StudyCard("Numbers", "temperature", labels), outcomes)
    texts = [element.text for element in ElementTree.parse(tmp_path / "plot.svg").iter(f"{SVG}text")]
    assert {"temperature", "raw", "0.01"} <= set(texts)


def test_settings_lie_where_a_figure_of_their_runs_says(tmp_path: Path) -> None:
    outcomes = [replace(one, figures={"parameters": 100.0}) for one in X]
    outcomes += [replace(one, figures={"parameters": 100_000.0}) for one in Y]
    write_outputs(tmp_path, replace(CARD, axis="parameters"), outcomes)
    texts = [element.text for element in ElementTree.parse(tmp_path / "plot.svg").iter(f"{SVG}text")]
    assert {"parameters", "100", "100,000"} <= set(texts)


def test_a_study_of_many_settings_and_one_without_an_outcome_have_a_page(tmp_path: Path) -> None:
    page_of(tmp_path, CARD, [])
    labels = tuple(f"setting {number}" for number in range(16))
    page_of(tmp_path, StudyCard("Many", "setting", labels), [replace(X[0], setting=label) for label in labels])
