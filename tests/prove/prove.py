"""`make prove`: that training on the engine's data makes a model hallucinate less, and that the rewards are why.

    prove.py OUT [--quick] [--page DOCS_FOLDER]

Can be stopped and started again at any point; what is done is not done again. Exit code 1 where a claim does not hold.
"""

import argparse
import sys
from pathlib import Path

import claims
import experiment
import page
from experiment import FULL, QUICK, Folders
from tasks import Failed, run_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="2 seeds and 4 arms, with fewer pairs and pictures")
    parser.add_argument("--page", type=Path, help="folder for proof.md and its plots")
    given = parser.parse_args()
    plan, folders = QUICK if given.quick else FULL, Folders(given.out.absolute())
    try:
        run_all(list(experiment.tasks(plan, folders.root)))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tables = {way: page.arms_table(folders, plan, way) for way in page.WAYS}
    print(page.arms_text(tables))
    found = claims.of_quick(tables["sampled"]) if given.quick else claims.of_full(tables["sampled"])
    print("\n".join(claims.as_text(found)))
    held = all(one.holds for one in found)
    if given.quick:
        spoilt = claims.of_quick(tables["sampled"], "shuffled")
        print("\n".join(claims.as_text(spoilt)))
        caught = not all(one.holds for one in spoilt)
        print(f"with shuffled rewards the same check fails: {'yes' if caught else 'NO'}")
        held &= caught
    elif given.page:
        page.write(given.page, folders, plan, tables, found)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
