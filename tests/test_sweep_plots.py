"""The plots of sweeps: what their frames hold, what they mark, what they leave out."""
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_summarize import ARMS, LEVEL, LRS, Written, known

from common import plot_style
from experiments import plots


@pytest.fixture
def drawn(monkeypatch):
    """A function that draws a plot and returns (matplotlib's figure, its caption)."""
    def finish(figure, name, title, caption, legend_of=None, marks=()):
        for axis, above in marks:
            plot_style.mark_above(axis, above)
        return figure, caption
    monkeypatch.setattr(plots, "finish", finish)
    yield lambda plot, summary: plot(summary)
    plt.close("all")


def test_arms_share_neither_colour_and_dashes_nor_colour_and_marker():
    styles = [plot_style.style(place) for place in range(32)]
    for second in ("linestyle", "marker"):
        assert len({(s["color"], s[second]) for s in styles}) == 32
    assert max([s["color"] for s in styles[:15]].count(s["color"]) for s in styles) == 2


def test_one_arm_far_above_does_not_flatten_the_others(tmp_path, drawn):
    def loss(arm, lr, seed):
        return known(arm, lr, seed) + (5 if (arm, lr) == ("flat", 1e-2) or arm == "gate" else 0)
    arms = {**ARMS, "learned": "mixed", "frozen": "mixed"}
    LEVEL.update(learned=1.82, frozen=1.81)
    found, _ = Written(tmp_path / "s", arms, loss).summary()
    figure, caption = drawn(plots.lr_plot, found)
    low, high = figure.axes[0].get_ylim()
    assert low < 1.85 and 2.2 < high < 3 and "Arrows above the frame" in caption
    above = [text.get_text() for text in figure.axes[0].texts]
    assert len(above) == 4 and f"\u2191 {known('flat', 1e-2, 1) + 5:.2f}" in above
    figure, caption = drawn(plots.loss_plot, found)
    assert figure.axes[0].get_ylim()[1] < 7 and "far above the rest" in caption
    gate = np.mean([known("gate", 3e-3, s) for s in (2, 3, 4)]) + 5
    for axis in figure.axes:  # the one arm, by its highest loss after the first tenth: at step 10 of 40
        assert [text.get_text() for text in axis.texts] == [f"\u2191 {gate + 3:.2f}"]
    figure, caption = drawn(plots.differences_plot, found)
    assert figure.axes[0].get_xlim()[1] < 1 and "goes on beyond the frame" in caption
    arrows = [line for line in figure.axes[0].lines if line.get_marker() == ">"]
    assert len(arrows) == 1 and arrows[0].get_xdata()[0] == figure.axes[0].get_xlim()[1]
    found, _ = Written(tmp_path / "t", ARMS, known).summary()  # and nothing is cut off where there is nothing
    figure, caption = drawn(plots.lr_plot, found)
    assert figure.axes[0].get_ylim()[1] > known("baseline", 1e-2, 1) and "above" not in caption and not figure.axes[0].texts
    assert "far above" not in drawn(plots.loss_plot, found)[1]
    assert "beyond" not in drawn(plots.differences_plot, found)[1]


@pytest.mark.parametrize("low, high", [(1.1, 1.6), (0.3, 0.45), (0.3, 5), (0.8, 9.5), (0.02, 3), (0.001, 500)])
def test_gradient_norms_have_ticks_to_read(low, high, tmp_path, drawn):
    written = Written(tmp_path / "s", {"baseline": "baseline"}, known, lrs=[3e-3], seeds=[1])
    file = written.folder / f"runs/baseline-{3e-3}-1" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    steps = [line for line in lines if "grad_norm" in line]
    for line, norm in zip(steps, np.geomspace(low, high, len(steps))):
        line["grad_norm"] = norm
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure, _ = drawn(plots.stability_plot, written.summary()[0])
    figure.canvas.draw()
    axis = figure.axes[0]
    bottom, top = axis.get_ylim()
    seen = [t.get_text() for v, t in zip(axis.get_yticks(), axis.get_yticklabels()) if bottom <= v <= top]
    assert 3 <= len(seen) <= 9 and [float(text) for text in seen] == sorted({float(text) for text in seen})


def test_the_band_of_a_share_stays_a_share(tmp_path, drawn):
    written = Written(tmp_path / "s", {"mixed": "mixed"}, known, lrs=[3e-3], seeds=[1, 2, 3])
    for seed, share in ((1, 0.0), (2, 0.5), (3, 1.0)):
        file = written.folder / f"runs/mixed-{3e-3}-{seed}" / "metrics.jsonl"
        file.write_text(file.read_text().replace('edge_share": 0.1', f'edge_share": {share}'))
    figure, _ = drawn(plots.stability_plot, written.summary()[0])
    band, = figure.axes[-1].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == figure.axes[-1].get_ylim() == (0, 1)
    file.write_text(file.read_text().replace('edge_share": 1.0', 'edge_share": 0.0'))  # 0, 0.5, 0: still of 0 to 1
    assert drawn(plots.stability_plot, written.summary()[0])[0].axes[-1].get_ylim() == (0, 1)


def wide(arm, lr, seed):
    """Two seeds that differ by 0.2 have an interval of 1.27 to either side; so have, about, three of which one is off."""
    return known(arm, lr, 0) + (0.2 if seed == 2 else 0.0) + (0.7 if seed == 5 else 0.0)


