"""A check as what continuous integration reads: JUnit XML and GitHub annotations."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from mmbench.check.checking import REGRESSIONS, Check, Finding
from mmbench.check.measuring import Problem

NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def junit(check: Check, suite: str) -> str:
    """Return JUnit XML: a test case for each value, a failure for a regression, an error for what
    cannot be told, and a case ``runs`` for each row with a missing run."""
    broken: dict[str, list[Problem]] = {}
    for problem in check.problems:
        broken.setdefault(problem.row, []).append(problem)
    root = ElementTree.Element(
        "testsuite",
        name=_clean(suite),
        tests=str(len(check.findings) + len(broken)),
        failures=str(len(check.regressions)),
        errors=str(len(check.untold) + len(broken)),
    )
    for finding in check.findings:
        case = _case(root, suite, finding.row, finding.quantity.name)
        if finding.verdict in REGRESSIONS:
            _outcome(case, "failure", finding.sentence, "regression")
        elif finding.verdict == "cannot tell":
            _outcome(case, "error", finding.sentence, "cannot tell")
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(finding.sentence)
    for row, problems in broken.items():
        case = _case(root, suite, row, "runs")
        _outcome(case, "error", "; ".join(p.what for p in problems), "cannot tell")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(root: ElementTree.Element, suite: str, row: str, name: str) -> ElementTree.Element:
    attributes = {"classname": f"{suite}.{row}", "name": name}
    cleaned = {key: _clean(value) for key, value in attributes.items()}
    return ElementTree.SubElement(root, "testcase", cleaned)


def _outcome(case: ElementTree.Element, tag: str, message: str, kind: str) -> None:
    ElementTree.SubElement(case, tag, message=_clean(message), type=kind)


def _clean(text: str) -> str:
    return NOT_IN_XML.sub("?", text)


def github(check: Check, file: Path) -> list[str]:
    """Return workflow commands, one a line: an error for each regression, a warning for what
    cannot be told, a notice for what is better."""
    lines = [_command("error", file, "regression", f.sentence) for f in check.regressions]
    reasons = [f"{problem.row}: {problem.what}" for problem in check.problems]
    reasons += [finding.sentence for finding in check.untold if finding.seeds]
    lines += [_command("warning", file, "cannot tell", reason) for reason in reasons]
    return lines + [_command("notice", file, "better", _better(f)) for f in check.improvements]


def _better(finding: Finding) -> str:
    return f"{finding.sentence}; --update makes it the baseline"


def _command(kind: str, file: Path, title: str, message: str) -> str:
    place = f"file={_property(file.as_posix())},title={_property(f'mmbench check: {title}')}"
    return f"::{kind} {place}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
