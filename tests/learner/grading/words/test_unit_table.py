from fractions import Fraction

from learner.grading.words import unit_table


def test_every_factor_is_a_number_and_no_word_has_two_meanings() -> None:
    words = [word for names, _, _ in unit_table.OTHER_UNITS for word in names.split()]
    words += [symbol for symbol, *_ in unit_table.SI_UNITS]
    assert all(Fraction(factor) > 0 for *_, factor in unit_table.OTHER_UNITS + unit_table.SI_UNITS)
    assert sorted(words) == sorted(set(words))


def test_no_unit_changes_the_meaning_of_a_number() -> None:
    words = {word for names, _, _ in unit_table.OTHER_UNITS for word in names.split()}
    assert (words | unit_table.ANY_COUNT) & unit_table.NEVER_NOUNS == {"in"}
