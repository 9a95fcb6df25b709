"""A judge without processes: answers are equal when their texts are."""

from __future__ import annotations

from collections.abc import Sequence


class SameText:
    """As `learner.algorithms.base.Judge` says; an empty text is no answer."""

    def are_correct(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [answer == truth for answer, truth in pairs]

    def classes(self, answers: Sequence[str]) -> list[int | None]:
        numbers = {text: number for number, text in enumerate(dict.fromkeys(filter(None, answers)))}
        return [numbers.get(answer) for answer in answers]
