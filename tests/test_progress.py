import pytest

from rldistill.progress import Silent, Talking, clock, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3_600, "1:00:00"), (3_723, "1:02:03"), (float("inf"), "99:59:59")],
)
def test_times_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_without_a_terminal_progress_is_plain_lines_with_rate_figures_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Talking() as progress:
        progress.start("distill", 1_000, "steps", done=200)
        now[0] = 1.0
        progress.update(300, loss=2.0)  # too early for a line
        now[0] = 10.0
        progress.update(400, agreement=0.5)
        progress.start("score", 10, "games")
        now[0] = 15.0
        progress.update(0)  # nothing is done yet that could tell
        now[0] = 30.0
        progress.update(6)
    captured = capsys.readouterr()
    # 200 steps in 10 s; what an earlier process did counts for the way, not for the rate. 600 are left: 30 s.
    assert captured.err.splitlines() == [
        "distill: 400 of 1,000 steps  20 steps/s  loss 2  agreement 0.5  left 0:30",
        "score: 0 of 10 games  0.00 games/s    left unknown",
        "score: 6 of 10 games  0.30 games/s    left 0:13",
    ]
    assert captured.out == ""


def test_what_is_said_stays_on_one_line_and_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    line = "a policy at [bold]:bug:runs/" + "x" * 200
    with Talking() as progress:
        progress.say(line)
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_brackets_in_a_table_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"policy [95 %]": "run[seed=0]:bug:", "mean [bold]": "a[/x]"}])
    out = capsys.readouterr().out
    for text in ("policy [95 %]", "mean [bold]", "run[seed=0]:bug:", "a[/x]"):
        assert text in out


def test_brackets_in_the_bar_are_text_and_no_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "200")
    with Talking() as progress:
        progress.start("play run[seed=0] of a[/x]", 10, "games")
        progress.update(5)
    assert "play run[seed=0] of a[/x]" in capsys.readouterr().err


def test_silent_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent() as progress:
        progress.start("train", 10, "steps")
        progress.update(5, loss=1.0)
        progress.say("a line")
    assert capsys.readouterr() == ("", "")


def test_a_table_in_a_pipe_is_not_cut_to_the_width_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"policy": "runs/" + "long" * 25, "mean": "20.1"}, {"policy": "b", "mean": "-3.0"}])
    out = capsys.readouterr().out
    assert "runs/" + "long" * 25 in out
    assert out.index("20.1") < out.index("-3.0")


def test_a_figure_is_displayed_until_it_is_not_a_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Talking() as progress:
        progress.start("study", 10, "cells")
        for figures in ({"loss": 2.0, "score": 1.0}, {"loss": float("nan")}):
            now[0] += 10.0
            progress.update(1, **figures)
    first, second = capsys.readouterr().err.splitlines()
    assert "loss 2  score 1" in first
    assert "score 1" in second
    assert "loss" not in second
