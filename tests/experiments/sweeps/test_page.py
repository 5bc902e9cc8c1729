"""The report of a made-up sweep, and what differs between runs, as commands make them."""

import itertools
import re

import pytest

from experiments.sweeps.figures import FIGURES
from experiments.sweeps.looks import PlainTicks, log_ticks, looks, pyplot, style
from experiments.sweeps.page import diff, write_report
from experiments.sweeps.rows import by_label
from tests.experiments.runs import run
from tests.experiments.sweeps.made_up import row, write_run, write_sweep


def members() -> list:
    return [
        row(f"batch_size={batch},devices={n}", devices=n, batch=batch, rate=90.0 * n,
            loss=3.0 + batch / 100, curve=[(10, 5.0), (20, 4.0), (30, 3.0 + batch / 100)],
            sent_bytes=100.0 * n, peak_bytes=1e6)
        for batch in (8, 16) for n in (1, 2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("made_up") / "sweep", members())


def test_a_report_is_one_offline_file_with_all_tables_and_pictures(folder):
    page = write_report(folder)
    html, text = (page.with_suffix(x).read_text("utf-8") for x in (".html", ".md"))
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|url\(|https?:""", html)
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert html.count("data:image/png") == len(pictures) == 5
    for member in members():
        assert text.count(f"| {member.name} |") >= 2  # a verdict and a line of results
    for line in text.splitlines():
        if line.startswith("| batch_size=8,devices=2 | batch_size=8,devices=1 |"):
            assert "2.00 times" in line and "180 tokens/s" in line
            break
    else:
        raise AssertionError("the run is not compared with its baseline")
    assert "<b>3.080</b>" in html and "**3.080**" in text  # the lowest loss is marked


def test_what_is_in_a_name_cannot_break_the_page(tmp_path):
    name = "a=<b>|é"
    page = write_report(write_sweep(tmp_path / "sweep", [row(name), row("b")]))
    html, text = (page.with_suffix(x).read_text("utf-8") for x in (".html", ".md"))
    assert "a=<b>" not in html and "a=&lt;b&gt;|é" in html
    assert r"a=<b>\|é |" in text


def test_a_report_of_runs_that_diverged_or_only_counted(tmp_path):
    counted = row("counted", loss=2.0, curve=[(10, 2.0)])
    for record in counted.records:
        if record["split"] == "train":
            record["loss"] = None
    lost = {"val_loss": None, "val_perplexity": None, "shifted_loss": None}
    lost |= {"loss_interval": [None, None]}
    diverged = row("diverged", batch=16, **lost)
    page = write_report(write_sweep(tmp_path / "sweep", [diverged, counted]))
    text = page.with_suffix(".md").read_text("utf-8")
    (line,) = [x for x in text.splitlines() if x.startswith("| diverged | 16 |")]
    assert "not finite" in line
    assert "counted has the lowest, 2.000" in text


def test_plot_draws_a_run_and_refuses_what_is_no_picture(tmp_path):
    curve = [(10, 5.0), (20, 4.0)]
    workdir = write_run(tmp_path / "run", row(curve=curve))
    run("plot", f"--workdir={workdir}", f"--out={tmp_path}/loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    for out in ("loss.xyz", "nowhere/loss.png"):
        flags = f"--workdir={workdir}", f"--out={tmp_path}/{out}"
        result = run("plot", *flags, check=False)
        assert result.returncode == 2 and f"--out={tmp_path}/{out}" in result.stderr


def test_diff_of_a_sweep_and_of_workdirs(folder, tmp_path):
    said = diff([folder])
    head = said.splitlines()[0]
    assert "batch_size" in head and "devices" in head and "steps" not in head
    one = write_run(tmp_path / "one", row(batch=8, loss=3.5))
    two = write_run(tmp_path / "two", row(batch=4, loss=3.0))
    result = run("report", "--diff", one, two)
    first, _, *lines = result.stdout.splitlines()
    assert [cell.strip() for cell in first.split("|")[1:4]] == ["run", "batch_size", "loss"]
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[:2]]
    assert cells == [[str(one), "8", "3.500"], [str(two), "4", "**3.000**"]]
    mixed = diff([folder, two])
    assert f"{folder}/batch_size=8,devices=1" in mixed and str(two) in mixed
    assert not (two / "report.html").exists()


def test_what_is_no_run_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds neither"):
        diff([folder, tmp_path])
    result = run("report", folder, folder, check=False)
    assert result.returncode == 2 and "2 folders" in result.stderr


def test_colours_and_markers_do_not_repeat_before_56():
    assert len({tuple(style(i).values()) for i in range(56)}) == 56


def shape(how: dict) -> tuple:
    return how["color"], how["marker"], str(how["ls"])


@pytest.mark.parametrize(
    "batches, degrees, seeds", [(1, 4, 1), (3, 4, 1), (1, 1, 3), (1, 3, 4), (40, 1, 1)]
)
def test_lines_of_one_picture_can_be_told_apart(batches, degrees, seeds):
    rows = [
        row(f"size={b},devices={n},seed={s}", devices=n, batch=b, config={"seed": s})
        for b, n, s in itertools.product(
            range(batches), range(1, degrees + 1), range(seeds)
        )
    ]
    hows, handles = looks(rows, rows)
    assert len({shape(how) for how in hows}) == len(rows)
    names = [handle.get_label() for handle in handles]
    assert len(set(names)) == len(names)
    assert ("2 devices" in names) == (degrees > 1) and ("seed 1" in names) == (seeds > 1)
    # A run looks the same in a picture that shows fewer.
    assert looks(rows, rows[-1:])[0] == hows[-1:]


def test_runs_that_only_differ_in_their_processes_have_labels_of_their_own():
    rows = [row(f"processes={p},devices=2", devices=2) for p in (1, 2)]
    assert len(by_label(rows)) == 2


def test_ticks_are_plain_and_differ():
    ticks = PlainTicks()
    assert ticks.format_ticks([0, 500, 1000, 1500]) == ["0", "0.5 k", "1 k", "1.5 k"]
    assert ticks.format_ticks([1093, 1093.5, 1094]) == ["1.093 k", "1.0935 k", "1.094 k"]
    assert ticks.format_ticks([3.4, 3.5]) == ["3.4", "3.5"]
    assert ticks.format_ticks([2e6, 3e6]) == ["2 M", "3 M"]


@pytest.mark.parametrize("values", [[1093, 1094], [1, 1e9], [1e-20, 5.0], [7, 7]])
def test_a_logarithmic_axis_has_two_plain_labels_at_least(values):
    figure, axes = pyplot.subplots()
    axes.plot([0, 1], values)
    log_ticks(axes.yaxis, values)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    assert low < min(values) and high > max(values)
    seen = [
        label.get_text()
        for at, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if low <= at <= high and label.get_text()
    ]
    assert len(set(seen)) == len(seen) >= 2 and not any("$" in text for text in seen)
    pyplot.close(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_a_picture_of_runs_of_all_kinds(name):
    _, draw = FIGURES[name]
    rows = members()
    for each in rows:
        each.records[0] |= {"noise_scale": 50.0}
        each.records[1] |= {"noise_scale": 60.0}
    assert draw(rows).startswith(b"\x89PNG")
