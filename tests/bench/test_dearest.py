"""Claims about the list of dear tests: cases count together, and each has the claim that its source makes."""

from pathlib import Path

from bench.dearest import table


def test_cases_are_added_up_and_told_by_their_names_and_docstrings(tmp_path: Path) -> None:
    case = '<testcase classname="tests.bench.test_{}" name="{}" time="{}"/>'
    cases = [
        case.format("dearest", "test_cases_are_added_up_and_told_by_their_names_and_docstrings[a]", 2),
        case.format("dearest", "test_cases_are_added_up_and_told_by_their_names_and_docstrings[b]", 1.5),
        case.format("gpu", "test_the_parts_come_in_order_and_fit_into_eight_minutes", 0.5),
    ]
    file = tmp_path / "junit.xml"
    file.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    first, _, *rows = table(file, 1).splitlines()
    assert first == "3 tests, 4 s in all; these 1 are 88% of that."
    told = "cases are added up and told by their names and docstrings"
    assert rows[2:] == [f"| 3.5 | 2 | bench.test_dearest | {told} |"]
