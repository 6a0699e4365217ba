"""What each source of reward is, in a sentence of a card: a line for each in stages.SOURCES.

{beta}, {yesno_template} and the roles of models stand for what a run says of them, {before} for the reward model
before DPO. The sentences have no markup.
"""

SENTENCES = {
    "implicit": (
        "implicit: beta = {beta} times the sum (or the mean) over its tokens of log p under the reward model {reward} "
        "minus log p under the {before}."
    ),
    "contrast": (
        "contrast: the sum (or the mean) over its tokens of log p with the image minus log p without it, both under "
        "the instruct model {instruct}."
    ),
    "yesno": (
        "yesno: log p(yes) minus log p(no) of the judge {yesno}, which is asked about the answer; sha256 of what it is "
        "asked: {yesno_template}."
    ),
    "scalar": (
        "scalar: the number that the head of the reward model {scalar} gives of question and answer in its own chat "
        "format."
    ),
    "rule": "rule: the number that the rule {rule} gives each answer.",
    "critic": (
        "critic: the number that the judge {critic} writes about each answer; sha256 of what it is asked: "
        "{critic_template}."
    ),
}
