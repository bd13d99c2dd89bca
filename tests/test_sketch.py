"""MinHash: estimates against the exact similarity, and who stays of those that are near."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.overlap import words
from factory.sketch import PERMUTATIONS, bands, near, num_bands, shingles, signatures

CONTEXT = np.uint64(7)


def jaccard(left: list[str], right: list[str]) -> float:
    return len(set(left) & set(right)) / len(set(left) | set(right))


def meets(texts: list[list[str]], threshold: float, positions: list[int] | None = None) -> dict[int, int]:
    """Later to earlier position of those that are near, by bands as the pipeline makes them."""
    signed, count = signatures(texts), num_bands(threshold)
    at = np.repeat(np.array(positions if positions is not None else range(len(texts))), count)
    hashes = bands(signed, np.full(len(texts), CONTEXT), count).reshape(-1)
    later, earlier, _ = near(hashes, at, np.repeat(signed.astype(np.uint8), count, axis=0), threshold)
    return dict(zip(at[later].tolist(), at[earlier].tolist(), strict=True))


def test_shingles_are_three_words_each_once() -> None:
    assert shingles(["a", "b", "c", "a", "b", "c"]) == ["a b c", "b c a", "c a b"]
    assert shingles(["a", "b"]) == ["a b"]
    assert shingles(words("¿?") or ["¿?"]) == ["¿?"]


def test_signatures_are_the_same_in_every_version_and_on_every_machine() -> None:
    # Runs that are resumed or made again must find the same near-duplicates.
    found = signatures([["a b c", "b c d"], ["x"]])
    assert found.shape == (2, PERMUTATIONS)
    assert found[:, :3].tolist() == [[1300367126, 694405159, 10242974], [450721439, 1347959129, 3461283095]]


def test_signatures_do_not_depend_on_what_else_is_in_the_batch() -> None:
    texts = [[f"{i} {j}" for j in range(1 + i % 7)] for i in range(1_500)]
    together = signatures(texts)
    assert np.array_equal(together[600:700], signatures(texts[600:700]))


def test_similarity_estimate_is_within_its_deviation_of_the_exact_one() -> None:
    generator = random.Random(3)
    left = [[str(generator.random()) for _ in range(60)] for _ in range(300)]
    kept = [generator.randrange(20, 60) for _ in left]
    right = [text[:n] + [f"new {i}" for i in range(60 - n)] for text, n in zip(left, kept, strict=True)]
    exact = np.array([jaccard(a, b) for a, b in zip(left, right, strict=True)])
    errors = (signatures(left) == signatures(right)).mean(axis=1) - exact
    assert abs(errors.mean()) < 0.01
    assert np.sqrt((errors**2).mean()) < 0.06  # sqrt(s (1 - s) / 128) is 0.044 at most


def test_bands_of_a_threshold_find_nine_of_ten_pairs_at_it() -> None:
    assert {t: num_bands(t) for t in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)} == {
        0.5: 64,
        0.6: 32,
        0.7: 32,
        0.8: 16,
        0.9: 16,
        1.0: 8,
    }


def test_near_chain_stays_where_its_ends_differ() -> None:
    # b is near a; c is near b and not a: b goes and c stays, since nothing that is left is near it.
    sketches = np.zeros((3, PERMUTATIONS), dtype=np.uint8)
    sketches[1, :20] = 1
    sketches[2, :40] = 1
    same = np.zeros(3, dtype=np.uint64)
    later, earlier, similarity = near(same, np.array([0, 1, 2]), sketches, 0.8)
    assert (later.tolist(), earlier.tolist()) == ([1], [0])
    assert similarity.tolist() == [1 - 20 / PERMUTATIONS]
    later, earlier, _ = near(same, np.array([1, 0, 2]), sketches, 0.8)  # the one in the middle stands first
    assert (later.tolist(), earlier.tolist()) == ([0, 2], [1, 1])


def test_bands_of_another_context_never_meet() -> None:
    signed = signatures([["a b c"], ["a b c"]])
    first, second = bands(signed, np.array([1, 2], dtype=np.uint64), 16)
    assert not set(first.tolist()) & set(second.tolist())


TEXTS = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6).map("".join), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_near_is_the_same_in_any_order_and_any_number_of_buckets(
    texts: list[str], shuffle: random.Random, n: int
) -> None:
    many = [[f"{text} {i}" for i in range(12)] + list(text) for text in texts]
    expected = meets(many, 0.7)
    order = list(range(len(many)))
    shuffle.shuffle(order)
    assert meets([many[i] for i in order], 0.7, order) == expected
    # Bands that are compared apart, as in several tasks, name the same first.
    signed, count = signatures(many), num_bands(0.7)
    at = np.repeat(np.arange(len(many)), count)
    hashes = bands(signed, np.full(len(many), CONTEXT), count).reshape(-1)
    sketches = np.repeat(signed.astype(np.uint8), count, axis=0)
    found: dict[int, int] = {}
    for bucket in range(n):
        here = hashes % np.uint64(n) == bucket
        later, earlier, _ = near(hashes[here], at[here], sketches[here], 0.7)
        for a, b in zip(at[here][later].tolist(), at[here][earlier].tolist(), strict=True):
            found[a] = min(b, found.get(a, b))
    assert found == expected


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_near_first_stays_and_no_two_that_stay_are_near_in_a_band(texts: list[str]) -> None:
    many = [[f"{text} {i}" for i in range(12)] + list(text) for text in texts]
    gone = meets(many, 0.7)
    assert 0 not in gone
    assert all(earlier < later for later, earlier in gone.items())
    left = [text for i, text in enumerate(many) if i not in gone]
    assert meets(left, 0.7) == {}
