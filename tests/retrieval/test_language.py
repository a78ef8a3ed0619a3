"""Languages: told apart, believed where a file says so, and used for filters and splitters."""

from __future__ import annotations

from pathlib import Path

import pytest

import tripod
from tripod.documents import Document
from tripod.retrieval.converters.plain_text import PlainText
from tripod.retrieval.index import Index
from tripod.retrieval.language import WithLanguage, detect_language, with_languages
from tripod.text.enriched import Routed
from tripod.text.sentence_splitter import SentenceWindow
from tripod.text.splitter import Recursive

# Article 1 of the Universal Declaration of Human Rights.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلًا وضميرًا.",
}


@pytest.mark.parametrize("language", ARTICLE)
def test_a_language_is_told_by_its_text(language: str) -> None:
    assert detect_language(ARTICLE[language]) == language


def test_only_the_languages_that_can_be_are_named() -> None:
    assert detect_language(ARTICLE["es"], frozenset({"en", "fr"})) == "fr"


@pytest.mark.parametrize("text", ["", "1234 5678 " * 20, "Hello"])
def test_too_few_letters_tell_nothing(text: str) -> None:
    assert detect_language(text) is None
    assert "language" not in WithLanguage(PlainText()).convert(text.encode(), "a.txt").metadata


def test_what_a_file_says_of_itself_is_believed() -> None:
    class Declared(PlainText):
        def convert(self, content: bytes, source: str) -> Document:
            return Document(source=source, text=content.decode(), metadata={"language": "de-AT"})

    assert WithLanguage(Declared()).convert(ARTICLE["en"].encode(), "a.txt").metadata["language"] == "de"


def test_a_search_filters_by_language_and_a_splitter_is_chosen_by_it(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for language, text in ARTICLE.items():
        (tmp_path / "docs" / f"{language}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "docs" / "it.html").write_text("<p>Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.", encoding="utf-8")
    splitter = Routed("language", {"de": SentenceWindow()}, Recursive(200))

    async def go() -> None:
        async with Index(tmp_path / "kb.db", embedder=None, converters=with_languages(), splitter=splitter) as index:
            await index.sync(tmp_path / "docs")
            assert [hit.source for hit in await index.search("sind", where={"language": "de"})] == ["de.txt", "de.txt"]
            assert await index.search("sind", where={"language": "fr"}) == []
            assert len(await index.search("and", where={"language": "en"})) == 1
            assert [hit.source for hit in await index.search("liberi", where={"language": "it"})] == ["it.html"]  # read in a worker

    tripod.run(go())
