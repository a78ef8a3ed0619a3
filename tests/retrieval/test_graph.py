"""Entities, relations, and a walk over them."""

from __future__ import annotations

import asyncio

import networkx
import numpy as np
import pytest

from tripod.chat.scripted import ScriptedModel
from tripod.documents import Passage
from tripod.errors import RequestError
from tripod.retrieval.graph import Graph, Relation, _walk, entities


def passage(name: str, text: str) -> Passage:
    return Passage(source=name, start=0, end=len(text), text=text)


CURIE = passage("curie", "Marie Curie was born in Warsaw. She discovered radium with Pierre Curie.")
WARSAW = passage("warsaw", "Warsaw is the capital of Poland, and lies on the Vistula.")
RIVER = passage("river", "The river is long. The Vistula flows to the Baltic Sea.")
OTHER = passage("other", "Bananas grow in Ecuador.")


def test_names_are_found_and_common_words_that_begin_a_sentence_are_not() -> None:
    assert entities(
        "The Bank of England wrote to Marie Curie in 1911. Banks are banks, but os.path and max_tokens or LocalModel are by J. K. Rowling."
    ) == [
        "Bank of England",
        "Marie Curie",
        "1911",
        "os.path",
        "max_tokens",
        "LocalModel",
        "J. K. Rowling",
    ]
    assert entities("nothing here") == []


def test_a_walk_finds_what_shares_no_word_with_the_question() -> None:
    graph = Graph.of([OTHER, RIVER, WARSAW, CURIE])
    found = graph.search("Which river flows through the city where Marie Curie was born?")
    assert [one.source for one in found] == ["curie", "warsaw", "river"]  # by Warsaw, and by the Vistula
    assert graph.search("Who is Napoleon?") == []
    assert [one.source for one in graph.search("and Ecuador?")] == ["other"]


def test_a_part_of_a_name_is_enough() -> None:
    assert Graph.of([CURIE, OTHER]).search("what did curie do?")[0].source == "curie"


def test_relations_of_a_model_are_kept_with_their_passages() -> None:
    model = ScriptedModel(['[["Marie Curie", "discovered", "radium"]]', '[["Warsaw", "is the capital of", "Poland"]]'])
    graph = asyncio.run(Graph.written([CURIE, WARSAW], model))
    assert graph.about("radium") == [Relation("Marie Curie", "discovered", "radium", CURIE.id)]
    assert graph.search("radium")[0].source == "curie"
    for text in ("none", '[["a", "b"]]', '["a", "b", "c"]'):
        with pytest.raises(RequestError):
            asyncio.run(Graph.written([CURIE], ScriptedModel([text])))


@pytest.mark.parametrize("restart", [0.5, 0.2])
def test_the_walk_is_that_of_networkx(restart: float) -> None:
    graph = networkx.gnm_random_graph(30, 60, seed=4)
    edges = [(first, second) for first, second in graph.edges if first != second]
    graph = networkx.Graph(edges)
    start = dict.fromkeys(list(graph)[:3], 1.0)
    theirs = networkx.pagerank(graph, alpha=1 - restart, personalization=start, tol=1e-12, max_iter=500)
    ours = _walk(edges, start, 30, restart)
    assert ours.sum() == pytest.approx(1.0)
    assert np.allclose(
        [ours[node] for node in theirs], list(theirs.values()), atol=2 * (1 - restart) ** 30
    )  # what is not yet walked after 30 rounds
