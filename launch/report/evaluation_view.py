"""An evaluation on the page: figures, the table of classes, the confusion matrix, the most confident mistakes."""

from __future__ import annotations

import base64
import binascii
import math

from launch.report.evaluation import Evaluation, Mistake, confusions
from launch.report.markup import Content, Markup, element
from launch.report.tables import Cell, facts_list, number, sortable, table

MOST_CLASSES = 100  # of a matrix that is drawn; above that, the pairs alone
MOST_NUMBERS = 20  # classes of a matrix whose cells have numbers in them
MOST_PAIRS = 12


def evaluation_section(evaluation: Evaluation) -> list[Content]:
    """All of one split."""
    figures = {
        "accuracy": number(evaluation.accuracy),
        "loss": number(evaluation.loss),
        "top-5 accuracy": number(evaluation.top5_accuracy),
        "calibration error": number(evaluation.calibration_error),
        "samples": f"{evaluation.count:,}",
        "weights": f"{evaluation.weights}, step {evaluation.step:,}",
    }
    return [
        facts_list(figures),
        element(
            "div",
            element("div", element("h3", "Classes"), _classes(evaluation)),
            element("div", element("h3", "Confusion matrix"), _matrix(evaluation), _pairs(evaluation)),
            class_="beside",
        ),
        element("h3", "Most confident mistakes"),
        _mistakes(evaluation),
    ]


def _classes(evaluation: Evaluation) -> Markup:
    rows: list[list[Cell | Content]] = [
        [Cell(line.name), line.count, number(line.precision), number(line.recall), number(line.f1)]
        for line in evaluation.per_class
    ]
    return sortable(["class", "samples", "precision", "recall", "F1"], rows)


def _matrix(evaluation: Evaluation) -> Content:
    """Rows are true classes, columns are predictions; the depth of a colour is the root of the share of its row."""
    names = evaluation.classes
    if len(names) > MOST_CLASSES:
        return element("p", f"There are {len(names)} classes, too many to draw.", class_="note")
    dense = len(names) > MOST_NUMBERS
    corner = element("td", "true ↓  predicted →", class_="corner")
    head = element("tr", corner, [element("th", element("span", name), scope="col") for name in names])
    body = [
        element(
            "tr",
            element("th", names[label], scope="row"),
            [_matrix_cell(label, predicted, count, sum(row)) for predicted, count in enumerate(row)],
        )
        for label, row in enumerate(evaluation.confusion)
    ]
    how = "Colours go by the square root of the share of the true class, so that rare confusions show."
    grid = element("table", element("thead", head), element("tbody", body), class_="confusion" + " dense" * dense)
    return [
        element("div", grid, class_="scroll", tabindex=0, role="region", aria_label="confusion matrix"),
        element("p", how, class_="note matrix-readout", role="status"),
    ]


def _matrix_cell(label: int, predicted: int, count: int, total: int) -> Markup:
    depth = math.sqrt(count / total) if total else 0.0
    kind = "right" if label == predicted else "wrong" if count else None
    return element("td", count, class_=kind, style=f"--depth:{100 * depth:.0f}%" if count else None)


def _pairs(evaluation: Evaluation) -> Content:
    pairs = confusions(evaluation)
    if not pairs:
        return element("p", "Nothing was taken for anything else.", class_="note")
    names = evaluation.classes
    rows = [
        [Cell(names[pair["label"]]), Cell(names[pair["predicted"]]), pair["count"], f"{100 * pair['share']:.1f} %"]
        for pair in pairs[:MOST_PAIRS]
    ]
    headings = ["true class", "taken for", "times", "of the class"]
    return element(
        "details",
        element("summary", f"Most frequent confusions ({len(rows)} of {len(pairs)} pairs)"),
        table(headings, rows),
        open="" if len(names) > MOST_CLASSES else None,
    )


def _mistakes(evaluation: Evaluation) -> Markup:
    if not evaluation.mistakes:
        return element("p", "There are none.", class_="note")
    return element("ol", [_mistake(mistake, evaluation.classes) for mistake in evaluation.mistakes], class_="mistakes")


def _mistake(mistake: Mistake, names: list[str]) -> Markup:
    label, predicted = names[mistake.label], names[mistake.predicted]
    return element(
        "li",
        _picture(mistake.png, f"sample {mistake.index}: {label}, taken for {predicted}"),
        element("b", predicted),
        element("span", f"is {label}"),
        element("span", f"{mistake.probability:.4f}", class_="probability"),
        title=f"sample {mistake.index}",
    )


def _picture(png: str, words: str) -> Markup:
    """The picture, if it is one: what is put into an address is checked to be base64 of a PNG."""
    try:
        is_png = base64.b64decode(png, validate=True).startswith(b"\x89PNG")
    except binascii.Error:
        is_png = False
    source = f"data:image/png;base64,{png}" if is_png else None
    return element("img", src=source, alt=words, width=96, height=96)