def test_intervals_neither_set_the_frame_nor_are_drawn_for_two_seeds(tmp_path, drawn):
    found, _ = Written(tmp_path / "two", ARMS, wide, lrs=[3e-3], seeds=[1, 2]).summary()
    figure, caption = drawn(plots.loss_plot, found)
    for axis in figure.axes:
        assert not axis.collections and len(axis.lines) == 3 * len(ARMS)  # mean, and each seed thin
    assert "Thin: the curves of two seeds" in caption and "Bands" not in caption
    means = figure.axes[0].get_ylim()
    found, _ = Written(tmp_path / "one", ARMS, lambda a, lr, s: wide(a, lr, s) + 0.1, lrs=[3e-3], seeds=[1]).summary()
    figure, caption = drawn(plots.loss_plot, found)
    assert figure.axes[0].get_ylim() == pytest.approx(means) and len(figure.axes[0].lines) == len(ARMS)
    assert "Thin" not in caption

    found, _ = Written(tmp_path / "three", ARMS, wide, lrs=[3e-3], seeds=[1, 3, 5]).summary()
    figure, caption = drawn(plots.loss_plot, found)
    low, high = figure.axes[0].get_ylim()
    band = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in figure.axes[0].collections])
    ends = [line.get_ydata()[-1] for line in figure.axes[0].lines]
    assert len(figure.axes[0].collections) == len(ARMS) and "Bands" in caption and band.min() < low < min(ends) < max(ends) < high


def test_no_curve_of_the_comparison_is_cut_off(tmp_path, drawn):
    """After the first tenth all of every curve is inside, also that of an arm which is a good deal worse."""
    found, _ = Written(tmp_path / "s", ARMS, lambda a, lr, s: known(a, lr, s) + (a == "baseline"), lrs=[3e-3]).summary()
    figure, caption = drawn(plots.loss_plot, found)
    low, high = figure.axes[0].get_ylim()
    for line in figure.axes[0].lines:
        late = line.get_ydata()[line.get_xdata() >= 400]
        assert len(late) == 4 and low < late.min() and late.max() < high
    assert "arrows" not in caption


def test_the_interval_of_two_seeds_does_not_set_the_frame_of_differences(tmp_path, drawn):
    def loss(arm, lr, seed):
        return known(arm, lr, 0) + (0.002 * seed if arm == "flat" else 0.2 * seed if arm == "gate" else 0.0)
    found, arms = Written(tmp_path / "s", ARMS, loss, lrs=[3e-3], seeds=[1, 2]).summary()
    interval = arms["gate"].against["baseline"][0].estimate
    assert interval.low < -1 and interval.high > 1
    figure, caption = drawn(plots.differences_plot, found)
    low, high = figure.axes[0].get_xlim()
    for name in ("flat", "gate", "mixed"):
        assert all(low < d < high for d in arms[name].against["baseline"][0].differences)
    assert low > -0.6 and high < 0.9 and "12.7 standard errors" in caption
    assert {line.get_marker() for line in figure.axes[0].lines} >= {"<", ">"}


def test_a_plot_of_learning_rates_needs_two_of_them(tmp_path, drawn):
    assert plots.lr_plot(Written(tmp_path / "a", ARMS, known, lrs=[3e-3]).summary()[0]) is None
    two, _ = Written(tmp_path / "b", ARMS, known, lrs=LRS[:2]).summary()
    figure, _ = drawn(plots.lr_plot, two)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0.001", "0.003"]


def test_diverged_seeds_are_marked_above_the_plot_of_rates(tmp_path, drawn):
    def loss(arm, lr, seed):
        return "diverged" if arm in ("gate", "mixed") and lr == 1e-2 and seed > 2 else known(arm, lr, seed)
    figure, caption = drawn(plots.lr_plot, Written(tmp_path / "s", ARMS, loss).summary()[0])
    assert [text.get_text() for text in figure.axes[0].texts] == ["\u00d7 2 of 4"] * 2
    assert "seeds diverged at that rate" in caption


def test_many_arms_are_two_panels_of_rates(tmp_path, drawn):
    arms = {**ARMS, **{f"m{i}": "mixed" for i in range(6)}}
    LEVEL.update({f"m{i}": 1.7 + 0.02 * i for i in range(6)})
    figure, _ = drawn(plots.lr_plot, Written(tmp_path / "s", arms, known).summary()[0])
    left, right = figure.axes
    assert left.get_ylim() == right.get_ylim() and left.get_xlim() == right.get_xlim()
    names = [axis.get_legend_handles_labels()[1] for axis in figure.axes]
    assert names == [["baseline", "flat", "gate"], ["mixed", *(f"m{i}" for i in range(6))]]


def test_equal_differences_are_hollow_in_the_plot(tmp_path, drawn):
    found, _ = Written(tmp_path / "s", {"baseline": "baseline", "flat": "flat"},
                       lambda a, lr, s: 2.0 + s / 4 - (a == "flat") / 2).summary()
    figure, caption = drawn(plots.differences_plot, found)
    lines = [line for line in figure.axes[0].lines if line.get_marker() not in ("|", "None") and len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() for line in lines] == ["white"] and "differ by the same" in caption
    assert not [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
