"""Words that readers stumble over are nowhere that a reader meets them."""

from bench.words import PATTERN, offences


def test_words_that_are_not_written() -> None:
    assert offences() == []


def test_the_list_finds_what_it_should_and_leaves_plain_english() -> None:
    for wrong in (
        "it stands here",
        "which is no file",
        "print it and leave",
        "told in one line",
        "the mission's formula",
    ):
        assert PATTERN.search(wrong), wrong
    for right in (
        "there is no file",
        "it is no longer needed",
        "short for {format: e4m3fn}",
        "understand",
        "a standard",
    ):
        assert not PATTERN.search(right), right
