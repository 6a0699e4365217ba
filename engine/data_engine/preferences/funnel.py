"""The funnel: the number of questions and answers, of those left out by reason, and of the pairs written."""

import json
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Funnel:
    """Counts of one pairing, in the order in which things are left out."""

    questions: int = 0
    quarantined: int = 0
    """questions that an earlier stage left out"""
    turned: int = 0
    """questions whose picture was turned upright"""
    answers: int = 0
    not_ranked: Counter = field(default_factory=Counter)
    """reason -> answers"""
    ranked: int = 0
    """answers"""
    candidate_pairs: int = 0
    dropped: Counter = field(default_factory=Counter)
    """filter -> pairs"""
    not_fitting: int = 0
    """pairs that are kept, and that the columns of dataset/ cannot hold"""
    not_written: Counter = field(default_factory=Counter)
    """reason -> other pairs that are kept, and that dataset/ does not hold"""
    rewritten: int = 0
    """pairs in dataset/ of which a text was rewritten, so that a trainer reads it as text"""
    written: int = 0
    """pairs in dataset/"""
    kept: int | None = None
    """pairs that every filter kept, of a pairing of which no dataset/ is written"""

    @property
    def found(self) -> int:
        """Pairs that the filters kept, and that a dataset can be made of."""
        return self.written + self.not_fitting if self.kept is None else self.kept

    def why_no_candidates(self, strategy: str) -> str:
        """Of answers that rank, where no two of a question became a pair."""
        flags = "--right, --rank, --distance, --length_alpha"
        return f"answers ranked, and strategy {strategy} pairs no two of a question ({flags})"

    def lines(self) -> list[tuple[str, int]]:
        """(name, count); names of what was left out start with two spaces."""
        not_ranked = [(f"  not ranked: {reason}", count) for reason, count in self.not_ranked.items()]
        return [
            ("questions", self.questions),
            ("  quarantined", self.quarantined),
            *([("  with a picture turned upright", self.turned)] if self.turned else []),
            ("answers", self.answers),
            *not_ranked,
            ("ranked answers", self.ranked),
            ("candidate pairs", self.candidate_pairs),
            *((f"  dropped by {name}", count) for name, count in self.dropped.items()),
            *(
                [("  kept, but not in dataset/: several images or none, system text, turns", self.not_fitting)]
                if self.not_fitting
                else []
            ),
            *((f"  kept, but not in dataset/: {reason}", count) for reason, count in self.not_written.items()),
            ("written", self.written) if self.kept is None else ("kept", self.kept),
            *([("  with a control token rewritten as text", self.rewritten)] if self.rewritten else []),
        ]

    def table(self) -> str:
        """The text that a run prints at its end."""
        lines = self.lines()
        width = max(len(name) for name, _ in lines)
        digits = max(len(f"{count:,}") for _, count in lines)
        return "\n".join(f"{name:<{width}}  {count:>{digits},}" for name, count in lines)

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> "Funnel":
        values = json.loads(text)
        counters = ("not_ranked", "dropped", "not_written")
        return cls(**values | {name: Counter(values.get(name, ())) for name in counters})
