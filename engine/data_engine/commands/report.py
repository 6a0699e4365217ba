"""`data-engine report`: the report of a run whose pairs are written, from its work_dir and its dataset. No torch."""

from collections.abc import Sequence

from data_engine.commands.work_dir import open_finished, take_option, work_dir_argument

# Where the dataset is, if it has moved since the run; --NAME PATH.
PLACES = ("dataset_path", "image_root")


def main(argv: Sequence[str]) -> int:
    """Write the report again and print its path. Raises UserError without pairs, or where the dataset has changed."""
    given, rest = {}, list(argv)
    pairing, rest = take_option(rest, "name")
    for name in PLACES:
        value, rest = take_option(rest, name)
        given |= {name: value} if value is not None else {}
    work_dir = work_dir_argument(
        "report",
        "Writes WORK_DIR/report/index.html again, from the pairs and the dataset; with --name,\n"
        "report/NAME/index.html of a pairing by data-engine pairs. Where the dataset has moved since the run,\n"
        "say where it is.",
        rest,
        options=" [--name NAME] [--dataset_path PATH] [--image_root PATH]",
    )
    if work_dir is None:
        return 0
    run = open_finished(work_dir, given, name=pairing)
    # Imported late: numpy and matplotlib would delay the messages before.
    from data_engine.pipeline.pair import read_funnel
    from data_engine.reporting.page import write_report

    funnel = read_funnel(work_dir, run.name)
    print(write_report(work_dir, run.questions, funnel, run.config.max_megapixels, run.config.exif, run.name))
    return 0
