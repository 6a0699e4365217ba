"""`python tests/check_skips.py RESULTS.xml ...`: print what was skipped, and fail for a skip nobody allowed.

In: pytest's JUnit files, and tests/allowed_skips.txt, where each line is `glob of test ids | glob of what pytest
says | why`. The last line printed is the sum of all files, in pytest's words.
"""

import sys
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree

ALLOWED = Path(__file__).with_name("allowed_skips.txt")


def allowed_skips(text: str) -> list[tuple[str, str, str]]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [tuple(part.strip() for part in line.split("|", 2)) for line in lines if line]


def skipped(root: ElementTree.Element) -> list[tuple[str, str]]:
    """Test id and reason of each skipped test."""
    cases = ((case, case.find("skipped")) for case in root.iter("testcase"))
    return [
        (f"{case.get('classname')}::{case.get('name')}", skip.get("message", ""))
        for case, skip in cases
        if skip is not None
    ]


def totals(roots: list[ElementTree.Element]) -> dict[str, int]:
    suites = [suite for root in roots for suite in root.iter("testsuite")]
    tests, failures, errors, skips = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    return {"passed": tests - failures - errors - skips, "failed": failures + errors, "skipped": skips}


def main(paths: list[str]) -> int:
    written = [path for path in paths if Path(path).is_file()]
    for path in sorted(set(paths) - set(written)):
        print(f"{path}: not written, since its tests did not run to their end")
    roots = [ElementTree.parse(path).getroot() for path in written]
    allowed = allowed_skips(ALLOWED.read_text())
    unexpected = 0
    for name, message in (skip for root in roots for skip in skipped(root)):
        reason = next((why for test, told, why in allowed if fnmatch(name, test) and fnmatch(message, told)), None)
        unexpected += reason is None
        print(f"skipped, {'NOT ALLOWED' if reason is None else f'allowed ({reason})'}: {name}: {message}")
    counted = totals(roots)
    print(", ".join(f"{number} {what}" for what, number in counted.items()))
    return 1 if unexpected or counted["failed"] or not counted["passed"] or len(written) < len(paths) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
